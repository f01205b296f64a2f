"""The matrix experiments: every run of a problem into a folder of its own, then figures and page from the records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.matrix import PROBLEMS, Problem, ProblemSpec
from polargrad.lab.matrix.configurations import DECAY_EVERY, Experiment
from polargrad.lab.matrix.problem import check_problem
from polargrad.lab.matrix.training import ROLE
from polargrad.lab.options import check_options, option
from polargrad.lab.run.folder import (
    EXPERIMENT,
    PAGE,
    Run,
    RunSettings,
    create_folder,
    read_plan,
    read_run,
    read_settings,
    refuse_existing,
    write_json,
    write_settings,
)
from polargrad.lab.run.spec import MatrixOptions, RunSpec, from_plain
from polargrad.lab.run.tracking import Tracking
from polargrad.lab.run.workers import run_all
from polargrad.lab.studies.matrix.page import write_page
from polargrad.lab.train import Constant, LoopConfig, StepDecay

if TYPE_CHECKING:
    from polargrad.lab.train import Progress


@dataclass(frozen=True)
class ExperimentOptions(MatrixOptions):
    """The options of an experiment: which configurations, on which sizes and seeds, for how long.

    Args:
        settings: of the problem, by name, as text: sizes, rank, the picture's name, the path of a file of ratings.
        seed: of data, initial point and batches.
        steps: of each run; the experiment's own by default.

    Raises:
        ValueError: an unknown size, or a number below its least.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    seed: int = option(42, least=0)
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", tuple(self.only))
        check_options(self)

    def problem_spec(self, problem: type[Problem]) -> ProblemSpec:
        """The problem that is minimized.

        Raises:
            ValueError: settings that the problem does not have.
        """
        return problem.spec(**problem.small if self.size == "small" else {}).with_texts(self.settings)

    def specs(self, problem: type[Problem]) -> list[RunSpec]:
        """The runs: each configuration on each of the seeds; all configurations of a seed together.

        Raises:
            ValueError: an unknown preset or configuration, or settings that the problem does not have.
        """
        experiment, objective = experiment_of(problem), self.problem_spec(problem)
        preset, eval_every = self.preset or experiment.default_preset, self.eval_every or experiment.eval_every
        scale, rank = _step_scales(experiment, problem.spec(), objective)
        runs = []
        for seed in range(self.seed, self.seed + self.repeat):
            for c in experiment.chosen(preset, self.only):
                options = dict(c.options)
                if c.scaled:
                    options["lr"] = (options["lr"] * rank if c.by_smoothness_alone else options["lr"]) * scale
                steps = self.steps or c.steps or experiment.steps
                probe_every = max(1, steps // 100) if self.diagnostics_every is None else self.diagnostics_every
                loop = LoopConfig(
                    steps=steps,
                    eval_every=eval_every,
                    log_every=min(eval_every, 10),
                    probe_every=probe_every,
                    nonfinite_limit=1,  # the same gradient comes again
                    spike_threshold=None,  # losses fall by orders of magnitude
                )
                run = RunSpec(
                    name=f"{c.name}@seed={seed}" if self.repeat > 1 else c.name,
                    recipe=c.name,
                    description=f"{c.label}, {problem.kind}, preset {preset}",
                    objective=objective,
                    optimizer={ROLE: options},
                    schedule=Constant() if c.decay is None else StepDecay(DECAY_EVERY, c.decay),
                    loop=loop,
                    seed=seed,
                    probe=problem.matrices if probe_every else (),
                )
                runs.append(run)
        return runs


def experiment_of(problem: type[Problem]) -> Experiment:
    """The experiment of a problem.

    Raises:
        ValueError: it has none.
    """
    if problem.experiment is None:
        raise ValueError(f"{problem.kind} has no experiment to run; give its class an `experiment`")
    return problem.experiment


def _step_scales(experiment: Experiment, full: ProblemSpec, objective: ProblemSpec) -> tuple[float, float]:
    """The factor 1/(L r) on step sizes that follow the smoothness, and r, which gradient descent's have besides."""
    L, r = objective.expected_curvature or (0.0, 1)
    scale = 1.0 / (L * r) if L else 1.0
    if experiment.per_smoothness:
        return scale, r
    L_full, r_full = full.expected_curvature or (1.0, 1)
    return scale / (1.0 / (L_full * r_full)), r / r_full


def run_experiment(
    problem: type[Problem],
    out: str | Path,
    options: ExperimentOptions | None = None,
    *,
    progress: Callable[[str], Progress | None] = lambda _label: None,
    created: Callable[[Path], object] = lambda path: None,
    tracking: Tracking | None = None,
) -> tuple[list[Run], Path]:
    """Run a problem's experiment into a new folder, and write its figures and page.

    Args:
        problem: one of `polargrad.lab.matrix.PROBLEMS`, or a class of your own that is registered or loaded.
        out: the new folder; each run has a folder of its name inside.
        options: which configurations, seeds and sizes; None: all of the first preset, at the full size.
        progress: makes the progress display of one run from the run's name.
        created: called with the folder once it is there.
        tracking: where the records of each run go beside its folder.

    Returns:
        The runs, and the path of the page.

    Raises:
        FileExistsError: `out` exists.
        ValueError: options that do not fit the experiment.
        Interrupted: on Ctrl-C; the runs that had ended are complete.
    """
    options, path = options or ExperimentOptions(), Path(out)
    objective = options.problem_spec(problem)
    refuse_existing(path)
    settings = RunSettings(tracking=tracking or Tracking())
    settings.tracking.check()
    check_problem(objective.build(options.seed))  # whatever is wrong with it is said before there is a folder
    specs = options.specs(problem)
    create_folder(path)
    created(path)
    write_json(path / EXPERIMENT, {"experiment": objective.kind, "choices": dataclasses.asdict(options)})
    write_settings(path, settings)
    return _carry_out(specs, path, options, progress)


def resume_experiment(
    path: str | Path, *, jobs: int = 1, progress: Callable[[str], Progress | None] = lambda _label: None
) -> tuple[list[Run], Path]:
    """Continue an experiment that was stopped: runs that have ended are read, the interrupted one continues.

    Raises:
        FileNotFoundError: the folder is not an experiment's.
        ValueError: its file cannot be read, or the experiment's problem is not registered here.
        Interrupted: as in `run_experiment`.
    """
    path = Path(path)

    def plan(record: Mapping[str, Any]) -> tuple[list[RunSpec], ExperimentOptions]:
        options = from_plain(ExperimentOptions, {**record["choices"], "jobs": jobs}, "an experiment")
        return options.specs(ProblemSpec(record["experiment"]).problem), options

    specs, options = read_plan(path, EXPERIMENT, plan)
    return _carry_out(specs, path, options, progress)


def _carry_out(
    specs: Sequence[RunSpec], path: Path, options: ExperimentOptions, progress: Callable[[str], Progress | None]
) -> tuple[list[Run], Path]:
    """Make the runs that do not exist yet, `jobs` at a time, then figures and page."""
    waiting = {spec.name: spec for spec in specs}
    run_all(
        lambda: list(waiting.values()),
        waiting.__delitem__,
        path,
        jobs=options.jobs,
        threads=None if options.jobs == 1 else max(1, torch.get_num_threads() // options.jobs),
        progress=progress,
        tracking=read_settings(path).tracking,
    )
    runs = [read_run(path / spec.name) for spec in specs]
    return runs, report(runs, path / PAGE)


def report(runs: Sequence[Run], page: str | Path) -> Path:
    """Write the page of matrix runs that exist, and return its path.

    Raises:
        ValueError: runs of several problems or sizes, or of none here.
    """
    kinds = {run.spec.objective.kind for run in runs}
    if len(kinds) != 1 or not kinds <= set(PROBLEMS):
        raise ValueError(f"a page shows one matrix problem, got {', '.join(sorted(kinds))}; report them separately")
    if odd := next((run for run in runs if run.spec.objective != runs[0].spec.objective), None):
        raise ValueError(
            f"{odd.path} and {runs[0].path} have other sizes or data of {odd.spec.objective.kind}, so that their gaps "
            "are not comparable; report them separately"
        )
    return write_page(experiment_of(PROBLEMS[kinds.pop()]), runs, page)
