"""The records of one run: losses wait as tensors and are read in bulk, so that steps need not wait for the device."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polargrad.lab.train.clock import Clock
from polargrad.lab.train.progress import Progress

Record = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Summary:
    """How a run ended. All figures are finite or None.

    Args:
        status: "finished", "diverged" or "interrupted".
        reason: of a divergence, or the signal that interrupted the run; else empty.
        steps: finished steps.
        final: the last step's loss as "loss", and the last evaluation.
        best: the evaluation with the lowest first figure, with its step and seconds.
        seconds: spent on forward, backward and the optimizer.
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


class _Step(NamedTuple):
    step: int
    loss: Tensor
    rates: dict[str, float]
    stamps: tuple[Any, Any, Any, Any]  # start, backward done, optimizer begins, optimizer done


# The losses before a step that its own is held against, and how many there must be.
_SPIKE_WINDOW = 32
_SPIKE_LEAST = 8


class Journal:
    """Writes the records of a run and notices when it spikes, skips or diverges.

    Records of kind "step", "eval" and "matrix" carry the number of finished steps, counted from 1, and "step" and
    "eval" also the training seconds so far. A figure that is not finite is written as None, together with an event.

    Args:
        record: takes one record, plain data.
        clock: what the stamps of `add` are of.
        units_per_step: what a step consumes.
        divergence_factor: a loss above this many times the first one, if that is positive, counts as diverged; None:
            none does.
        nonfinite_limit: so many steps in a row whose loss is not finite, or of which every update was skipped, count as
            diverged; None: none do.
        spike_threshold: a loss further above the median of the last 32 than this many times their median absolute
            deviation is recorded as a spike, once until the loss is back; None: none is.
        skipped: how many updates the optimizer left out so far.
        mean: of losses (n,) over the processes that share a batch.
        all_skipped: whether the last step changed nothing; asked only when `skipped` has grown.
        progress: shows the way to a person; None: nobody looks.
    """

    def __init__(
        self,
        record: Record,
        clock: Clock,
        units_per_step: int,
        *,
        divergence_factor: float | None,
        nonfinite_limit: int | None = None,
        spike_threshold: float | None = None,
        skipped: Callable[[], int] = lambda: 0,
        mean: Callable[[Tensor], Tensor] = lambda losses: losses,
        all_skipped: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> None:
        self._record, self._clock, self._progress = record, clock, progress
        self._units_per_step = units_per_step
        self._factor, self._nonfinite_limit, self._spike_threshold = divergence_factor, nonfinite_limit, spike_threshold
        self._skipped, self._all_skipped, self._skips_told = skipped, all_skipped, skipped()
        self._mean = mean
        self._waiting: deque[_Step] = deque()
        self._first_loss: float | None = None
        self._reported: set[str] = set()
        self._final: dict[str, float | None] = {}
        self._best: dict[str, float | None] = {}
        self._lowest = math.inf
        self._recent: deque[float] = deque(maxlen=_SPIKE_WINDOW)
        self._spiking = False
        self._lost = 0  # steps in a row that brought nothing
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
        skipped = self._skipped() - self._skips_told
        self._skips_told += skipped
        nothing_stepped = skipped > 0 and self._all_skipped()
        for loss in losses:
            self._write_step(self._waiting.popleft(), loss, nothing_stepped)
        if skipped:
            self.event("skipped", f"{skipped} parameter updates skipped for non-finite gradients")
        if self._progress is not None:
            self._progress.update(self.steps, losses[-1], self.steps * self._units_per_step, self.seconds)

    def evaluation(self, figures: Mapping[str, float]) -> None:
        """Write an evaluation of the weights as they are after the finished steps."""
        if not figures:
            return
        leading = next(iter(figures.values()))
        plain = self._plain(figures, "evaluation")
        self._final.update(plain)
        if leading < self._lowest or not self._best:
            self._lowest = leading if math.isfinite(leading) else math.inf
            self._best = {"step": self.steps, "seconds": self.seconds, **plain}
        self._record({"kind": "eval", "step": self.steps, "seconds": self.seconds, **plain})
        if self._progress is not None:
            self._progress.evaluated(self.steps, figures)

    def matrices(self, step: int, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write what the probe saw of the gradients of a step, counted from 1."""
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
        """Where the journal stands, as plain data; nothing may be waiting."""
        assert not self._waiting
        return {name: _plain_copy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for name in _STATE:
            setattr(self, name, state[name])
        self._recent = deque(self._recent, maxlen=_SPIKE_WINDOW)
        self._reported = set(self._reported)

    def _write_step(self, waiting: _Step, loss: float, nothing_stepped: bool) -> None:
        start, backward_done, optimizer_begins, optimizer_done = waiting.stamps
        optimizer_seconds = self._clock.seconds(optimizer_begins, optimizer_done)
        self.seconds += self._clock.seconds(start, backward_done) + optimizer_seconds
        self.optimizer_seconds += optimizer_seconds
        self.steps = waiting.step
        finite = math.isfinite(loss)
        self._final["loss"] = loss if finite else None
        self._record(
            {
                "kind": "step",
                "step": waiting.step,
                "loss": self._final["loss"],
                "seconds": self.seconds,
                "optimizer_seconds": self.optimizer_seconds,
                "lr": waiting.rates,
                "units": waiting.step * self._units_per_step,
            }
        )
        if self._first_loss is None and finite:
            self._first_loss = loss
        self._watch(waiting.step, loss, finite, nothing_stepped)

    def _watch(self, step: int, loss: float, finite: bool, nothing_stepped: bool) -> None:
        if self.diverged:
            return
        self._lost = 0 if finite and not nothing_stepped else self._lost + 1
        if not finite and self._lost == 1:
            self.event("nonfinite", f"the loss is {loss}", step)
        if self._nonfinite_limit is not None and self._lost >= self._nonfinite_limit:
            what = f"the loss is {loss}" if not finite else "every update was skipped"
            row = f" in the last of {self._lost} steps in a row that brought nothing" if self._lost > 1 else ""
            self._diverge(f"{what}{row}", step)
        elif not finite:
            pass
        elif self._factor is not None and self._first_loss is not None and loss > self._factor * self._first_loss > 0:
            self._diverge(
                f"the loss {loss:.6g} is more than {self._factor:g} times the first, {self._first_loss:.6g}", step
            )
        else:
            self._watch_for_spikes(step, loss)

    def _watch_for_spikes(self, step: int, loss: float) -> None:
        if self._spike_threshold is None:
            return
        if len(self._recent) >= _SPIKE_LEAST:
            median = statistics.median(self._recent)
            deviation = statistics.median(abs(recent - median) for recent in self._recent)
            spiking = loss - median > self._spike_threshold * deviation
            if spiking and not self._spiking:
                self.event(
                    "spike", f"the loss {loss:.6g} stands out from {median:.6g} ± {deviation:.2g} before it", step
                )
            self._spiking = spiking
        self._recent.append(loss)

    def _diverge(self, reason: str, step: int) -> None:
        self.diverged, self.reason = True, reason
        self.event("diverged", reason, step)

    def _plain(self, figures: Mapping[str, Any], of: str, step: int | None = None) -> dict[str, Any]:
        plain = dict(figures)
        for name, value in figures.items():
            if isinstance(value, float) and not math.isfinite(value):
                plain[name] = None
                if f"{of} {name}" not in self._reported:
                    self._reported.add(f"{of} {name}")
                    self.event("nonfinite", f"{name} of {of} is {value}, here for the first time", step)
        return plain


_STATE = (
    "_first_loss",
    "_reported",
    "_final",
    "_best",
    "_lowest",
    "_recent",
    "_spiking",
    "_lost",
    "steps",
    "seconds",
    "optimizer_seconds",
    "diverged",
    "reason",
)


def _plain_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, set | deque) else value
