"""Running an experiment: every run into a folder of its own, then figures and page from the records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from polargrad.lab.matrix.experiment import Experiment
from polargrad.lab.matrix.objectives import problem_of
from polargrad.lab.matrix.page import is_matrix_run, write_page
from polargrad.lab.matrix.recipes.beyond import BEYOND
from polargrad.lab.matrix.recipes.completion import COMPLETION
from polargrad.lab.matrix.recipes.logistic import LOGISTIC
from polargrad.lab.matrix.recipes.quadratic import QUADRATIC
from polargrad.lab.report.page import PAGE
from polargrad.lab.run.folder import EXPERIMENT, Run, create_folder, read_run, refuse_existing, write_json
from polargrad.lab.run.workers import carry_out

if TYPE_CHECKING:
    from polargrad.lab.matrix.objectives import MatrixObjective
    from polargrad.lab.run.spec import RunSpec
    from polargrad.lab.train import Progress

__all__ = ["EXPERIMENTS", "Choices", "is_experiment", "report", "resume_experiment", "run_experiment"]

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {experiment.name: experiment for experiment in (QUADRATIC, LOGISTIC, COMPLETION, *BEYOND)}
)
SIZES = ("full", "small")


@dataclass(frozen=True)
class Choices:
    """What a user may ask of an experiment.

    Args:
        only: names of configurations; all if empty.
        preset: one of the experiment's; None is its first, for the paper's problems "paper" (the authors' settings)
            beside "exact" (converged polar factors, step sizes that converge).
        size: "full" (the paper's) or "small".
        settings: of the problem, by name, as text: sizes, rank, the picture's name, the path of a file of ratings.
        seed: of data, initial point and batches.
        repeat: how many seeds, from `seed` on.
        steps: of each run; the experiment's own by default.
        eval_every: steps between evaluations of the gap.
        diagnostics_every: steps between looks at singular values; 0: never; by default a hundred looks over a run.
        jobs: runs at a time, each in a process of its own.

    Raises:
        ValueError: an unknown size, or settings that the problem does not have.
    """

    only: Sequence[str] = ()
    preset: str | None = None
    size: str = "full"
    settings: Mapping[str, str] = field(default_factory=dict)
    seed: int = 42
    repeat: int = 1
    steps: int | None = None
    eval_every: int | None = None
    diagnostics_every: int | None = None
    jobs: int = 1

    def objective(self, experiment: Experiment) -> MatrixObjective:
        """What is minimized."""
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {self.size!r}")
        objective = experiment.objective if self.size == "full" else type(experiment.objective).small()
        return objective.set(self.settings)


def run_experiment(
    experiment: Experiment,
    out: str | Path,
    choices: Choices | None = None,
    *,
    progress: Callable[[str], Progress | None] = lambda _label: None,
) -> tuple[list[Run], Path]:
    """Run what was chosen of an experiment into a new folder, and write its figures and page.

    Args:
        experiment: one of `EXPERIMENTS`.
        out: the new folder; each run has a folder of its name inside.
        choices: which configurations, seeds and sizes.
        progress: makes what is told of one run's way from the run's name.

    Returns:
        The runs, and the path of the page.

    Raises:
        FileExistsError: `out` exists.
        ValueError: choices that do not fit the experiment.
        Interrupted: on Ctrl-C; the runs that had ended are whole.
    """
    choices = choices or Choices()
    if choices.jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {choices.jobs}")
    objective = choices.objective(experiment)
    refuse_existing(Path(out))
    problem_of(objective, choices.seed)  # whatever is wrong with the data is said before a folder is there
    specs = _specs(experiment, choices)
    path = Path(out)
    create_folder(path)
    write_json(path / EXPERIMENT, {"experiment": experiment.name, "choices": dataclasses.asdict(choices)})
    return _carry_out(experiment, specs, path, choices, progress)


def resume_experiment(
    path: str | Path, *, jobs: int = 1, progress: Callable[[str], Progress | None] = lambda _label: None
) -> tuple[list[Run], Path]:
    """Go on with an experiment that was stopped: runs that have ended are read, the one that was cut short goes on.

    Raises:
        FileNotFoundError: if the folder is not an experiment's.
        Interrupted: as in `run_experiment`.
    """
    path = Path(path)
    if not is_experiment(path):
        raise FileNotFoundError(f"{path} has no {EXPERIMENT}; give a folder that `polargrad run` made")
    held = json.loads((path / EXPERIMENT).read_text(encoding="utf-8"))
    experiment, choices = EXPERIMENTS[held["experiment"]], Choices(**{**held["choices"], "jobs": jobs})
    return _carry_out(experiment, _specs(experiment, choices), path, choices, progress)


def is_experiment(folder: Path) -> bool:
    """Whether a folder is one that `run_experiment` made."""
    return (folder / EXPERIMENT).is_file()


def _specs(experiment: Experiment, choices: Choices) -> list[RunSpec]:
    return experiment.specs(
        preset=choices.preset,
        only=choices.only,
        objective=choices.objective(experiment),
        seed=choices.seed,
        repeat=choices.repeat,
        steps=choices.steps,
        eval_every=choices.eval_every,
        diagnostics_every=choices.diagnostics_every,
    )


def _carry_out(
    experiment: Experiment,
    specs: Sequence[RunSpec],
    path: Path,
    choices: Choices,
    progress: Callable[[str], Progress | None],
) -> tuple[list[Run], Path]:
    """Make the runs that are still to be made, several at a time if asked, then figures and page."""
    waiting = {spec.name: spec for spec in specs}
    share = None if choices.jobs == 1 else max(1, torch.get_num_threads() // choices.jobs)
    carry_out(
        lambda: list(waiting.values()),
        waiting.__delitem__,
        path,
        jobs=choices.jobs,
        threads=share,
        progress=progress,
    )
    runs = [read_run(path / spec.name) for spec in specs]
    preset = choices.preset or experiment.default_preset
    return runs, write_page(experiment, runs, path / PAGE, preset=preset)


def report(runs: Sequence[Run], page: str | Path) -> Path:
    """The page of matrix runs that are already there.

    Raises:
        ValueError: runs of several problems, or of none here.
    """
    kinds = {run.spec.objective.kind for run in runs}
    if len(kinds) != 1 or not all(is_matrix_run(run) for run in runs):
        raise ValueError(
            f"one page is of one problem, and these runs are of {', '.join(sorted(kinds))}; report them apart"
        )
    preset = runs[0].spec.description.rpartition(" ")[2]
    return write_page(EXPERIMENTS[kinds.pop()], runs, page, preset=preset)
