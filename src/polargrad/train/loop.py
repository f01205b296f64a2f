"""The training loop: the only one, for matrix problems and language models alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from polargrad.train.clock import Clock
from polargrad.train.journal import Journal, Record, Summary
from polargrad.train.parallel import Parallel
from polargrad.train.progress import Progress

Probe = Callable[[], Iterable[Mapping[str, Any]]]  # one that also looks after the step has a method `stepped`


class Objective(Protocol):
    """What the loop minimizes.

    An objective whose batch is differentiated in parts (gradient accumulation) also has `parts(step)`: an iterator over
    the summands of `loss(step)`, of which each is differentiated before the next one is made.
    """

    @property
    def module(self) -> torch.nn.Module:
        """Its parameters are what the optimizer holds."""
        ...

    @property
    def unit(self) -> str:
        """What a step consumes: "token", "sample" or "iteration"."""
        ...

    @property
    def units_per_step(self) -> int:
        """How many of them."""
        ...

    def loss(self, step: int) -> Tensor:
        """The differentiable loss of a step, counted from 0; its batch is a function of (seed, step) alone."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Figures of the weights as they are, the leading one first; called without gradients, in evaluation mode."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to look.

    Args:
        steps: optimizer steps.
        eval_every: steps between evaluations, besides the ones before the first and after the last step; 0: only those.
        log_every: steps between reads of the loss. Every step is recorded; a larger number lets a GPU run ahead.
        probe_every: steps between looks at the gradients, besides the first step's; 0: none at all.
        clip_grad_norm: the largest Frobenius norm of all gradients together; None: as they are.
        divergence_factor: a loss above this many times the first step's ends the run, if that one is positive; None:
            none does.
        stop_on_nonfinite: a loss that is not finite ends the run; else it is an event.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> LoopConfig(steps=100, eval_every=20).log_every
        1
    """

    steps: int
    eval_every: int = 0
    log_every: int = 1
    probe_every: int = 0
    clip_grad_norm: float | None = None
    divergence_factor: float | None = 10.0
    stop_on_nonfinite: bool = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("eval_every", 0), ("log_every", 1), ("probe_every", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be positive, or None not to clip; got {self.clip_grad_norm!r}")
        if self.divergence_factor is not None and not self.divergence_factor > 1:
            raise ValueError(f"divergence_factor must be above 1, or None for no limit; got {self.divergence_factor!r}")


def train(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    config: LoopConfig,
    *,
    record: Record,
    probe: Probe | None = None,
    progress: Progress | None = None,
    parallel: Parallel | None = None,
) -> Summary:
    """Minimize an objective: `loss(k)`, its gradient, a step of the optimizer at `schedule(k)` times its base rates.

    The time on record is that of forward, backward and the optimizer (clipping included); evaluations, probes and the
    records themselves do not count. A loss that is not finite or far above the first one ends the run early with status
    "diverged", Ctrl-C with status "interrupted"; neither raises.

    Args:
        objective: what to minimize.
        optimizer: holds the parameters of `objective.module`; each group's "role" names its learning rate in the
            records ("group0", ... where there is none). The base rates are back in place afterwards.
        schedule: step, counted from 0, to multiplier.
        config: how long to train, and how often to look.
        record: takes each record (kind "step", "eval", "matrix" or "event"), plain data that JSON can hold.
        probe: called between backward pass and optimizer every `config.probe_every` steps; gives one mapping for each
            matrix it looks at. What its `stepped()` gives after the optimizer, where it has one, is recorded too.
        progress: shows the way to a person; None: silent.
        parallel: the processes that share each step's batch, all of which call this; the losses on record are the means
            over them. None: this one alone.

    Returns:
        How the run ended.

    Raises:
        ValueError: the optimizer holds parameters that are not the objective's, or the schedule is too short.
    """
    module = objective.module
    _check_ownership(module, optimizer)
    rates = _Rates(optimizer.param_groups, schedule)
    schedule(config.steps - 1)  # one that is too short says so now rather than at the end of a long run
    clock = Clock(next(module.parameters()).device)
    journal = Journal(
        record,
        clock,
        objective.units_per_step,
        divergence_factor=config.divergence_factor,
        stop_on_nonfinite=config.stop_on_nonfinite,
        skipped=lambda: int(getattr(optimizer, "skipped", 0)),
        mean=(parallel or Parallel()).mean,
        progress=progress,
    )
    status = "failed"
    if progress is not None:
        progress.start(config.steps, objective.unit)
    try:
        with _training(module), rates.restored():
            try:
                _evaluate(objective, journal)
                _steps(objective, optimizer, rates, config, clock, journal, probe)
            except KeyboardInterrupt:
                journal.flush()
                journal.event("interrupted", f"interrupted after {journal.steps} of {config.steps} steps")
                status = "interrupted"
            else:
                status = "diverged" if journal.diverged else "finished"
    finally:
        if progress is not None:
            progress.finish(status)
    return journal.summary(status)


def _steps(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rates: _Rates,
    config: LoopConfig,
    clock: Clock,
    journal: Journal,
    probe: Probe | None,
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(config.steps):
        finished = step + 1
        last = finished == config.steps
        named_rates = rates.set(step)

        start = clock.stamp()
        optimizer.zero_grad(set_to_none=True)
        loss = _differentiate(objective, step)
        backward_done = clock.stamp()

        due = config.probe_every and (step == 0 or finished % config.probe_every == 0)
        look = probe if due else None
        if look is not None:
            journal.matrices(finished, look())

        optimizer_begins = clock.stamp()
        if config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm)
        optimizer.step()
        stamps = (start, backward_done, optimizer_begins, clock.stamp())
        if look is not None and (stepped := getattr(look, "stepped", None)) is not None:
            journal.matrices(finished, stepped())

        journal.add(finished, loss, named_rates, stamps)
        evaluation_due = last or (config.eval_every and finished % config.eval_every == 0)
        if evaluation_due or finished % config.log_every == 0:
            journal.flush()
        if evaluation_due or journal.diverged:
            _evaluate(objective, journal)
        if journal.diverged:
            return


def _differentiate(objective: Objective, step: int) -> Tensor:
    """Add the gradient of a step's loss to the parameters and return the loss."""
    parts = getattr(objective, "parts", None)
    if parts is None:
        loss = objective.loss(step)
        loss.backward()
        return loss
    total: Tensor | None = None
    for part in parts(step):
        part.backward()
        total = part.detach() if total is None else total + part.detach()
    assert total is not None
    return total


class _Rates:
    """The groups' learning rates: base rate times the schedule's multiplier."""

    def __init__(self, groups: list[dict[str, Any]], schedule: Callable[[int], float]) -> None:
        self._groups = groups
        self._schedule = schedule
        self._base = [float(group["lr"]) for group in groups]
        self._names = _group_names(groups)

    def set(self, step: int) -> dict[str, float]:
        multiplier = self._schedule(step)
        rates = [base * multiplier for base in self._base]
        for group, rate in zip(self._groups, rates, strict=True):
            _assign(group, rate)
        return dict(zip(self._names, rates, strict=True))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        try:
            yield
        finally:
            for group, rate in zip(self._groups, self._base, strict=True):
                _assign(group, rate)


def _assign(group: dict[str, Any], rate: float) -> None:
    # A rate that is a tensor keeps its identity: a compiled or captured optimizer reads it from there.
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _group_names(groups: list[dict[str, Any]]) -> list[str]:
    roles = [str(group.get("role") or f"group{index}") for index, group in enumerate(groups)]
    return [
        role if roles.count(role) == 1 else f"{role}.{roles[:index].count(role)}" for index, role in enumerate(roles)
    ]


def _evaluate(objective: Objective, journal: Journal) -> None:
    was_training = objective.module.training
    objective.module.eval()
    try:
        with torch.no_grad():
            figures = objective.evaluate()
    finally:
        objective.module.train(was_training)
    journal.evaluation(figures)


@contextlib.contextmanager
def _training(module: torch.nn.Module) -> Iterator[None]:
    was_training = module.training
    module.train()
    try:
        yield
    finally:
        module.train(was_training)


def _check_ownership(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    own = {id(parameter) for parameter in module.parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not own:
        raise ValueError("objective.module has no parameters, so there is nothing to train")
    if held - own:
        raise ValueError(
            f"the optimizer holds {len(held - own)} parameters that are not objective.module's; build it from "
            "objective.module.parameters()"
        )
