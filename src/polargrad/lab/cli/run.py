"""`polargrad run`: one recipe, matrix problem or study into a new folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polargrad.lab import recipes
from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import Parallelism, Positional, TrackingFlags
from polargrad.lab.options import Options, given, option, unknown_name, values_of
from polargrad.lab.recipes import COMPARISONS, spec_of
from polargrad.lab.run.spec import MatrixOptions, RunSpec
from polargrad.lab.train import StageLines, terminal_progress
from polargrad.outside import is_reference, load

if TYPE_CHECKING:
    from polargrad.lab.matrix import Problem


@dataclass(frozen=True)
class ProblemFlags(Options, MatrixOptions):
    """Options of the matrix problems, which `polargrad list` names.

    Args:
        set: settings of the problem, such as rows=2000 rank=3 observed=0.2; of a recipe OPTION=V or ROLE.OPTION=V
        picture: photograph that the problem `picture` completes
        ratings: ratings that the problem `ratings` completes: a CSV of user, item, rating
    """

    set: tuple[str, ...] = option((), metavar="NAME=VALUE ...")
    picture: Literal["china", "flower"] | None = None
    ratings: Path | None = option(None, metavar="FILE")

    def settings(self) -> dict[str, str]:
        """The settings of the problem, by name.

        Raises:
            ValueError: a setting that is not NAME=VALUE, or given twice.
        """
        pairs = [(name, str(value)) for name, value in (("picture", self.picture), ("file", self.ratings)) if value]
        for text in self.set:
            name, sign, value = text.partition("=")
            if not sign:
                raise ValueError(f"--set takes NAME=VALUE, got {text!r}")
            pairs.append((name, value))
        if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise ValueError(f"{twice[0]} is given twice; give it once")
        return dict(pairs)


@dataclass(frozen=True)
class Run(Options):
    """Run one recipe into a new run folder: spec, environment, records, summary, figures.

    Example: polargrad run muon+polargrad --steps 50 --out runs/first

    A matrix problem runs under each of its configurations, into a folder with a page.

    Example: polargrad run quadratic --only polargrad muon-ns adam

    An optimizer or a problem of your own runs by file, dotted path or entry point; see docs/own-optimizer.md.

    Example: polargrad run mine.py:MyProblem --size small

    Args:
        name: a recipe, a matrix problem, a study, the spec.json of a run, or FILE.py:CLASS
        steps: optimizer steps; the recipe's own number by default
        seed: seed of the initial weights and of the batches
        out: new run folder; runs/NAME-DATE-TIME by default
    """

    name: Positional[str]
    steps: int | None = None
    seed: int = option(42, least=0)
    out: Path | None = None
    matrix: ProblemFlags = field(default_factory=ProblemFlags)
    tracking: TrackingFlags = field(default_factory=TrackingFlags)
    parallel: Parallelism = field(default_factory=Parallelism)

    def __call__(self) -> None:
        """Run, then say how it ended and where it is."""
        if self.name in recipes.RECIPES or self.name.endswith(".json"):
            return self._recipe()
        from polargrad.lab.matrix import PROBLEMS

        where, rest = recipes.split_reference(self.name)
        if (
            rest
            or recipes.RECIPES.is_announced(where)
            or (is_reference(where) and not PROBLEMS.accepts(load(where)[1]))
        ):
            return self._recipe()
        if self.name in COMPARISONS:
            raise ValueError(f"{self.name} is a comparison of several recipes; `polargrad compare {self.name}` runs it")
        if (problem := PROBLEMS.key(self.name)) in PROBLEMS:
            return self._experiment(PROBLEMS[problem])
        from polargrad.lab.studies import STUDIES

        if self.name in STUDIES:
            return self._study()
        known = [*recipes.RECIPES.names(), *PROBLEMS.names(), *STUDIES, "FILE.py:CLASS"]
        raise unknown_name("recipe, matrix problem or study", self.name, known)

    def _recipe(self) -> None:
        from polargrad.lab.run import runner

        self._refuse_matrix_options("set")
        spec = self._spec()
        with terminal.idle_cores(), self.parallel.processes() as parallel:
            if not parallel.is_main_process:
                return runner.serve(parallel)
            out, progress = terminal.place(self.out, spec.name), terminal_progress(spec.name)
            how: dict[str, Any] = {"progress": progress, "tracking": self.tracking, "created": terminal.created}
            finished = runner.run_or_resume(spec, out, parallel=parallel, **how)
        from polargrad.lab.cli.report import print_run

        print_run(finished)

    def _spec(self) -> RunSpec:
        if not self.name.endswith(".json"):
            changes = [text if "." in text.partition("=")[0] else f"*.{text}" for text in self.matrix.set]
            return spec_of(self.name, steps=self.steps, seed=self.seed, changes=changes)
        if unused := ", ".join(filter(None, (given(self, "steps", "seed"), given(self.matrix, "set")))):
            raise ValueError(f"{unused}: {self.name} fixes these; leave them out, or edit a copy of it")
        return RunSpec.from_json(Path(self.name).read_text(encoding="utf-8"))

    def _experiment(self, problem: type[Problem]) -> None:
        """Every configuration of a matrix problem, then a table and the page."""
        from polargrad.lab.cli.report import print_experiment
        from polargrad.lab.studies.matrix.experiments import ExperimentOptions, run_experiment

        self.parallel.refuse(self.name)
        own = {"settings": self.matrix.settings(), "seed": self.seed, "steps": self.steps}
        options = ExperimentOptions(**values_of(MatrixOptions, self.matrix), **own)
        out = terminal.place(self.out, problem.kind)
        how: dict[str, Any] = {"progress": terminal_progress, "tracking": self.tracking, "created": terminal.created}
        with terminal.idle_cores():
            finished = run_experiment(problem, out, options, **how)
        print_experiment(*finished)

    def _study(self) -> None:
        """A study says what it found; claims that failed end it with exit code 1."""
        from polargrad.lab.studies import STUDIES

        self._refuse_matrix_options()
        self.parallel.refuse(self.name)
        if unused := given(self.tracking):
            raise ValueError(f"{unused}: {self.name} is a study, whose runs have no folders; leave it out")
        if self.steps is not None:
            raise ValueError(f"{self.name} is a study and has no optimizer steps; leave --steps out")
        out = terminal.new_folder(self.out, self.name)
        try:
            outcome = STUDIES[self.name].run(out, seed=self.seed, progress=StageLines())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; what was recorded until then is in {out}. A study takes minutes and cannot be resumed: "
                f"`polargrad run {self.name}` begins again in a new folder"
            ) from None
        for line in (*outcome.lead, f"Report: {outcome.page}"):
            terminal.console().print(line)
        if not outcome.ok:
            raise SystemExit(1)

    def _refuse_matrix_options(self, *but: str) -> None:
        others = [entry.name for entry in fields(self.matrix) if entry.name not in but]
        if unused := given(self.matrix, *others):
            raise ValueError(f"{unused}: options of matrix problems, and {self.name} is not one; leave them out")
