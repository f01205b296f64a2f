"""What each command of `polargrad` does. Imported only when one runs, since it needs the extra `lab`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import option, read
from polargrad.lab.cli.bench import Bench
from polargrad.lab.cli.compare import Compare, Resume, is_comparison, report_comparison
from polargrad.lab.cli.matrix_options import MatrixOptions
from polargrad.lab.cli.parallel_options import ParallelOptions
from polargrad.lab.cli.plan import PlanModel
from polargrad.lab.cli.pretrain import Pretrain, pretrain
from polargrad.lab.matrix.laboratory import EXPERIMENTS, run_experiment
from polargrad.lab.recipes import RECIPES, spec_of
from polargrad.lab.recipes.comparisons import COMPARISONS
from polargrad.lab.report.report import write_report
from polargrad.lab.run import runner
from polargrad.lab.run.environment import LAB_PACKAGES, environment, version
from polargrad.lab.run.folder import find_runs, read_run
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.studies.recipes.studies import STUDIES
from polargrad.lab.train import StageLines, terminal_progress

REPORT = "report.html"

Steps = Annotated[int | None, option(metavar="N", help="optimizer steps; the recipe's own number by default")]
Seed = Annotated[int, option(metavar="N", help="of the initial weights and of the batches")]


@dataclass(frozen=True)
class ListRecipes:
    """List the recipes.

    Example: polargrad list
    """

    def __call__(self) -> None:
        """Print each recipe with its learning rates."""
        table = terminal.table("recipe", "what it is", "learning rates", "steps")
        for name in RECIPES:
            spec = spec_of(name)
            table.add_row(*terminal.texts(name, spec.description, terminal.rates(spec), spec.loop.steps))
        for name, experiment in EXPERIMENTS.items():
            about = f"{experiment.title}, {len(experiment.chosen())} configurations."
            table.add_row(*terminal.texts(name, about, "", experiment.steps))
        for name, study in STUDIES.items():
            table.add_row(*terminal.texts(name, study.description, "", ""))
        for name, comparison in COMPARISONS.items():
            table.add_row(*terminal.texts(name, comparison.description, "", comparison.steps))
        terminal.console().print(table)
        print("`polargrad run NAME` runs one of them; `polargrad compare NAME NAME` those with learning rates.")
        print(f"`polargrad compare {' | '.join(COMPARISONS)}` makes a whole comparison.")


@dataclass(frozen=True)
class RunOne:
    """Run one recipe into a new run folder: spec, environment, records, summary, figures.

    Example: polargrad run muon+polargrad --steps 50 --out runs/first

    A matrix problem runs under every optimizer in turn, each run into a folder of its own, with a page.

    Example: polargrad run quadratic --only polargrad muon-ns adam
    """

    name: Positional[
        Annotated[str, option(metavar="NAME", help="a recipe, a matrix problem, a study, or the spec.json of a run")]
    ]
    steps: Steps = None
    seed: Seed = 42
    out: Annotated[Path | None, option(metavar="DIR", help="the new run folder; runs/NAME-DATE-TIME by default")] = None

    matrix: Annotated[MatrixOptions, OmitArgPrefixes] = field(default_factory=MatrixOptions)
    parallel: Annotated[ParallelOptions, OmitArgPrefixes] = field(default_factory=ParallelOptions)

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
            out = self.out or terminal.dated(spec.name)
            runner.refuse_existing(out)
            terminal.say_where(out)
            finished = runner.run(spec, out, progress=terminal_progress(spec.name), parallel=parallel)
        terminal.print_run(finished)

    def _experiment(self) -> None:
        """Every configuration of a matrix problem, then a table and the page."""
        out = self.out or terminal.dated(self.name)
        choices = self.matrix.choices(steps=self.steps, seed=self.seed)
        runner.refuse_existing(out)
        terminal.say_where(out)
        runs, page = run_experiment(EXPERIMENTS[self.name], out, choices, progress=terminal_progress)
        terminal.print_experiment(runs, page)

    def _study(self) -> None:
        """A study says what it found; claims that failed end it with exit code 1."""
        if self.steps is not None:
            raise ValueError(f"{self.name} is a study and has no optimizer steps; leave --steps out")
        out = self.out or terminal.dated(self.name)
        runner.refuse_existing(out)
        terminal.say_where(out)
        try:
            outcome = STUDIES[self.name].run(out, seed=self.seed, progress=StageLines())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; what was recorded until then is in {out}. A study takes minutes and cannot go on: "
                f"`polargrad run {self.name}` begins again in a new folder"
            ) from None
        console = terminal.console()
        for line in outcome.lead:
            console.print(line)
        console.print(f"Report: {outcome.page}")
        if not outcome.ok:
            raise SystemExit(1)

    def _spec(self) -> RunSpec:
        if self.name in COMPARISONS:
            raise ValueError(f"{self.name} is a comparison of several recipes; `polargrad compare {self.name}` runs it")
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
class Report:
    """Write the report of run folders, or of the folders of comparisons, as one self-contained HTML page.

    Example: polargrad report runs/monday runs/tuesday --out both.html
    """

    folders: Positional[Annotated[tuple[Path, ...], option(metavar="DIR ...", help="run folders or comparisons")]]
    out: Annotated[
        Path | None,
        option(metavar="FILE", help="the new page; by default DIR/report.html, for several report-DATE-TIME.html"),
    ] = None

    def __call__(self) -> None:
        """Read the folders, print the table and write the page."""
        if not self.folders:
            raise ValueError("there is nothing to report; give at least one folder")
        if len(self.folders) == 1 and self.out is None and is_comparison(self.folders[0]):
            return report_comparison(self.folders[0])
        runs = [read_run(path) for folder in self.folders for path in find_runs(folder)]
        if self.out is not None:
            runner.refuse_existing(self.out)
            self.out.parent.mkdir(parents=True, exist_ok=True)
        page = self.out or (
            self.folders[0] / REPORT if len(self.folders) == 1 else terminal.dated("report", Path(), ".html")
        )
        written = write_report(runs, page)
        terminal.print_outcomes(runs)
        terminal.console().print(f"Report: {written}")


@dataclass(frozen=True)
class Info:
    """Show versions, machine and what of the laboratory is installed.

    Example: polargrad info
    """

    def __call__(self) -> None:
        """Print what a bug report needs."""
        table = terminal.table("", "")
        shown = {**environment(), **{package: version(package) for package in LAB_PACKAGES}}
        for key, value in shown.items():
            table.add_row(
                *terminal.texts(key, "not known" if value is None and key == "commit" else value or "not installed")
            )
        terminal.console().print(table)


COMMANDS = {
    "list": ListRecipes,
    "run": RunOne,
    "compare": Compare,
    "pretrain": Pretrain,
    "resume": Resume,
    "report": Report,
    "bench": Bench,
    "plan": PlanModel,
    "info": Info,
}


def dispatch(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name.

    Raises:
        ValueError: if there is no such command, or its arguments cannot be read.
        SystemExit: after --help.
    """
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no command {name!r}; {hint}the commands are {', '.join(COMMANDS)}")
    if name == "pretrain":
        # Its launch file must be read before the flags, since these override it.
        return pretrain(arguments[1:])
    read(COMMANDS, arguments)()
