"""The training loop: the only one, for matrix problems and language models alike."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from polargrad.lab.train.checkpoint import Checkpoint, Checkpoints
from polargrad.lab.train.clipping import clip_gradients
from polargrad.lab.train.clock import Clock
from polargrad.lab.train.interruption import StopRequest
from polargrad.lab.train.journal import Journal, Record, Summary
from polargrad.lab.train.parallel import Parallel
from polargrad.lab.train.progress import Progress
from polargrad.lab.train.rates import Rates
from polargrad.lab.train.state import Saver, restore

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
        nonfinite_limit: so many steps in a row whose loss is not finite, or of which every update was skipped, end the
            run; fewer are events. Between reads of the loss (`log_every`), skips are known of the last step alone.
            None: none do.
        spike_threshold: a loss further above the median of the last 32 than this many times their median absolute
            deviation is an event; None: none is.

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
    nonfinite_limit: int | None = 10
    spike_threshold: float | None = 8.0

    def __post_init__(self) -> None:
        least_of = {"steps": 1, "eval_every": 0, "log_every": 1, "probe_every": 0, "nonfinite_limit": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if name == "nonfinite_limit" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be positive, or None not to clip; got {self.clip_grad_norm!r}")
        if self.divergence_factor is not None and not self.divergence_factor > 1:
            raise ValueError(f"divergence_factor must be above 1, or None for no limit; got {self.divergence_factor!r}")
        if self.spike_threshold is not None and not self.spike_threshold > 0:
            raise ValueError(f"spike_threshold must be positive, or None for no events; got {self.spike_threshold!r}")


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
    checkpoints: Checkpoints | None = None,
    resume: Checkpoint | None = None,
) -> Summary:
    """Minimize an objective: `loss(k)`, its gradient, a step of the optimizer at `schedule(k)` times its base rates.

    The time on record is that of forward, backward and the optimizer (clipping included); evaluations, probes and the
    records themselves do not count. A loss far above the first one, or too many steps in a row that bring nothing, end
    the run early with status "diverged". SIGTERM and Ctrl-C end it after the step, saved, with status "interrupted"; a
    second Ctrl-C ends it at once. None of these raises.

    On one CPU process a run that was stopped and resumed takes the very steps of one that was not, to the last bit.

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
            over them. None: this one alone. Several stop at once at a signal and make no checkpoints.
        checkpoints: where and when to save; None: never. A save that fails, as on a full disk, is an event, and the
            run goes on with the checkpoints it has.
        resume: what to go on from; the objective and the optimizer are put into its state.

    Returns:
        How the run ended.

    Raises:
        ValueError: the optimizer holds parameters that are not the objective's, or the schedule is too short.
    """
    module = objective.module
    alone = parallel is None or parallel.alone
    _check_ownership(module, optimizer)
    if not alone and (checkpoints is not None or resume is not None):
        raise ValueError("checkpoints are of runs on one process; leave them out, or train without parallel")
    schedule(config.steps - 1)  # one that is too short says so now rather than at the end of a long run
    if resume is not None:
        restore(resume.state, module, optimizer, objective)
    rates = Rates(optimizer.param_groups, schedule)
    clock = Clock(next(module.parameters()).device)
    journal = Journal(
        record,
        clock,
        objective.units_per_step,
        divergence_factor=config.divergence_factor,
        nonfinite_limit=config.nonfinite_limit,
        spike_threshold=config.spike_threshold,
        skipped=lambda: int(getattr(optimizer, "skipped", 0)),
        mean=(parallel or Parallel()).mean,
        all_skipped=lambda: alone and not any(_has_finite_gradient(group) for group in optimizer.param_groups),
        progress=progress,
    )
    if resume is not None:
        journal.load_state_dict(resume.state["journal"])
        journal.event("resumed", resume.message)
    saver = Saver(checkpoints, objective, optimizer, rates.base, journal)
    status, reason = "failed", ""
    if progress is not None:
        progress.start(config.steps, objective.unit)
    try:
        with _training(module), rates.restored(), StopRequest(_say_stopping if progress else None, alone) as stop:
            try:
                if resume is None:
                    _evaluate(objective, journal)
                _steps(objective, optimizer, rates, config, clock, journal, probe, saver, stop)
            except KeyboardInterrupt:
                journal.flush()
                journal.event("interrupted", f"interrupted after {journal.steps} of {config.steps} steps")
                status = "interrupted"
            else:
                status = "diverged" if journal.diverged else "finished"
                if status == "finished" and journal.steps < config.steps:
                    status, reason = "interrupted", str(stop.name)
    finally:
        if progress is not None:
            progress.finish(status)
    return journal.summary(status, reason)


def _steps(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rates: Rates,
    config: LoopConfig,
    clock: Clock,
    journal: Journal,
    probe: Probe | None,
    saver: Saver,
    stop: StopRequest,
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(journal.steps, config.steps):
        if stop.name is not None:
            journal.flush()
            journal.event("interrupted", f"interrupted by {stop.name} after {step} of {config.steps} steps")
            saver.save()
            return
        finished = step + 1
        last = finished == config.steps
        named_rates = rates.set(step)

        start = clock.stamp()
        optimizer.zero_grad(set_to_none=True)
        loss = differentiate(objective, step)
        backward_done = clock.stamp()

        due = config.probe_every and (step == 0 or finished % config.probe_every == 0)
        look = probe if due else None
        if look is not None:
            journal.matrices(finished, look())

        optimizer_begins = clock.stamp()
        if config.clip_grad_norm is not None:
            clip_gradients(parameters, config.clip_grad_norm)
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
        if saver.due(finished, last):
            saver.save()


def differentiate(objective: Objective, step: int) -> Tensor:
    """Add the gradient of a step's loss to the parameters and return the loss."""
    parts = getattr(objective, "parts", None)
    if parts is None:
        loss = objective.loss(step)
        loss.backward()
        return loss.detach()  # what the graph still holds goes before the optimizer's step
    total: Tensor | None = None
    for part in parts(step):
        part.backward()
        total = part.detach() if total is None else total + part.detach()
    assert total is not None
    return total


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


def _has_finite_gradient(group: dict[str, Any]) -> bool:
    """Whether something of a group can have been stepped."""
    gradients = (parameter.grad for parameter in group["params"])
    return any(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def _say_stopping() -> None:
    # Past the buffered streams, which a signal handler may have interrupted.
    os.write(2, b"\nStopping after this step; once more stops at once, without saving.\n")


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
