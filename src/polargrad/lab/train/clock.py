"""Stamps on the device's own time line."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """Takes stamps; the seconds between two of them can be asked once the device has passed both.

    A GPU's host runs ahead, so its clock says when work was queued. On CUDA, events in the stream say when it ran and
    cost no synchronization until they are read; other accelerators are waited for at every stamp.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = device.type == "cuda"
        self._wait = None if device.type in ("cpu", "cuda") else torch.get_device_module(device).synchronize

    def stamp(self) -> Any:
        """Now, on the device's time line."""
        if not self._events:
            if self._wait is not None:
                self._wait()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from one stamp to a later one; waits for the device to pass the later one."""
        if not self._events:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3
