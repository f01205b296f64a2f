"""From a spec to a run folder, and on from where a run was stopped."""

from __future__ import annotations

import dataclasses
import errno
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.run.comparators import comparator, comparator_rule
from polargrad.lab.run.environment import environment
from polargrad.lab.run.folder import (
    CHECKPOINTS,
    ENDED,
    Run,
    RunFolder,
    read_environment,
    read_run,
    read_spec,
    refuse_existing,
    status_of,
)
from polargrad.lab.run.objectives import build_objective
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import (
    Checkpoint,
    CheckpointError,
    CheckpointPolicy,
    Checkpoints,
    MatrixProbe,
    train,
)
from polargrad.lab.train.checkpoint import differences
from polargrad.lab.train.parallel import Parallel
from polargrad.optim import PolarGrad, parameter_groups
from polargrad.optim.routing import roles

if TYPE_CHECKING:
    from polargrad.lab.train import Objective, Progress, Record, Summary


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop.

    Args:
        path: the folder in which everything is safe, and from which the run can go on.
        signal: the name of what asked.
    """

    def __init__(self, path: Path, signal: str = "SIGINT") -> None:
        super().__init__(
            f"interrupted; everything until then is in {path}. `polargrad resume {path}` goes on from there"
        )
        self.path, self.signal = path, signal


def run(
    spec: RunSpec,
    path: str | Path,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    parallel: Parallel | None = None,
    watch: Record | None = None,
) -> Run:
    """Run a spec into a new folder.

    Args:
        spec: what to run.
        path: the run folder; it must not exist.
        progress: is told how far the run has come.
        policy: when checkpoints are made and which stay. Several processes make none.
        parallel: the processes it runs on; this is rank 0, and the others call `assist`. None: this one alone.
        watch: is given every record besides the folder.

    Returns:
        The run as read back from its folder.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if the spec does not fit its data or its model.
        Interrupted: on Ctrl-C or SIGTERM, after checkpoint, records and summary are written.
    """
    path = Path(path)
    refuse_existing(path)
    made = _prepare(spec, parallel)
    return _execute(made, RunFolder(path, spec, made.environment), None, progress, policy, watch)


def resume(
    path: str | Path,
    spec: RunSpec | None = None,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    watch: Record | None = None,
) -> Run:
    """Go on with a run that was stopped or killed, from its last good checkpoint; from the start if it has none.

    Args:
        path: the run folder.
        spec: what it should be; None: what the folder says.
        progress: is told how far the run has come.
        policy: when checkpoints are made and which stay.
        watch: is given every record besides the folder.

    Returns:
        The run as read back from its folder.

    Raises:
        FileExistsError: if the run has come to its end, or another process is at it.
        CheckpointError: if the checkpoint is of another configuration, which the message tells, or none is whole.
        Interrupted: as in `run`.
    """
    path = Path(path)
    held = read_spec(path)
    if spec is not None and (different := differences(held.to_dict(), spec.to_dict())):
        raise CheckpointError(
            f"{path} is of another configuration: {'; '.join(different)}. Resume with the configuration it was made "
            "with, or give another --out"
        )
    if (ended := status_of(path)) in ENDED:
        raise FileExistsError(f"{path} has {ended}, so there is nothing to resume; `polargrad report {path}` reads it")
    made = _prepare(held)
    checkpoint = Checkpoints(path / CHECKPOINTS, made.configuration).newest()
    folder = RunFolder.reopen(path, 0 if checkpoint is None else int(checkpoint.caller["records"]))
    step = 0 if checkpoint is None else checkpoint.step
    if checkpoint is None:
        _event(folder, step, "resumed", "begun again: it was stopped before its first checkpoint")
    if changed := differences(_machine(read_environment(path)), _machine(made.environment)):
        _event(folder, step, "machine", f"{'; '.join(changed)}: from here on equal only to rounding")
    return _execute(made, folder, checkpoint, progress, policy, watch)


def ensure(
    spec: RunSpec,
    path: str | Path,
    *,
    progress: Progress | None = None,
    policy: CheckpointPolicy | None = None,
    parallel: Parallel | None = None,
) -> Run:
    """The run of a spec in a folder: run, resumed, or read if it has ended. Raises what these raise."""
    if not Path(path).exists():
        return run(spec, path, progress=progress, policy=policy, parallel=parallel)
    if status_of(path) in ENDED:
        return read_run(path)
    return resume(path, spec, progress=progress, policy=policy)


def train_unrecorded(spec: RunSpec) -> list[dict[str, Any]]:
    """Run a spec without a folder and return the records."""
    records: list[dict[str, Any]] = []
    _train(_prepare(spec), record=records.append)
    return records


def assist(spec: RunSpec, parallel: Parallel) -> None:
    """What every other rank does while rank 0 does `run`: the same steps, on its part of the data and of the model.

    Raises:
        ValueError: as `run` does.
    """
    made = _prepare(spec, parallel)
    _train(made, record=lambda record: None)


@dataclass(frozen=True)
class _Made:
    """A run's parts, built from its spec."""

    spec: RunSpec
    objective: Objective
    optimizer: torch.optim.Optimizer
    probe: MatrixProbe | None
    environment: Mapping[str, Any]
    parallel: Parallel | None = None

    @property
    def configuration(self) -> dict[str, Any]:
        """What a checkpoint must agree with: all that runs, and on which data."""
        content = {k: v for k, v in self.spec.to_dict().items() if k not in ("name", "recipe", "description")}
        data = {key: self.environment.get(key) for key in ("corpus_checksum", "tokenizer_checksum")}
        return {**content, **data}


def _prepare(spec: RunSpec, parallel: Parallel | None = None) -> _Made:
    objective, facts = build_objective(spec, parallel)
    optimizer = _optimizer(spec, objective, None if parallel is None else parallel.optimizer_group)
    probe = build_probe(spec, objective.module, optimizer)
    return _Made(spec, objective, optimizer, probe, {**environment(), **facts}, parallel)


def _execute(
    made: _Made,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    policy: CheckpointPolicy | None,
    watch: Record | None,
) -> Run:
    path = folder.path

    def record(entry: dict[str, Any]) -> None:
        folder.record(entry)
        if watch is not None:
            watch(entry)

    checkpoints = None
    # Shampoo keeps objects in its state, which a checkpoint that runs no code cannot hold.
    saved = comparator_rule(made.spec.optimizer) != "shampoo"
    if saved and (made.parallel is None or made.parallel.is_single):
        position = lambda: {"records": folder.position()}  # noqa: E731
        checkpoints = Checkpoints(path / CHECKPOINTS, made.configuration, policy, caller=position)
    with folder:
        try:
            summary = _train(made, record=record, progress=progress, checkpoints=checkpoints, resume=checkpoint)
        except KeyboardInterrupt:
            raise Interrupted(path) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            remedy = f"free some space, then `polargrad resume {path}` goes on from the last checkpoint"
            raise OSError(error.errno, f"the records cannot be written, since the disk is full; {remedy}") from error
        folder.finish(dataclasses.asdict(summary))
    if summary.status == "interrupted":
        raise Interrupted(path, summary.reason or "SIGINT")
    if checkpoints is not None:
        checkpoints.finish()
    return read_run(path)


def _train(made: _Made, **options: Any) -> Summary:
    """The training loop, its draws (such as dropout) from the spec's seed; the caller's generators are left alone.

    The optimizer does not warn of updates it skipped: they are events of the record, which the pages tell of.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="skipped updates")
        torch.manual_seed(made.spec.seed)
        return train(
            made.objective,
            made.optimizer,
            made.spec.schedule,
            made.spec.loop,
            probe=made.probe,
            parallel=made.parallel,
            **options,
        )


def _event(folder: RunFolder, step: int, name: str, message: str) -> None:
    folder.record({"kind": "event", "step": step, "event": name, "message": message})


def _machine(where: Mapping[str, Any]) -> dict[str, Any]:
    """What the last bits of a result depend on."""
    return {key: where.get(key) for key in ("torch", "platform", "cpu", "device", "threads", "parallel", "mesh")}


def build_optimizer(spec: RunSpec, module: torch.nn.Module, process_group: Any = None) -> torch.optim.Optimizer:
    """The optimizer of a spec over a model's parameters, one group for each role: PolarGrad, or another library's.

    A group has the spec's options and, for the rest, the optimizer's own defaults; the defaults that `parameter_groups`
    keeps for each role stay out, so that a spec does not change its meaning when those do.

    Args:
        spec: its optimizer is built.
        module: whose parameters it steps.
        process_group: ranks that share the work of a step, see `PolarGrad`.

    Raises:
        ValueError: if a role of the model has no options in the spec, or the other way round.
    """
    groups = parameter_groups(module)
    present = {group["role"] for group in groups}
    if present != set(spec.optimizer):
        raise ValueError(
            f"the model has the roles {', '.join(sorted(present))}, and {spec.name} has options for "
            f"{', '.join(sorted(spec.optimizer))}; give options for just the roles of the model"
        )
    # How the weights are stored is a fact of the model and no default.
    facts = [{key: g[key] for key in ("params", "role", "layout") if key in g} for g in groups]
    made = [{**fact, **spec.optimizer[fact["role"]]} for fact in facts]
    rule = comparator_rule(spec.optimizer)
    if rule is None:
        return PolarGrad(made, process_group=process_group)
    if process_group is not None:
        raise ValueError(f"{rule} is another library's optimizer, which knows of one process; leave --parallel out")
    return comparator(rule, made)


def _optimizer(spec: RunSpec, objective: Objective, process_group: Any = None) -> torch.optim.Optimizer:
    """The optimizer of a spec: for a model by roles, for a matrix problem on its matrices."""
    if isinstance(spec.objective, LanguageModel):
        return build_optimizer(spec, objective.module, process_group)
    from polargrad.lab.matrix.objective import ProblemObjective
    from polargrad.lab.matrix.optimizers import build_optimizer as build_for_matrices

    assert isinstance(objective, ProblemObjective)
    return build_for_matrices(spec.optimizer, objective)


def build_probe(spec: RunSpec, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> MatrixProbe | None:
    """What measures the spec's probed matrices: gradients, of a model momenta and steps too; None if there are none.

    Raises:
        ValueError: if the model has no parameter of that name.
    """
    if not spec.probe:
        return None
    named = dict(module.named_parameters())
    if unknown := [name for name in spec.probe if name not in named]:
        matrices = ", ".join(name for name, parameter in named.items() if parameter.ndim == 2)
        raise ValueError(f"cannot probe {unknown[0]!r}, which the model does not have; its matrices are {matrices}")
    chosen = {name: named[name] for name in spec.probe}
    return MatrixProbe(
        chosen, roles(module), optimizer=optimizer if isinstance(spec.objective, LanguageModel) else None
    )
