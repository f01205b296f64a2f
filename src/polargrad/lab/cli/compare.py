"""`polargrad compare` and `polargrad resume`: several recipes side by side, and on with what was stopped."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import option
from polargrad.lab.cli.parallel_options import ParallelOptions
from polargrad.lab.compare import comparison, spread
from polargrad.lab.compare.axes import parse_axis
from polargrad.lab.compare.comparison import COMPARISON, Comparison
from polargrad.lab.compare.sweep import points
from polargrad.lab.matrix.laboratory import is_experiment, resume_experiment
from polargrad.lab.recipes import spec_of
from polargrad.lab.recipes.comparisons import COMPARISONS
from polargrad.lab.report import comparison_page
from polargrad.lab.report.report import write_report
from polargrad.lab.report.study import PAGE, Table
from polargrad.lab.run import budget, runner
from polargrad.lab.run.folder import ENDED, Run, find_runs, read_run, status_of
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import terminal_progress

__all__ = ["Compare", "Resume", "ended_runs", "is_comparison", "report_comparison"]

Jobs = Annotated[int, option(metavar="N", help="runs at a time, each in a process of its own")]
Threads = Annotated[int | None, option(metavar="N", help="of each run; by default one if there are several jobs")]


@dataclass(frozen=True)
class Compare:
    """Run several recipes on the same model, data and order of batches, and write a report.

    Example: polargrad compare adamw muon+polargrad --steps 100

    A sweep tries every combination of the values given; it concerns the recipes that have the role. Roles joined by +
    move together. `rates` are multiples of a recipe's own learning rates, `warmup` is the schedule's, in steps.

    Example: polargrad compare muon+adamw --sweep hidden.lr=0.005,0.01 --sweep embedding+head.lr=0.01,0.03

    Example: polargrad compare adamw muon+adamw --sweep rates=0.5,1,2 --sweep warmup=0,20

    A comparison that has a name brings recipes, grid and steps; --sweep takes the place of its grid.

    Example: polargrad compare phenomena --jobs 2

    --tune searches for every recipe's rates, by successive halving and then until no neighbouring rate is better;
    then the recipes run with the seeds that count. `polargrad resume DIR` goes on with a comparison that was stopped.

    Example: polargrad compare adamw muon+adamw muon+polargrad --tune --seeds 3 --steps 200 --jobs 2
    """

    names: Positional[
        Annotated[
            tuple[str, ...],
            option(metavar="NAME ...", help="recipes, spec.json files of runs, or one named comparison"),
        ]
    ]
    sweep: Annotated[
        UseAppendAction[tuple[str, ...]],
        option(metavar="WHAT=V,V,...", help="ROLE.OPTION, rates or warmup, with values; may be given several times"),
    ] = ()
    tune: Annotated[bool, option(help="search for the learning rates of every recipe first")] = False
    ratio: Annotated[float, option(metavar="R", help="between neighbouring rates of --tune")] = 2.0
    extend: Annotated[int, option(metavar="N", help="rounds in which --tune may go beyond its first grid")] = 8
    halving: Annotated[
        bool, option(help="whether --tune begins with a grid of shortened runs, or at the recipe's own rates")
    ] = True
    seeds: Annotated[int, option(metavar="N", help="how many, from --seed on; figures show bands")] = 1
    seed: Annotated[int, option(metavar="N", help="of the initial weights and of the batches")] = 42
    steps: Annotated[int | None, option(metavar="N", help="optimizer steps; the recipe's own number by default")] = None
    minutes: Annotated[
        float | None,
        option(metavar="M", help="of forward, backward and optimizer for every recipe, in place of --steps"),
    ] = None
    jobs: Jobs = 1
    threads: Threads = None
    out: Annotated[
        Path | None,
        option(metavar="DIR", help="the new folder of the comparison; runs/compare-DATE-TIME by default"),
    ] = None
    parallel: Annotated[ParallelOptions, OmitArgPrefixes] = field(default_factory=ParallelOptions)

    def __call__(self) -> None:
        """Run everything, then print the table, warn of edges, and write the report."""
        self._check()
        with self.parallel.processes() as parallel:
            if not parallel.alone:
                self._refuse_several()
            specs, sweep = self._asked()
            made = [point.spec for point in points(specs, [parse_axis(text) for text in sweep])]
            if not parallel.chief:
                for spec in made:
                    runner.assist(spec, parallel)
                return
            out = self.out or terminal.dated("compare")
            if parallel.alone:
                seeds = tuple(range(self.seed, self.seed + self.seeds))
                asked = Comparison(tuple(specs), seeds, self.tune, self.ratio, self.extend, self.halving, sweep)
                runner.refuse_existing(out)
                terminal.say_where(out)
                comparison.begin(asked, out, **_how(self.jobs, self.threads))
            else:
                terminal.say_where(out)
                runner.compare(made, out, progress=terminal_progress, parallel=parallel)
        report_comparison(out)

    def _check(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {self.seeds}")
        if self.minutes is not None and (self.steps is not None or not self.minutes > 0):
            raise ValueError("--minutes is a positive number in place of --steps; give one of the two")
        if self.tune and self.sweep:
            raise ValueError("--tune makes its own grid around the recipes' rates; give it or --sweep")

    def _refuse_several(self) -> None:
        asked = {"--tune": self.tune, "--seeds": self.seeds > 1, "--jobs": self.jobs > 1, "--minutes": self.minutes}
        if given := [name for name, value in asked.items() if value]:
            raise ValueError(f"{', '.join(given)}: not with --parallel, where every process takes part in every run")

    def _asked(self) -> tuple[list[RunSpec], tuple[str, ...]]:
        """The recipes, and the axes of the grid over them."""
        named = [name for name in self.names if name in COMPARISONS]
        if not named:
            return [self._spec(name, self.steps) for name in self.names], tuple(self.sweep)
        if len(self.names) > 1:
            raise ValueError(f"{named[0]} names a whole comparison; give it alone, or the recipes themselves")
        if self.tune:
            raise ValueError(f"{named[0]} has a grid of its own; leave --tune out, or give the recipes themselves")
        whole = COMPARISONS[named[0]]
        specs = [
            whole.looked_at(self._spec(name, whole.steps if self.steps is None else self.steps))
            for name in whole.recipes
        ]
        return specs, tuple(self.sweep) or whole.sweep

    def _spec(self, name: str, steps: int | None) -> RunSpec:
        if name.endswith(".json"):
            spec = RunSpec.from_json(Path(name).read_text(encoding="utf-8"))
            if (steps or spec.loop.steps) != spec.loop.steps or self.minutes is not None:
                raise ValueError(f"{name} fixes its {spec.loop.steps} steps; leave --steps and --minutes out")
            return dataclasses.replace(spec, seed=self.seed)
        spec = spec_of(name, steps=steps, seed=self.seed)
        if self.minutes is None:
            return spec
        return spec_of(name, steps=budget.steps_within(spec, self.minutes), seed=self.seed)


@dataclass(frozen=True)
class Resume:
    """Go on with a run, a comparison or a matrix experiment that was stopped or killed, from the last good checkpoint.

    Runs of a comparison that have ended are not repeated.

    Example: polargrad resume runs/monday
    """

    folder: Positional[Annotated[Path, option(metavar="DIR", help="of a run, a comparison or a matrix experiment")]]
    jobs: Jobs = 1
    threads: Threads = None

    def __call__(self) -> None:
        """Go on, then say how it ended and where it is."""
        if is_comparison(self.folder):
            comparison.go_on(self.folder, **_how(self.jobs, self.threads))
            return report_comparison(self.folder)
        if is_experiment(self.folder):
            return terminal.print_experiment(
                *resume_experiment(self.folder, jobs=self.jobs, progress=terminal_progress)
            )
        terminal.print_run(runner.resume(self.folder, progress=terminal_progress(self.folder.name)))


def is_comparison(folder: Path) -> bool:
    """Whether a folder is one that `compare` made and `resume` can go on with."""
    return (folder / COMPARISON).is_file()


def ended_runs(folder: Path) -> list[Run]:
    """The runs of a comparison that have ended.

    Raises:
        FileNotFoundError: if none has.
    """
    runs = [read_run(path) for path in find_runs(folder) if status_of(path) in ENDED]
    if not runs:
        raise FileNotFoundError(f"no run in {folder} has ended yet; `polargrad resume {folder}` goes on")
    if is_comparison(folder):
        order = list(comparison.read_comparison(folder).places)
        runs.sort(key=lambda run: order.index(run.spec.name) if run.spec.name in order else len(order))
    return runs


def report_comparison(folder: Path) -> None:
    """Print the table of a comparison's runs that have ended, and write the page."""
    shown = terminal.console()
    if not _spreads(folder):
        runs = [read_run(path) for path in find_runs(folder)] if not is_comparison(folder) else ended_runs(folder)
        page = write_report(runs, folder / PAGE)
        terminal.print_outcomes(runs)
    else:
        runs = ended_runs(folder)
        page = comparison_page.write_page(runs, folder / PAGE)
        groups = comparison_page.in_order(spread.groups(runs), folder)
        grid = comparison_page.grid_of(runs, folder)
        over = [] if grid is None else grid.tables()
        for made in (comparison_page.results(groups), *comparison_page.cross_tables(groups), *over):
            _print_table(made)
        for line in (*([] if grid is None else grid.sentences()), *comparison_page.lead(groups, folder, runs)):
            shown.print(line)
    shown.print(f"Report: {page}")


def _spreads(folder: Path) -> bool:
    if not is_comparison(folder):
        return False
    asked = comparison.read_comparison(folder)
    return asked.tune or len(asked.seeds) > 1 or bool(asked.sweep)


def _print_table(made: Table) -> None:
    drawn = terminal.table(*made.columns)
    for row in made.rows:
        drawn.add_row(*terminal.texts(*row))
    terminal.console().print(drawn)
    terminal.console().print(made.note + "\n")


def _how(jobs: int, threads: int | None) -> dict[str, Any]:
    return {
        "jobs": jobs,
        "threads": threads,
        "progress": terminal_progress,
        "report": lambda line: print(line, file=sys.stderr, flush=True),
    }
