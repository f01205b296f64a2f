"""The training loop: the only one, for matrix problems and language models alike."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from polargrad.lab.train.checkpoint import Checkpoint, Checkpoints, capture
from polargrad.lab.train.config import LoopConfig
from polargrad.lab.train.optimizers import evaluation_weights, needs_loss, switching_parts
from polargrad.lab.train.parallel import Parallel
from polargrad.lab.train.progress import Progress
from polargrad.lab.train.run_log import DeviceTimer, Record, RunLog, Summary
from polargrad.lab.train.schedules import LearningRates
from polargrad.optim import clip_gradients

Probe = Callable[[], Iterable[Mapping[str, Any]]]  # one that also looks after the step has a method `stepped`


class Objective(Protocol):
    """What the loop minimizes.

    An objective whose batch is differentiated in parts (gradient accumulation) also has `parts(step)`: an iterator over
    the summands of `loss(step)`, each of which is differentiated before the next one is computed.
    """

    @property
    def module(self) -> torch.nn.Module:
        """The module whose parameters the optimizer holds."""
        ...

    @property
    def unit(self) -> str:
        """The unit of what a step consumes: "token", "sample" or "iteration"."""
        ...

    @property
    def units_per_step(self) -> int:
        """How many of them a step consumes."""
        ...

    def loss(self, step: int) -> Tensor:
        """The differentiable loss of a step, counted from 0; its batch is a function of (seed, step) alone."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Metrics of the weights as they are, the leading one first; called without gradients, in evaluation mode."""
        ...


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
    records themselves do not count. A loss far above the first one, or too many steps in a row without effect, end the
    run early with status "diverged". SIGTERM, SIGHUP and Ctrl-C end it after the current step, saved, with status
    "interrupted"; on one process a second one ends it at once. None of these raises.

    An optimizer with methods `eval` and `train` is evaluated with the weights that its `eval` puts into the parameters.

    On one CPU process a run that was stopped and resumed takes the very steps of one that was not, to the last bit.

    Args:
        objective: the objective to minimize.
        optimizer: holds the parameters of `objective.module`; each group's "role" names its learning rate in the
            records ("group0", ... where there is none). The base rates are restored at the end.
        schedule: step, counted from 0, to multiplier.
        config: length of the run, and intervals of what is recorded.
        record: takes each record (kind "step", "eval", "matrix" or "event"), plain data that JSON can hold.
        probe: called between backward pass and optimizer every `config.probe_every` steps; gives one mapping for each
            matrix it measures. What its method `stepped`, where it has one, gives after the optimizer's step is
            recorded too.
        progress: progress display; None: silent.
        parallel: the processes that share each step's batch, all of which call this; the losses on record are the means
            over them. None: this one alone. Several stop after the same step when one of them is asked to, save
            together, and compare their copies of the weights at every evaluation and before every save.
        checkpoints: where and when to save; None: never. A save that fails, as on a full disk, is an event, and the
            run continues with the checkpoints it has.
        resume: checkpoint to continue from; the objective and the optimizer are put into its state.

    Returns:
        How the run ended.

    Raises:
        ValueError: the optimizer holds parameters that are not the objective's, or the schedule is too short.
        OSError: the checkpoint after the last step cannot be written; the run is not finished without it.
        RuntimeError: the processes' copies of a weight differ.
    """
    module = objective.module
    parallel = parallel or Parallel()
    single = parallel.is_single
    _check_ownership(module, optimizer)
    schedule(config.steps - 1)  # a schedule that is too short says so now rather than at the end of a long run
    if resume is not None:
        resume.restore(module, optimizer, objective, parallel)
    for part in switching_parts(optimizer):
        part.train()
    rates = LearningRates(optimizer.param_groups, schedule)
    timer = DeviceTimer(next(module.parameters()).device)
    log = RunLog(
        record,
        timer,
        objective.units_per_step,
        config,
        skipped=lambda: int(getattr(optimizer, "skipped", 0)),
        all_skipped=lambda: single and not any(_has_finite_gradient(group) for group in optimizer.param_groups),
        mean=parallel.mean,
        progress=progress,
    )
    if resume is not None:
        log.load_state_dict(resume.state["journal"])
        log.event("resumed", resume.message)
    saved = log.steps

    def save(needed: bool = False) -> None:
        """Save the run after the finished steps, unless it was; a failure is an event, where it is needed an error."""
        nonlocal saved
        log.flush()
        if checkpoints is None or log.steps == saved:
            return
        parallel.check_copies(module)
        state = {**capture(objective), "journal": log.state_dict()}
        try:
            with rates.at_base():
                checkpoints.save(log.steps, module, optimizer, state)
        except OSError as error:
            log.event("not-saved", f"{error}; the newest of the earlier checkpoints is as it was")
            if needed:
                raise
        else:
            saved = log.steps

    takes_loss = needs_loss(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    status, reason = "failed", ""
    if progress is not None:
        progress.start(config.steps, objective.unit)
    notify = (lambda: _announce_stop(single)) if progress is not None else None
    with _mode(module, training=True), rates.restored(), StopRequest(notify, again=single) as stop:
        try:
            if resume is None:
                _evaluate(objective, optimizer, log, parallel)
            for step in range(log.steps, config.steps):
                # Rank 0 goes by its clock, and any rank may get a signal; all act after the same step.
                is_due = checkpoints is not None and parallel.is_main_process and step > 0 and checkpoints.due(step)
                number, due_to_save = parallel.maxima(stop.number, int(is_due))
                if number:
                    status, reason = "interrupted", signal.Signals(number).name
                    log.flush()
                    log.event("interrupted", f"interrupted by {reason} after {step} of {config.steps} steps")
                    save()
                    break
                if due_to_save:
                    save()
                finished = step + 1
                last = finished == config.steps
                named_rates = rates.set(step)

                start = timer.stamp()
                optimizer.zero_grad(set_to_none=True)
                loss = differentiate(objective, step)
                backward_done = timer.stamp()

                due = config.probe_every and (step == 0 or finished % config.probe_every == 0)
                look = probe if due else None
                if look is not None:
                    log.matrices(finished, look())

                optimizer_begins = timer.stamp()
                if config.clip_grad_norm is not None:
                    clip_gradients(parameters, config.clip_grad_norm)
                if takes_loss:
                    known: Any = partial(parallel.mean, loss.clone())
                    optimizer.step(known)
                else:
                    optimizer.step()
                stamps = (start, backward_done, optimizer_begins, timer.stamp())
                if look is not None and (stepped := getattr(look, "stepped", None)) is not None:
                    log.matrices(finished, stepped())

                log.add(finished, loss, named_rates, stamps)
                evaluation_due = last or (config.eval_every and finished % config.eval_every == 0)
                if evaluation_due or finished % config.log_every == 0:
                    log.flush()
                if evaluation_due or log.diverged:
                    _evaluate(objective, optimizer, log, parallel)
                if log.diverged:
                    status = "diverged"
                    break
            else:
                if checkpoints is not None and checkpoints.policy.keep_finished:
                    save(needed=True)
                status = "finished"
        except KeyboardInterrupt:
            status, reason = "interrupted", "" if not stop.number else signal.Signals(stop.number).name
            log.flush()
            log.event("interrupted", f"interrupted after {log.steps} of {config.steps} steps")
        finally:
            if progress is not None:
                progress.finish(status)
    return log.summary(status, reason)


def differentiate(objective: Objective, step: int) -> Tensor:
    """Add the gradient of a step's loss to the parameters and return the loss."""
    parts = getattr(objective, "parts", None)
    if parts is None:
        loss = objective.loss(step)
        loss.backward()
        return loss.detach()  # what the graph still holds is freed before the optimizer's step
    total: Tensor | None = None
    for part in parts(step):
        part.backward()
        total = part.detach() if total is None else total + part.detach()
    assert total is not None
    return total


class StopRequest:
    """While open, SIGTERM, SIGHUP and Ctrl-C only request a stop, after the current step; a second one interrupts.

    Outside of the main thread, where Python delivers no signals, and for signals that the process ignores, nothing
    changes.

    Args:
        notify: called from the signal handler at the first request; it must not print through buffered streams.
        again: whether a second one interrupts. What starts several processes passes on the signals that these got
            already, and kills them when they take too long.
    """

    def __init__(self, notify: Callable[[], None] | None = None, again: bool = True) -> None:
        self.number = 0  # of the last signal, once there was one
        self._notify, self._again = notify, again
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str | None:
        """Name of the signal; None if there was none."""
        return signal.Signals(self.number).name if self.number else None

    def _request(self, number: int, frame: FrameType | None) -> None:
        first, self.number = not self.number, number
        if first and self._notify is not None:
            self._notify()
        elif not first and self._again:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
            for number in (signal.SIGINT, signal.SIGTERM, *hangup):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)


def _announce_stop(single: bool) -> None:
    said = "once more stops at once, without saving." if single else "all processes save."
    # Past the buffered streams, which a signal handler may have interrupted; after a hang-up there is none.
    with contextlib.suppress(OSError):
        os.write(2, f"\nStopping after this step; {said}\n".encode())


def _evaluate(objective: Objective, optimizer: torch.optim.Optimizer, log: RunLog, parallel: Parallel) -> None:
    parallel.check_copies(objective.module)
    with _mode(objective.module, training=False), evaluation_weights(optimizer), torch.no_grad():
        metrics = objective.evaluate()
    log.evaluation(metrics)


@contextlib.contextmanager
def _mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Have a module train or evaluate, and afterwards what it did before."""
    was_training = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(was_training)


def _has_finite_gradient(group: dict[str, Any]) -> bool:
    """Whether something of a group can have been stepped."""
    gradients = (parameter.grad for parameter in group["params"])
    return any(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


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
