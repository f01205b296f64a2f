"""From a spec to a run folder: objective, optimizer, schedule, the training loop, records, summary, figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrad.experiments.environment import environment
from polargrad.experiments.objectives import build_objective
from polargrad.experiments.spec import LanguageModel, RunSpec
from polargrad.experiments.store import FIGURES, Run, RunFolder, create_folder, read_run
from polargrad.optim import PolarGrad, parameter_groups
from polargrad.optim.routing import roles
from polargrad.train import GradientProbe, train
from polargrad.train.parallel import Parallel

if TYPE_CHECKING:
    import torch

    from polargrad.train import Objective, Progress


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run.

    Args:
        path: the folder in which everything recorded until then is safe.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"interrupted; what was recorded until then is in {path}, and `polargrad report` reads it")
        self.path = path


def run(spec: RunSpec, path: str | Path, *, progress: Progress | None = None, parallel: Parallel | None = None) -> Run:
    """Run a spec into a new folder.

    Args:
        spec: what to run.
        path: the run folder; it must not exist.
        progress: is told how far the run has come.
        parallel: the processes it runs on; this is rank 0, and the others call `assist`. None: this one alone.

    Returns:
        The run as read back from its folder, figures drawn.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if the spec does not fit its data or its model.
        Interrupted: on Ctrl-C, after records and summary are written.
    """
    path = Path(path)
    refuse_existing(path)
    objective, optimizer, probe, facts = _build(spec, parallel)
    with RunFolder(path, spec, {**environment(), **facts}) as folder:
        try:
            summary = train(
                objective,
                optimizer,
                spec.schedule,
                spec.loop,
                record=folder.record,
                probe=probe,
                progress=progress,
                parallel=parallel,
            )
        except KeyboardInterrupt:
            raise Interrupted(path) from None
        folder.finish(dataclasses.asdict(summary))
    if summary.status == "interrupted":
        raise Interrupted(path)
    finished = read_run(path)
    draw(finished)
    return finished


def assist(spec: RunSpec, parallel: Parallel) -> None:
    """What every other rank does while rank 0 does `run`: the same steps, on its part of the data and of the model.

    Raises:
        ValueError: as `run` does.
    """
    objective, optimizer, probe, _ = _build(spec, parallel)
    train(
        objective,
        optimizer,
        spec.schedule,
        spec.loop,
        record=lambda record: None,
        probe=probe,
        parallel=parallel,
    )


def _build(
    spec: RunSpec, parallel: Parallel | None
) -> tuple[Objective, torch.optim.Optimizer, GradientProbe | None, Mapping[str, Any]]:
    objective, facts = build_objective(spec, parallel)
    return objective, _optimizer(spec, objective), build_probe(spec, objective.module), facts


def compare(
    specs: Sequence[RunSpec],
    path: str | Path,
    *,
    progress: Callable[[str], Progress | None] = lambda _label: None,
    parallel: Parallel | None = None,
) -> list[Run]:
    """Run several specs, one after another, each into a folder of its name inside a new one.

    Args:
        specs: what to run; their names must differ.
        path: the folder of the comparison; it must not exist.
        progress: makes what is told of one run's way from the run's label.
        parallel: the processes they run on; this is rank 0, and the others `assist` with each spec in order.

    Returns:
        The runs in the order given.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if there are no specs, or two of one name.
        Interrupted: on Ctrl-C; the runs that had ended are whole.
    """
    names = [spec.name for spec in specs]
    if not specs:
        raise ValueError("there is nothing to compare; give at least one recipe")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is there twice; give each run once")
    path = Path(path)
    create_folder(path)
    return [run(spec, path / spec.name, progress=progress(spec.name), parallel=parallel) for spec in specs]


def build_optimizer(spec: RunSpec, module: torch.nn.Module) -> PolarGrad:
    """The optimizer of a spec over a model's parameters, one group for each role.

    A group has the spec's options and, for the rest, the optimizer's own defaults; the defaults that `parameter_groups`
    keeps for each role stay out, so that a spec does not change its meaning when those do.

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
    return PolarGrad([{**fact, **spec.optimizer[fact["role"]]} for fact in facts])


def _optimizer(spec: RunSpec, objective: Objective) -> torch.optim.Optimizer:
    """The optimizer of a spec: for a model by roles, for a matrix problem on its matrices."""
    if isinstance(spec.objective, LanguageModel):
        return build_optimizer(spec, objective.module)
    from polargrad.experiments.matrix.optimizers import build_optimizer as build_for_matrices
    from polargrad.problems import ProblemObjective

    assert isinstance(objective, ProblemObjective)
    return build_for_matrices(spec.optimizer, objective)


def build_probe(spec: RunSpec, module: torch.nn.Module) -> GradientProbe | None:
    """What measures the gradients of the spec's probed matrices; None if there are none.

    Raises:
        ValueError: if the model has no parameter of that name.
    """
    if not spec.probe:
        return None
    named = dict(module.named_parameters())
    if unknown := [name for name in spec.probe if name not in named]:
        matrices = ", ".join(name for name, parameter in named.items() if parameter.ndim == 2)
        raise ValueError(f"cannot probe {unknown[0]!r}, which the model does not have; its matrices are {matrices}")
    return GradientProbe({name: named[name] for name in spec.probe}, roles(module))


def draw(finished: Run) -> list[Path]:
    """Draw a run's figures into its folder and return their paths."""
    from polargrad.experiments import plots

    if isinstance(finished.spec.objective, LanguageModel):
        return plots.save(plots.figures([finished]), finished.path / FIGURES)
    return []  # a matrix experiment draws its runs together


def refuse_existing(path: Path) -> None:
    """Say early, before any work, that a folder exists."""
    if path.exists():
        raise FileExistsError(
            f"{path} exists and is left as it is; give another --out, or delete it if it is not wanted"
        )
