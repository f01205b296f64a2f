"""Running an experiment: every run into a folder of its own, then figures and page from the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from polargrad.experiments import runner
from polargrad.experiments.matrix.experiment import Experiment
from polargrad.experiments.matrix.objectives import Completion
from polargrad.experiments.matrix.page import is_matrix_run, write_page
from polargrad.experiments.recipes.completion import COMPLETION
from polargrad.experiments.recipes.logistic import LOGISTIC
from polargrad.experiments.recipes.quadratic import QUADRATIC
from polargrad.experiments.store import Run
from polargrad.experiments.study import PAGE

if TYPE_CHECKING:
    from polargrad.experiments.matrix.objectives import MatrixObjective
    from polargrad.train import Progress

__all__ = ["EXPERIMENTS", "Choices", "report", "run_experiment"]

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType({e.name: e for e in (QUADRATIC, LOGISTIC, COMPLETION)})
SIZES = ("paper", "small")


@dataclass(frozen=True)
class Choices:
    """What a user may ask of an experiment.

    Args:
        only: names of configurations; all if empty.
        preset: "paper" (the authors' settings) or "exact" (converged polar factors, step sizes that converge).
        size: "paper" or "small".
        seed: of data, initial point and batches.
        repeat: how many seeds, from `seed` on.
        steps: of each run; the paper's own by default.
        eval_every: steps between evaluations of the gap.
        diagnostics_every: steps between looks at singular values; 0: never; by default a hundred looks over a run.
        source: of completion: a picture's name, or the path of a file of ratings.
        rank: of completion's factors.

    Raises:
        ValueError: an unknown size, or a source or rank for another problem.
    """

    only: Sequence[str] = ()
    preset: str = "paper"
    size: str = "paper"
    seed: int = 42
    repeat: int = 1
    steps: int | None = None
    eval_every: int | None = None
    diagnostics_every: int | None = None
    source: str | None = None
    rank: int | None = None

    def objective(self, experiment: Experiment) -> MatrixObjective:
        """What is minimized."""
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {self.size!r}")
        objective = experiment.objective if self.size == "paper" else type(experiment.objective).small()
        if self.source is None and self.rank is None:
            return objective
        if not isinstance(objective, Completion):
            raise ValueError(f"a source or a rank is of completion, and {experiment.name} has neither; leave it out")
        rank = self.rank or objective.rank
        if self.source is None:
            return Completion(objective.rows, objective.columns, rank, objective.observed)
        observed = 0.3 if self.source in ("china", "flower") else 0.9
        return Completion(rank=rank, observed=observed, source=self.source)


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
    specs = experiment.specs(
        preset=choices.preset,
        only=choices.only,
        objective=choices.objective(experiment),
        seed=choices.seed,
        repeat=choices.repeat,
        steps=choices.steps,
        # Real data is larger, and an evaluation costs as much as a step.
        eval_every=choices.eval_every or (None if choices.source is None else 10),
        diagnostics_every=choices.diagnostics_every,
    )
    runs = runner.compare(specs, out, progress=progress)
    return runs, write_page(experiment, runs, Path(out) / PAGE, preset=choices.preset)


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
