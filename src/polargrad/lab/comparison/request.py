"""A comparison as it is asked for, from Python and from the command line, and its results as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.comparison.comparison import Comparison, run_comparison
from polargrad.lab.comparison.rows import row_of
from polargrad.lab.options import check_integer
from polargrad.lab.recipes import COMPARISONS, Recipe, changes_of, recipe
from polargrad.lab.run.folder import PAGE, Run
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.run.tracking import Tracking

if TYPE_CHECKING:
    from polargrad.lab.launch import Launch
    from polargrad.lab.train import Progress


Named = str | RunSpec | Recipe | type[torch.optim.Optimizer]


class Results(list[dict[str, Any]]):
    """Runs as rows, one dictionary each, which `pandas.DataFrame` takes as it is; see `row_of`.

    Args:
        runs: the runs.
        folder: the folder that holds them.

    Attributes:
        runs: the runs, with all their records.
        folder: the folder that holds them.
    """

    def __init__(self, runs: Sequence[Run], folder: Path) -> None:
        super().__init__(map(row_of, runs))
        self.runs, self.folder = tuple(runs), folder

    @property
    def report(self) -> Path:
        """The page about the runs, written now."""
        from polargrad.lab.comparison.page import Findings

        return Findings.read(self.folder).write_page(self.folder / PAGE)


def request(
    names: Sequence[Named],
    *,
    set: Sequence[str] = (),
    seeds: int = 1,
    seed: int = 42,
    steps: int | None = None,
    minutes: float | None = None,
    launch: Launch | None = None,
    **options: Any,
) -> Comparison:
    """The comparison that names and options ask for; they are those of `compare`.

    Args:
        names: recipes, optimizers and specs.
        launch: what the runs train; None: the laboratory's small run.

    Raises:
        FileNotFoundError: a file that is named is not there.
        ValueError: options that do not fit together, or a name that is not known.
    """
    check_integer("seeds", seeds)
    if minutes is not None and (steps is not None or not minutes > 0):
        raise ValueError("--minutes is a positive number that stands in place of --steps; give one of the two")
    whole = next((COMPARISONS[name] for name in names if isinstance(name, str) and name in COMPARISONS), None)
    if whole is not None:
        if len(names) > 1:
            raise ValueError(f"{names[0]} names a whole comparison; give it alone, or the recipes themselves")
        if launch is not None:
            raise ValueError(
                f"{names[0]} is a comparison of small runs; with a launch file give the recipes themselves"
            )
        if options.get("tune"):
            raise ValueError(f"{names[0]} has a grid of its own; leave --tune out, or give the recipes themselves")
        names, steps = whole.recipes, whole.steps if steps is None else steps
        options["sweep"] = options.get("sweep") or whole.sweep
    chosen = [_read(name, seed, steps, minutes) for name in names]
    among = [one for one in chosen if not isinstance(one, RunSpec)]
    if set and not among:
        raise ValueError("--set changes recipes, and there are none; edit a copy of the spec")
    if launch is not None:
        minutes = minutes if steps or minutes else launch.schedule.minutes
        launch = dataclasses.replace(launch, schedule=dataclasses.replace(launch.schedule, minutes=None))
    specs = []
    for one in chosen:
        if isinstance(one, RunSpec):
            specs.append(one)
            continue
        changes = changes_of(one, set, among)
        spec = _spec(one, launch, steps, seed, changes)
        if minutes is not None:
            from polargrad.lab.estimate import steps_within

            spec = _spec(one, launch, steps_within(spec, minutes), seed, changes)
        specs.append(spec if whole is None else whole.observed(spec))
    if "sweep" in options:
        options["sweep"] = tuple(options["sweep"])
    return Comparison(tuple(specs), tuple(range(seed, seed + seeds)), minutes, **options)


def _spec(one: Recipe, launch: Launch | None, steps: int | None, seed: int, changes: Sequence[str]) -> RunSpec:
    if launch is None:
        return one(steps=steps, seed=seed, changes=changes)
    if steps is not None:
        schedule = dataclasses.replace(launch.schedule, steps=steps, tokens=None)
        launch = dataclasses.replace(launch, schedule=schedule)
    return dataclasses.replace(launch.spec(one, changes), seed=seed)


def _read(name: Named, seed: int, steps: int | None, minutes: float | None) -> Recipe | RunSpec:
    if isinstance(name, type):
        return recipe(f"{name.__module__}:{name.__qualname__}")
    if isinstance(name, str) and not name.endswith(".json"):
        return recipe(name)
    if not isinstance(name, str | RunSpec):
        return name
    spec = name if isinstance(name, RunSpec) else RunSpec.from_json(Path(name).read_text(encoding="utf-8"))
    if (steps or spec.loop.steps) != spec.loop.steps or minutes is not None:
        shown = name if isinstance(name, str) else spec.name
        raise ValueError(f"{shown} fixes its {spec.loop.steps} steps; leave --steps and --minutes out")
    return dataclasses.replace(spec, seed=seed)


def compare(
    *names: Named,
    out: str | Path | None = None,
    jobs: int = 1,
    threads: int | None = None,
    progress: Callable[[str], Progress | None] = lambda _name: None,
    tracking: Tracking | None = None,
    **options: Any,
) -> Results:
    """Run several optimizers on the same model, data and order of batches, as `polargrad compare` does.

    Args:
        *names: recipes by name (`polargrad list` shows them), optimizer classes or where they are (FILE.py:CLASS),
            `Recipe` or `RunSpec` objects, spec.json files, or one named comparison.
        out: new folder of the runs; runs/compare-DATE-TIME by default.
        jobs: runs at a time, each in a process of its own.
        threads: threads of each run.
        progress: given a run's name, what shows its progress, such as `polargrad.lab.train.terminal_progress`.
        tracking: where the records go beside the folder (`polargrad.lab.run.tracking.Tracking`).
        **options: `set` ("NAME.OPTION=V" or "NAME.ROLE.OPTION=V"), `seeds`, `seed`, `steps` and `minutes`, as the flags
            of `polargrad compare`; and those of `ComparisonOptions`: `sweep`, `tune`, `ratio`, `limit`, `halving`.

    Returns:
        One row for each run, which `pandas.DataFrame` takes as it is; `report` writes the page.

    Raises:
        FileExistsError: the folder exists.
        FileNotFoundError: a file that is named is not there.
        ValueError: a name that is not known, options that do not fit together, or an optimizer that cannot be made,
            stepped or resumed.
        TypeError: an unknown option.
        Interrupted: on Ctrl-C, when the runs under way are saved.

    Example:
        results = polargrad.lab.compare("adamw", "mine.py:MyOptimizer", set=["mine.lr=0.003"], steps=100)
        pandas.DataFrame(results)[["run", "val_loss", "seconds"]]
    """
    asked = request(names, **options)
    folder = Path(f"runs/compare-{datetime.now():%Y%m%d-%H%M%S}") if out is None else Path(out)
    runs = run_comparison(asked, folder, jobs=jobs, threads=threads, progress=progress, tracking=tracking)
    return Results(runs, folder)
