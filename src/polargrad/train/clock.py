"""Stamps on the device's own time line, read without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """Takes stamps; the seconds between two of them can be asked once the device has passed both.

    On a GPU the host runs ahead, so its clock says when work was queued. Events in the stream say when it ran, and cost
    no synchronization until they are read.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device

    def stamp(self) -> Any:
        """Now, on the device's time line."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from one stamp to a later one; waits for the device to pass the later one."""
        if not self._cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3
