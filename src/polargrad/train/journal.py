"""The records of one run: losses wait as tensors and are read in bulk, so that steps need not wait for the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polargrad.train.clock import Clock
from polargrad.train.progress import Progress

Record = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Summary:
    """How a run ended. All figures are finite or None.

    Args:
        status: "finished", "diverged" or "interrupted".
        steps: finished steps.
        final: the last step's loss as "loss", and the last evaluation.
        best: the evaluation with the lowest first figure, with its step and seconds.
        seconds: spent on forward, backward and the optimizer.
        optimizer_seconds: the optimizer's part of them.
        units: consumed tokens, samples or iterations.
    """

    status: str
    steps: int
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


class Journal:
    """Writes the records of a run and notices when it diverges.

    Records of kind "step", "eval" and "matrix" carry the number of finished steps, counted from 1, and "step" and
    "eval" also the training seconds so far. A figure that is not finite is written as None, together with an event.

    Args:
        record: takes one record, plain data.
        clock: what the stamps of `add` are of.
        units_per_step: what a step consumes.
        divergence_factor: a loss above this many times the first one, if that is positive, counts as diverged; None:
            none does.
        stop_on_nonfinite: a loss that is not finite counts as diverged.
        skipped: how many updates the optimizer left out so far.
        mean: of losses (n,) over the processes that share a batch.
        progress: shows the way to a person; None: nobody looks.
    """

    def __init__(
        self,
        record: Record,
        clock: Clock,
        units_per_step: int,
        *,
        divergence_factor: float | None,
        stop_on_nonfinite: bool,
        skipped: Callable[[], int] = lambda: 0,
        mean: Callable[[Tensor], Tensor] = lambda losses: losses,
        progress: Progress | None = None,
    ) -> None:
        self._record, self._clock, self._progress = record, clock, progress
        self._units_per_step = units_per_step
        self._factor, self._stop_on_nonfinite = divergence_factor, stop_on_nonfinite
        self._skipped, self._skips_told = skipped, skipped()
        self._mean = mean
        self._waiting: deque[_Step] = deque()
        self._first_loss: float | None = None
        self._reported: set[str] = set()
        self._final: dict[str, float | None] = {}
        self._best: dict[str, float | None] = {}
        self._lowest = math.inf
        self.steps = 0
        self.seconds = 0.0
        self.optimizer_seconds = 0.0
        self.diverged = False

    def add(self, step: int, loss: Tensor, rates: dict[str, float], stamps: tuple[Any, Any, Any, Any]) -> None:
        """Note a finished step; its loss stays on the device until `flush`."""
        self._waiting.append(_Step(step, loss.detach(), rates, stamps))

    def flush(self) -> None:
        """Read the waiting losses and write their records."""
        if not self._waiting:
            return
        losses = self._mean(torch.stack([waiting.loss for waiting in self._waiting]).double()).tolist()
        for loss in losses:
            self._write_step(self._waiting.popleft(), loss)
        skipped = self._skipped()
        if skipped > self._skips_told:
            message = f"{skipped - self._skips_told} parameter updates skipped for non-finite gradients"
            self.event("skipped", message)
            self._skips_told = skipped
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

    def summary(self, status: str) -> Summary:
        """How the run ended."""
        return Summary(
            status=status,
            steps=self.steps,
            final=dict(self._final),
            best=dict(self._best),
            seconds=self.seconds,
            optimizer_seconds=self.optimizer_seconds,
            units=self.steps * self._units_per_step,
        )

    def _write_step(self, waiting: _Step, loss: float) -> None:
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
        self._watch(waiting.step, loss, finite)

    def _watch(self, step: int, loss: float, finite: bool) -> None:
        if self.diverged:
            return
        if not finite:
            if self._stop_on_nonfinite:
                self.diverged = True
                self.event("diverged", f"the loss is {loss}", step)
            elif "loss" not in self._reported:
                self._reported.add("loss")
                self.event("nonfinite", f"the loss is {loss}, here for the first time", step)
        elif self._factor is not None and self._first_loss is not None and loss > self._factor * self._first_loss > 0:
            self.diverged = True
            self.event(
                "diverged",
                f"the loss {loss:.6g} is more than {self._factor:g} times the first, {self._first_loss:.6g}",
                step,
            )

    def _plain(self, figures: Mapping[str, Any], of: str, step: int | None = None) -> dict[str, Any]:
        plain = dict(figures)
        for name, value in figures.items():
            if isinstance(value, float) and not math.isfinite(value):
                plain[name] = None
                if f"{of} {name}" not in self._reported:
                    self._reported.add(f"{of} {name}")
                    self.event("nonfinite", f"{name} of {of} is {value}, here for the first time", step)
        return plain
