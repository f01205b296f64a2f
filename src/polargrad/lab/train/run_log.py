"""The records of one run: losses wait as tensors and are read in bulk, so that steps need not wait for the device."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polargrad.lab.train.config import LoopConfig
from polargrad.lab.train.progress import Progress

Record = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Summary:
    """How a run ended. All metrics are finite or None.

    Args:
        status: "finished", "diverged" or "interrupted".
        steps: finished steps.
        reason: reason of a divergence, or the signal that interrupted the run; else empty.
        final: the last step's loss as "loss", and the last evaluation.
        best: the evaluation with the lowest first metric, with its step and seconds.
        seconds: seconds spent on forward, backward and the optimizer.
        optimizer_seconds: the optimizer's part of them.
        units: consumed tokens, samples or iterations.
    """

    status: str
    steps: int
    reason: str = ""
    final: dict[str, float | None] = field(default_factory=dict)
    best: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    units: int = 0


class DeviceTimer:
    """Takes stamps on the device's own time line; the seconds between two can be read once it has passed both.

    A GPU's host runs ahead, so the host's clock says when work was queued. On CUDA, events in the stream say when it
    ran and cost no synchronization until they are read; other accelerators are synchronized at every stamp.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = device.type == "cuda"
        self._synchronize = None if device.type in ("cpu", "cuda") else torch.get_device_module(device).synchronize

    def stamp(self) -> Any:
        """Now, on the device's time line."""
        if not self._events:
            if self._synchronize is not None:
                self._synchronize()
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


class _Step(NamedTuple):
    step: int
    loss: Tensor
    rates: dict[str, float]
    stamps: tuple[Any, Any, Any, Any]  # start, backward done, optimizer begins, optimizer done


# Number of previous losses that a loss is compared with, and how many there must be.
_SPIKE_WINDOW = 32
_SPIKE_LEAST = 8

# What `state_dict` holds.
_STATE = (
    *("_first_loss", "_reported", "_final", "_best", "_lowest", "_recent", "_spiking", "_lost"),
    *("steps", "seconds", "optimizer_seconds", "diverged", "reason"),
)


class RunLog:
    """Writes the records of a run and notices when it spikes, skips or diverges.

    Records of kind "step", "eval" and "matrix" carry the number of finished steps, counted from 1, and "step" and
    "eval" also the training seconds so far. A metric that is not finite is written as None, together with an event.

    Args:
        record: takes one record, plain data.
        timer: timer that took the stamps given to `add`.
        units_per_step: number of tokens, samples or iterations that a step consumes.
        config: its limits say when a loss is a spike and when the run has diverged.
        skipped: returns the number of updates that the optimizer has skipped so far.
        all_skipped: whether the last step changed nothing; called only when `skipped` has grown.
        mean: mean of losses (n,) over the processes that share a batch.
        progress: progress display; None: silent.
    """

    def __init__(
        self,
        record: Record,
        timer: DeviceTimer,
        units_per_step: int,
        config: LoopConfig,
        *,
        skipped: Callable[[], int] = lambda: 0,
        all_skipped: Callable[[], bool] = lambda: False,
        mean: Callable[[Tensor], Tensor] = lambda losses: losses,
        progress: Progress | None = None,
    ) -> None:
        self._record, self._timer, self._units_per_step, self._config = record, timer, units_per_step, config
        self._skipped, self._all_skipped, self._mean, self._progress = skipped, all_skipped, mean, progress
        self._skips_recorded = skipped()
        self._waiting: deque[_Step] = deque()
        self._first_loss: float | None = None
        self._reported: set[str] = set()
        self._final: dict[str, float | None] = {}
        self._best: dict[str, float | None] = {}
        self._lowest = math.inf
        self._recent: deque[float] = deque(maxlen=_SPIKE_WINDOW)
        self._spiking = False
        self._lost = 0  # consecutive steps without effect
        self.steps = 0
        self.seconds = 0.0
        self.optimizer_seconds = 0.0
        self.diverged = False
        self.reason = ""

    def add(self, step: int, loss: Tensor, rates: dict[str, float], stamps: tuple[Any, Any, Any, Any]) -> None:
        """Note a finished step; its loss stays on the device until `flush`."""
        self._waiting.append(_Step(step, loss.detach(), rates, stamps))

    def flush(self) -> None:
        """Read the waiting losses and write their records."""
        if not self._waiting:
            return
        losses = self._mean(torch.stack([waiting.loss for waiting in self._waiting]).double()).tolist()
        skipped = self._skipped() - self._skips_recorded
        self._skips_recorded += skipped
        no_effect = skipped > 0 and self._all_skipped()
        for loss in losses:
            self._write_step(self._waiting.popleft(), loss, no_effect)
        if skipped:
            self.event("skipped", f"{skipped} parameter updates skipped for non-finite gradients")
        if self._progress is not None:
            self._progress.update(self.steps, losses[-1], self.steps * self._units_per_step, self.seconds)

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """Write an evaluation of the weights as they are after the finished steps."""
        if not metrics:
            return
        first = next(iter(metrics.values()))
        plain = self._plain(metrics, "evaluation")
        self._final.update(plain)
        if first < self._lowest or not self._best:
            self._lowest = first if math.isfinite(first) else math.inf
            self._best = {"step": self.steps, "seconds": self.seconds, **plain}
        self._record({"kind": "eval", "step": self.steps, "seconds": self.seconds, **plain})
        if self._progress is not None:
            self._progress.evaluated(self.steps, metrics)

    def matrices(self, step: int, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write what the probe measured in a step, counted from 1."""
        for entry in entries:
            plain = self._plain(entry, str(entry.get("parameter", "matrix")), step)
            self._record({"kind": "matrix", "step": step, **plain})

    def event(self, name: str, message: str, step: int | None = None) -> None:
        """Write that something happened."""
        step = self.steps if step is None else step
        self._record({"kind": "event", "step": step, "event": name, "message": message})

    def summary(self, status: str, reason: str = "") -> Summary:
        """How the run ended."""
        return Summary(
            status=status,
            steps=self.steps,
            reason=reason or self.reason,
            final=dict(self._final),
            best=dict(self._best),
            seconds=self.seconds,
            optimizer_seconds=self.optimizer_seconds,
            units=self.steps * self._units_per_step,
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the log as plain data; nothing may be waiting."""
        assert not self._waiting
        state = {name: getattr(self, name) for name in _STATE}
        for name in ("_reported", "_recent"):
            state[name] = list(state[name])
        return {name: dict(value) if isinstance(value, dict) else value for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in _STATE:
            setattr(self, name, state[name])
        self._recent = deque(self._recent, maxlen=_SPIKE_WINDOW)
        self._reported = set(self._reported)

    def _write_step(self, waiting: _Step, loss: float, no_effect: bool) -> None:
        start, backward_done, optimizer_begins, optimizer_done = waiting.stamps
        optimizer_seconds = self._timer.seconds(optimizer_begins, optimizer_done)
        self.seconds += self._timer.seconds(start, backward_done) + optimizer_seconds
        self.optimizer_seconds += optimizer_seconds
        self.steps = waiting.step
        finite = math.isfinite(loss)
        self._final["loss"] = loss if finite else None
        timed = {"seconds": self.seconds, "optimizer_seconds": self.optimizer_seconds}
        consumed = {"lr": waiting.rates, "units": waiting.step * self._units_per_step}
        self._record({"kind": "step", "step": waiting.step, "loss": self._final["loss"], **timed, **consumed})
        if self._first_loss is None and finite:
            self._first_loss = loss
        if not self.diverged:
            self._watch(waiting.step, loss, finite, no_effect)

    def _watch(self, step: int, loss: float, finite: bool, no_effect: bool) -> None:
        config, first = self._config, self._first_loss
        self._lost = 0 if finite and not no_effect else self._lost + 1
        if not finite and self._lost == 1:
            self.event("nonfinite", f"the loss is {loss}", step)
        if config.nonfinite_limit is not None and self._lost >= config.nonfinite_limit:
            what = f"the loss is {loss}" if not finite else "every update was skipped"
            row = f" in the last of {self._lost} steps in a row without effect" if self._lost > 1 else ""
            self._diverge(f"{what}{row}", step)
        elif not finite:
            pass
        elif config.divergence_factor is not None and first is not None and loss > config.divergence_factor * first > 0:
            self._diverge(
                f"the loss {loss:.6g} is more than {config.divergence_factor:g} times the first, {first:.6g}", step
            )
        elif config.spike_threshold is not None:
            if len(self._recent) >= _SPIKE_LEAST:
                median = statistics.median(self._recent)
                deviation = statistics.median(abs(recent - median) for recent in self._recent)
                spiking = loss - median > config.spike_threshold * deviation
                if spiking and not self._spiking:
                    message = f"the loss {loss:.6g} stands out from {median:.6g} ± {deviation:.2g} before it"
                    self.event("spike", message, step)
                self._spiking = spiking
            self._recent.append(loss)

    def _diverge(self, reason: str, step: int) -> None:
        self.diverged, self.reason = True, reason
        self.event("diverged", reason, step)

    def _plain(self, metrics: Mapping[str, Any], of: str, step: int | None = None) -> dict[str, Any]:
        plain = dict(metrics)
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                plain[name] = None
                if f"{of} {name}" not in self._reported:
                    self._reported.add(f"{of} {name}")
                    self.event("nonfinite", f"{name} of {of} is {value}, for the first time", step)
        return plain
