"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While open, SIGTERM and Ctrl-C only ask to stop: the loop ends after its step and saves. A second one interrupts.

    Outside of the main thread, where Python delivers no signals, and for signals that the process ignores, nothing
    changes.

    Args:
        notify: called from the signal handler at the first request; it may not print through buffered streams.
        heed: False changes nothing: processes that step together cannot agree on the step to stop after.
    """

    def __init__(self, notify: Callable[[], None] | None = None, heed: bool = True) -> None:
        self.name: str | None = None  # of the signal, once there was one
        self._notify, self._heed = notify, heed
        self._previous: dict[signal.Signals, Any] = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self._notify is not None:
            self._notify()

    def __enter__(self) -> Self:
        if self._heed and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
