"""A comparison: which runs it consists of, which of them are missing, and running them.

    DIR/comparison.json    its recipes, seeds and search, so that it can be resumed
    DIR/NAME/              a run folder for each run
    DIR/report.html

Runs of one seed see the same batches in the same order under every recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polargrad.lab.comparison.analysis import final_metric
from polargrad.lab.comparison.coordinate_search import CoordinateSearch
from polargrad.lab.comparison.rate_search import OF_A_SEARCH, RateSearch, SearchOptions, SearchState
from polargrad.lab.comparison.sweep import Axis, GridPoint, grid_points, parse_axis
from polargrad.lab.options import Used, check_options, option, values_of
from polargrad.lab.run import workers
from polargrad.lab.run.build import check, pinned
from polargrad.lab.run.folder import (
    COMPARISON,
    ENDED,
    Run,
    RunSettings,
    create_folder,
    find_runs,
    read_plan,
    read_run,
    read_settings,
    refuse_existing,
    status_of,
    write_json,
    write_settings,
)
from polargrad.lab.run.spec import RunSpec, from_plain, without_format
from polargrad.lab.run.tracking import Tracking
from polargrad.lab.train import CheckpointPolicy

if TYPE_CHECKING:
    from polargrad.lab.train import Progress
    from polargrad.lab.train.parallel import Parallel

FORMAT = 1
# Of one whose search moves more than rates, since it moves those of vectors too: its earlier runs are of other values.
SEARCH_FORMAT = 2

Tuner = Literal["rates", "coordinate", "optuna"]


def fixed_search(tuner: Tuner, base: RunSpec, runs: int, start: RunSpec | None = None) -> CoordinateSearch:
    """The search of a fixed number of runs."""
    if tuner == "coordinate":
        return CoordinateSearch(base, runs, start)
    from polargrad.lab.comparison.optuna_search import OptunaSearch

    return OptunaSearch(base, runs, start)


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(SearchOptions):
    """How each recipe is varied: over a grid, or to the rates that a search finds.

    Args:
        sweep: values of ROLE.OPTION, rates or warmup; may be given several times
        tune: search for the numbers of every recipe first, with a seed of its own
        tuner: rates alone by successive halving; or all numbers in --runs runs, one after the other or by Optuna
        runs: of the search of each recipe
    """

    sweep: tuple[str, ...] = option(
        (), metavar="WHAT=V,V,...", repeated=True, used=Used("tune", unless=True, why="a search makes its own grid")
    )
    tune: bool = False
    tuner: Tuner = option("rates", used=OF_A_SEARCH)
    runs: int = option(24, used=(OF_A_SEARCH, Used("tuner", ("coordinate", "optuna"))))


@dataclass(frozen=True)
class Comparison(ComparisonOptions):
    """The recipes, seeds, grid and search of a comparison; equal comparisons consist of the same runs.

    A search has the seed after the last of `seeds`: it must not choose what is favourable for the seeds that count.

    Args:
        recipes: one spec each, at full length. Their names must differ.
        seeds: every recipe runs with each of them.
        minutes: the time for which every recipe runs, so that their numbers of steps may differ; None: not by time.

    Raises:
        ValueError: nothing to compare, equal names or seeds, a ratio or limit out of range, a grid that does not fit.
    """

    recipes: tuple[RunSpec, ...]
    seeds: tuple[int, ...] = option((42,), least=0)
    minutes: float | None = None

    def __post_init__(self) -> None:
        check_options(self)
        names = [spec.name for spec in self.recipes]
        if not names:
            raise ValueError("there is nothing to compare; give at least one recipe")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))} is given twice; give each run once")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one; got {self.seeds}")
        if self.tune and self.sweep:
            raise ValueError("a search makes its own grid around the recipes' rates; give tune or sweep")
        made = [point.spec.name for point in self.points]
        if twice := {name for name in made if made.count(name) > 1}:
            raise ValueError(f"{min(twice)} would be made twice; values of a sweep must differ in six digits")

    def search(self, recipe: RunSpec) -> RateSearch | CoordinateSearch:
        """The search for a recipe's numbers."""
        base = dataclasses.replace(recipe, seed=max(self.seeds) + 1)
        if self.tuner == "rates":
            return RateSearch(base, **values_of(SearchOptions, self))
        loop = dataclasses.replace(base.loop, eval_every=0, probe_every=0)
        return fixed_search(self.tuner, dataclasses.replace(base, loop=loop, probe=()), self.runs)

    @property
    def axes(self) -> list[Axis]:
        """The axes of the grid; empty without one."""
        return [parse_axis(text) for text in self.sweep]

    @property
    def points(self) -> list[GridPoint]:
        """The points of the grid over every recipe; without a grid the recipes."""
        return grid_points(self.recipes, self.axes)

    @property
    def places(self) -> dict[str, GridPoint]:
        """The grid point of each run by its name, in the order in which they are made; runs of a search have none."""
        return {spec.name: point for point in self.points for spec in self._seeded(point.spec)}

    def pending(self, losses: Mapping[str, float | None]) -> list[RunSpec]:
        """The runs that can start now, given the final losses of those that have ended, by name.

        In the order of the recipes, so that the first of them are complete when a comparison is stopped.
        """
        waiting: list[RunSpec] = []
        for point in self.points:
            chosen = recipe = point.spec
            if self.tune:
                state = self.search(recipe).state(losses)
                if state.pending or state.best is None:
                    waiting += state.pending
                    continue
                chosen = dataclasses.replace(recipe, optimizer=state.best.optimizer, schedule=state.best.schedule)
            waiting += [spec for spec in self._seeded(chosen) if spec.name not in losses]
        return waiting

    def searches(self, losses: Mapping[str, float | None]) -> dict[str, SearchState]:
        """The state of each recipe's search; empty without one."""
        return {spec.name: self.search(spec).state(losses) for spec in self.recipes} if self.tune else {}

    def _seeded(self, spec: RunSpec) -> list[RunSpec]:
        if len(self.seeds) == 1 and not self.tune:
            return [dataclasses.replace(spec, seed=self.seeds[0])]
        return [
            dataclasses.replace(spec, name=f"{spec.name}@seed={seed}", recipe=spec.recipe, seed=seed)
            for seed in self.seeds
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "format": _format(self.tuner if self.tune else "rates"),
            **values_of(Comparison, self),
            "recipes": [spec.to_dict() for spec in self.recipes],
            "seeds": list(self.seeds),
            "sweep": list(self.sweep),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison from the output of `to_dict`.

        Raises:
            ValueError: a format of another version, or unknown keys.
        """
        plain = without_format(
            data, "the comparison", _format(data.get("tuner", "rates") if data.get("tune") else "rates")
        )
        lists = {name: tuple(plain.get(name, ())) for name in ("recipes", "seeds", "sweep")}
        lists["recipes"] = tuple(map(RunSpec.from_dict, lists["recipes"]))
        return from_plain(cls, {**plain, **lists}, "a comparison")


def _format(tuner: Any) -> int:
    return FORMAT if tuner == "rates" else SEARCH_FORMAT


def run_comparison(
    comparison: Comparison,
    path: str | Path,
    created: Callable[[Path], object] = lambda path: None,
    tracking: Tracking | None = None,
    **options: Any,
) -> list[Run]:
    """Run a comparison into a new folder. Options and errors are those of `resume_comparison`.

    Every run is checked before the first one begins. `created` is called with the folder once it is there; `tracking`
    says where the records of each run go beside its folder.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if a run does not fit its model, its data or the processes; nothing is written.
    """
    path = Path(path)
    refuse_existing(path)
    settings = RunSettings(tracking=tracking or Tracking())
    settings.tracking.check()
    comparison = dataclasses.replace(comparison, recipes=pinned(comparison.recipes))
    for spec in comparison.pending({}):
        check(spec, options.get("parallel"))
    create_folder(path)
    write_json(path / COMPARISON, comparison.to_dict())
    write_settings(path, settings)
    created(path)
    return resume_comparison(path, **options)


def resume_comparison(
    path: str | Path,
    *,
    jobs: int = 1,
    threads: int | None = None,
    progress: Callable[[str], Progress | None] = lambda _label: None,
    report: Callable[[str], None] = lambda _line: None,
    parallel: Parallel | None = None,
) -> list[Run]:
    """Make the missing runs of a comparison; one that was stopped continues from its checkpoint.

    Args:
        path: the folder of the comparison.
        jobs: how many runs at a time, each in a process of its own; 1: one after the other in this one.
        threads: of each run; None: one if there are several jobs, else as torch has it.
        progress: returns the display of a run's progress, given its name; several jobs write theirs to stderr.
        report: called with a line for each run that ends.
        parallel: the processes that each run is spread over; this is rank 0, and the others call `runner.serve`.
            None: each run has one process.

    Returns:
        Every run, in the order of the folders' names.

    Raises:
        FileNotFoundError: if the folder is not a comparison's.
        Interrupted: on Ctrl-C or SIGTERM, when the runs under way are saved.
        RuntimeError: if a job died, as by lack of memory.
    """
    path = Path(path)
    comparison = read_comparison(path)
    losses = final_losses(path)

    def ended(name: str) -> None:
        losses[name] = final_metric(read_run(path / name))
        said = "diverged" if losses[name] is None else f"{losses[name]:.4f}"
        report(f"{len(losses)} ended, {len(comparison.pending(losses))} known to come: {name} {said}")

    how: dict[str, Any] = {"jobs": jobs, "threads": threads, "progress": progress, "parallel": parallel}
    how["tracking"] = read_settings(path).tracking
    if not (comparison.tune or comparison.sweep):  # of many runs the models would fill the disk
        how["policy"] = CheckpointPolicy(keep=1)
    workers.run_all(lambda: comparison.pending(losses), ended, path, **how)
    return [read_run(folder) for folder in find_runs(path)]


def read_comparison(path: Path) -> Comparison:
    """The comparison of a folder.

    Raises:
        FileNotFoundError: if it is not the folder of a comparison.
        ValueError: if its file cannot be read.
    """
    return read_plan(path, COMPARISON, Comparison.from_dict)


def final_losses(path: Path) -> dict[str, float | None]:
    """The final metric of every run of a comparison that has ended, by name; None for one that diverged."""
    folders: Sequence[Path] = sorted(spec.parent for spec in path.glob("[!.]*/spec.json"))
    return {folder.name: final_metric(read_run(folder)) for folder in folders if status_of(folder) in ENDED}
