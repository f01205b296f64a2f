"""What each command of `polargrad` does. Imported only when one runs, since it needs the extra `lab`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, UseAppendAction

from polargrad.bench_command import Bench
from polargrad.experiments import analysis, runner
from polargrad.experiments.environment import LAB_PACKAGES, environment, version
from polargrad.experiments.matrix.laboratory import EXPERIMENTS, run_experiment
from polargrad.experiments.matrix.page import results
from polargrad.experiments.recipes import RECIPES, spec_of
from polargrad.experiments.recipes.studies import STUDIES
from polargrad.experiments.report import write_report
from polargrad.experiments.spec import RunSpec
from polargrad.experiments.store import FIGURES, Run, find_runs, read_run
from polargrad.experiments.sweep import Axis, edge_notes, expand, parse_axis
from polargrad.matrix_options import MatrixOptions
from polargrad.parallel_options import ParallelOptions
from polargrad.train import StageLines, terminal_progress

REPORT = "report.html"

Steps = Annotated[int | None, tyro.conf.arg(metavar="N", help="optimizer steps; the recipe's own number by default")]
Seed = Annotated[int, tyro.conf.arg(metavar="N", help="of the initial weights and of the batches")]


@dataclass(frozen=True)
class ListRecipes:
    """List the recipes.

    Example: polargrad list
    """

    def __call__(self) -> None:
        """Print each recipe with its learning rates."""
        table = _table("recipe", "what it is", "learning rates", "steps")
        for name in RECIPES:
            spec = spec_of(name)
            table.add_row(*_texts(name, spec.description, _rates(spec), spec.loop.steps))
        for name, experiment in EXPERIMENTS.items():
            about = f"{experiment.title}, {len(experiment.chosen())} configurations."
            table.add_row(*_texts(name, about, "", experiment.steps))
        for name, study in STUDIES.items():
            table.add_row(*_texts(name, study.description, "", ""))
        _console().print(table)


@dataclass(frozen=True)
class RunOne:
    """Run one recipe into a new run folder: spec, environment, records, summary, figures.

    Example: polargrad run muon+polargrad --steps 50 --out runs/first

    A matrix problem runs under every configuration of the paper, each into a folder of its own, with a page.

    Example: polargrad run quadratic --only polargrad muon-ns adam
    """

    name: Positional[
        Annotated[
            str, tyro.conf.arg(metavar="NAME", help="a recipe, a matrix problem, a study, or the spec.json of a run")
        ]
    ]
    steps: Steps = None
    seed: Seed = 42
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help="the new run folder; runs/NAME-DATE-TIME by default")
    ] = None

    matrix: Annotated[MatrixOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=MatrixOptions)
    parallel: Annotated[ParallelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ParallelOptions)

    def __call__(self) -> None:
        """Run, then say how it ended and where it is."""
        if self.name in EXPERIMENTS:
            self.parallel.refuse(self.name)
            return self._experiment()
        self.matrix.refuse(self.name)
        if self.name in STUDIES:
            self.parallel.refuse(self.name)
            return self._study()
        spec = self._spec()
        with self.parallel.processes() as parallel:
            if not parallel.chief:
                return runner.assist(spec, parallel)
            out = self.out or _dated(spec.name)
            runner.refuse_existing(out)
            _say_where(out)
            finished = runner.run(spec, out, progress=terminal_progress(spec.name), parallel=parallel)
        _print_run(finished)

    def _experiment(self) -> None:
        """Every configuration of a matrix problem, then a table and the page."""
        out = self.out or _dated(self.name)
        choices = self.matrix.choices(steps=self.steps, seed=self.seed)
        runner.refuse_existing(out)
        _say_where(out)
        runs, page = run_experiment(EXPERIMENTS[self.name], out, choices, progress=terminal_progress)
        console, shown = _console(), results(runs)
        table = _table(*shown.columns)
        for row in shown.rows:
            table.add_row(*_texts(*row))
        console.print(table)
        console.print(f"Report: {page}")

    def _study(self) -> None:
        """A study says what it found; claims that failed end it with exit code 1."""
        if self.steps is not None:
            raise ValueError(f"{self.name} is a study and has no optimizer steps; leave --steps out")
        out = self.out or _dated(self.name)
        runner.refuse_existing(out)
        _say_where(out)
        outcome = STUDIES[self.name].run(out, seed=self.seed, progress=StageLines())
        console = _console()
        for line in outcome.lead:
            console.print(line)
        console.print(f"Report: {outcome.page}")
        if not outcome.ok:
            raise SystemExit(1)

    def _spec(self) -> RunSpec:
        if not self.name.endswith(".json"):
            if self.name not in RECIPES and (
                close := difflib.get_close_matches(self.name, [*STUDIES, *EXPERIMENTS], n=1)
            ):
                raise ValueError(f"there is no recipe {self.name!r}; did you mean {close[0]!r}?")
            return spec_of(self.name, steps=self.steps, seed=self.seed)
        if self.steps is not None or self.seed != 42:
            raise ValueError(f"{self.name} fixes steps and seed; leave --steps and --seed out, or edit a copy of it")
        return RunSpec.from_json(Path(self.name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped or killed, from its last good checkpoint.

    Example: polargrad resume runs/monday
    """

    folder: Positional[Annotated[Path, tyro.conf.arg(metavar="DIR", help="a run folder")]]

    def __call__(self) -> None:
        """Go on, then say how it ended and where it is."""
        finished = runner.resume(self.folder, progress=terminal_progress(self.folder.name))
        _print_run(finished)


@dataclass(frozen=True)
class Compare:
    """Run several recipes on the same model, data and order of batches, and write a report.

    Example: polargrad compare adamw muon+polargrad --steps 100

    A sweep tries every combination of the values given; it concerns the recipes that have the role. Roles joined by +
    move together.

    Example: polargrad compare muon+adamw --sweep hidden.lr=0.005,0.01 --sweep embedding+head.lr=0.01,0.03
    """

    names: Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help="the recipes")]]
    sweep: Annotated[
        UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="ROLE.lr=V,V,...", help="values to try; may be given several times"),
    ] = ()
    steps: Steps = None
    seed: Seed = 42
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help="the new folder of the comparison; runs/compare-DATE-TIME by default"),
    ] = None
    parallel: Annotated[ParallelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ParallelOptions)

    def __call__(self) -> None:
        """Run everything, then print the table, warn of edges, and write the report."""
        specs = _grid([spec_of(name, steps=self.steps, seed=self.seed) for name in self.names], self.sweep)
        with self.parallel.processes() as parallel:
            if not parallel.chief:
                for spec in specs:
                    runner.assist(spec, parallel)
                return
            out = self.out or _dated("compare")
            _say_where(out)
            of = f" of {len(specs)}"
            number = {spec.name: f"[{i}{of}] {spec.name}" for i, spec in enumerate(specs, start=1)}
            runs = runner.compare(specs, out, progress=lambda name: terminal_progress(number[name]), parallel=parallel)
        page = write_report(runs, out / REPORT)
        console = _console()
        _print_outcomes(console, runs)
        console.print(f"Report: {page}")


@dataclass(frozen=True)
class Report:
    """Write the report of run folders, or of the folders of comparisons, as one self-contained HTML page.

    Example: polargrad report runs/monday runs/tuesday --out both.html
    """

    folders: Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR ...", help="run folders or comparisons")]
    ]
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE", help="the new page; by default DIR/report.html, for several report-DATE-TIME.html"
        ),
    ] = None

    def __call__(self) -> None:
        """Read the folders, print the table and write the page."""
        if not self.folders:
            raise ValueError("there is nothing to report; give at least one folder")
        runs = [read_run(path) for folder in self.folders for path in find_runs(folder)]
        if self.out is not None:
            runner.refuse_existing(self.out)
            self.out.parent.mkdir(parents=True, exist_ok=True)
        page = self.out or (self.folders[0] / REPORT if len(self.folders) == 1 else _dated("report", Path(), ".html"))
        console = _console()
        written = write_report(runs, page)
        _print_outcomes(console, runs)
        console.print(f"Report: {written}")


@dataclass(frozen=True)
class Info:
    """Show versions, machine and what of the laboratory is installed.

    Example: polargrad info
    """

    def __call__(self) -> None:
        """Print what a bug report needs."""
        table = _table("", "")
        shown = {**environment(), **{package: version(package) for package in LAB_PACKAGES}}
        for key, value in shown.items():
            table.add_row(*_texts(key, "not known" if value is None and key == "commit" else value or "not installed"))
        _console().print(table)


COMMANDS = {
    "list": ListRecipes,
    "run": RunOne,
    "compare": Compare,
    "resume": Resume,
    "report": Report,
    "bench": Bench,
    "info": Info,
}


def dispatch(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name.

    Raises:
        ValueError: if there is no such command.
        SystemExit: after --help (0), or if the arguments cannot be read (2).
    """
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no command {name!r}; {hint}the commands are {', '.join(COMMANDS)}")
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="polargrad", args=list(arguments))
    command()


def _grid(specs: Sequence[RunSpec], sweep: Sequence[str]) -> list[RunSpec]:
    """The specs, each expanded by the axes that concern it."""
    axes: list[Axis] = [parse_axis(text) for text in sweep]
    known = {role for spec in specs for role in spec.optimizer}
    for axis in axes:
        if unknown := [role for role in axis.roles if role not in known]:
            raise ValueError(f"no recipe here has a role {unknown[0]!r}; their roles are {', '.join(sorted(known))}")
    return [point for spec in specs for point in expand(spec, axes)]


def _print_run(finished: Run) -> None:
    console = _console()
    console.print(analysis.sentence(analysis.outcomes([finished])[0], finished))
    console.print(f"Records are in {finished.path}, figures in {finished.path / FIGURES}.")


def _print_outcomes(console: Console, runs: Sequence[Run]) -> None:
    """The table of every run, the sentences about the best of each recipe, and warnings."""
    runs = analysis.with_distinct_names(runs)
    outcomes = analysis.outcomes(runs)
    baseline = analysis.baseline_of(runs)
    metric = baseline.spec.objective.metric_label
    table = _table(
        "run", f"final {metric}", "best", f"steps to {baseline.spec.name}'s", "seconds", "optimizer", "rates"
    )
    for o in outcomes:
        reach = "not reached" if o.reach is None else f"{o.reach.step:.1f}"
        share = "" if o.optimizer_share is None else f"{o.optimizer_share:.0%}"
        final = o.run.status if o.final is None else f"{o.final:.4f}"
        best = "" if o.best is None else f"{o.best:.4f}"
        table.add_row(*_texts(o.run.spec.name, final, best, reach, f"{o.seconds:.1f}", share, _rates(o.run.spec)))
    console.print(table)
    for outcome in analysis.outcomes(analysis.best_of_recipe(runs)):
        console.print(analysis.sentence(outcome, baseline))
    for note in (*analysis.cautions(runs), *edge_notes(runs)):
        console.print(f"Note: {note}")


def _rates(spec: RunSpec) -> str:
    return ", ".join(f"{role} {rate:g}" for role, rate in spec.learning_rates.items())


def _dated(name: str, folder: Path = Path("runs"), ending: str = "") -> Path:
    return folder / f"{name}-{datetime.now():%Y%m%d-%H%M%S}{ending}"


def _say_where(out: Path) -> None:
    print(f"Results go to {out}", file=sys.stderr)


def _console() -> Console:
    """Plain text as given, without markup of its own: names may hold brackets. Wide where nobody resizes it."""
    return Console(
        markup=False, highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(columns), padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _texts(*cells: object) -> list[Text]:
    return [Text(str(cell)) for cell in cells]
