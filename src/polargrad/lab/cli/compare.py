"""`polargrad compare`: several recipes on the same data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Self

from polargrad.lab.cli import report, terminal
from polargrad.lab.cli.arguments import Jobs, Parallelism, Positional, TrackingFlags, read
from polargrad.lab.comparison.comparison import Comparison, ComparisonOptions, resume_comparison, run_comparison
from polargrad.lab.comparison.request import request
from polargrad.lab.estimate import estimate
from polargrad.lab.launch import Launch
from polargrad.lab.options import given, option, values_of
from polargrad.lab.run import runner
from polargrad.lab.run.build import check
from polargrad.lab.run.spec import LanguageModel

_OF_REQUEST = ("set", "seeds", "seed", "steps", "minutes")
_TRACKING = tuple(entry.name for entry in fields(TrackingFlags))


@dataclass(frozen=True, kw_only=True)
class Compare(ComparisonOptions, Jobs):
    """Run several recipes on the same model, data and order of batches, and write a report.

    Example: polargrad compare adamw muon+polargrad --steps 100

    A sweep runs every combination of the values given, for the recipes that have the role. Roles joined by + change
    together. `rates` are multiples of a recipe's own learning rates, `warmup` is the schedule's, in steps.

    Example: polargrad compare muon+adamw --sweep embedding+head.lr=0.01,0.03

    Example: polargrad compare adamw --sweep rates=0.5,1,2 --sweep warmup=0,20

    A named comparison brings recipes, grid and steps; --sweep replaces its grid.

    Example: polargrad compare phenomena --jobs 2

    --tune searches for every recipe's rates, by successive halving and then until no neighbouring rate is better;
    then the recipes run with the seeds that count. --tuner coordinate and --tuner optuna search over momenta, betas and
    weight decays too, in --runs runs each. `polargrad resume DIR` continues a comparison that was stopped.

    Example: polargrad compare adamw muon+adamw --tune --seeds 3 --jobs 2

    A launch file that comes first may say what the runs train, in the tables of `polargrad pretrain`, and what is
    compared, in [compare] with these options as keys; flags override it.

    Example: polargrad compare launch/compare-laptop.toml --seeds 3 --dry-run

    An optimizer of your own takes part by file, dotted path or entry point; see docs/own-optimizer.md.

    Example: polargrad compare adamw mine.py:MyOptimizer --set mine.lr=0.003

    Args:
        names: recipes, optimizer classes (FILE.py:CLASS), spec.json files of runs, or one named comparison
        set: change of an option of a recipe, in all its roles or in some; may be given several times
        seeds: number of seeds, from --seed on; figures show bands
        seed: seed of the initial weights and of the batches
        steps: optimizer steps; the recipe's own number by default
        minutes: minutes of forward, backward and optimizer for every recipe, in place of --steps
        out: new folder of the comparison; runs/compare-DATE-TIME by default
        dry_run: train nothing, write nothing: check every run, and print what would run and its memory
    """

    launch: ClassVar[Launch | None] = None  # on an instance: what the runs train, by the tables of a launch file

    names: Positional[tuple[str, ...]] = ()
    set: tuple[str, ...] = option((), metavar="RECIPE[.ROLE].OPTION=V", repeated=True)
    seeds: int = 1
    seed: int = option(42, least=0)
    steps: int | None = None
    minutes: float | None = option(None, above=0)
    out: Path | None = None
    dry_run: bool = False
    tracking: TrackingFlags = field(default_factory=TrackingFlags)
    parallel: Parallelism = field(default_factory=Parallelism)

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        """The command from a launch file, where the first argument is one, and flags.

        Raises:
            SystemExit: after --help.
            ValueError: if the launch file or the flags cannot be read.
        """
        if not arguments or not arguments[0].endswith(".toml"):
            return read(cls, "compare", arguments)
        values, launch = Launch.for_comparison(Path(arguments[0]), _CompareTable)
        tracking = TrackingFlags(**{name: values.pop(name) for name in _TRACKING if name in values})
        made = read(cls, "compare", arguments[1:], cls(**values, tracking=tracking))
        object.__setattr__(made, "launch", launch)
        return made

    def __call__(self) -> None:
        """Run everything, then print the table, warn of edges, and write the report."""
        with self.parallel.processes() as parallel:
            if not parallel.is_single and (unused := given(self, "tune", "seeds", "jobs", "threads", "minutes")):
                raise ValueError(f"{unused}: not with --parallel, where every process takes part in every run")
            measured = self.launch is not None and self.launch.schedule.minutes and self.steps is None
            if self.dry_run and (self.minutes or measured):
                raise ValueError("minutes are measured by training a few steps; give a dry run --steps")
            options = {name: getattr(self, name) for name in _OF_REQUEST} | values_of(ComparisonOptions, self)
            asked = request(self.names, launch=self.launch, **options)
            if self.dry_run:
                return _print_plan(asked)
            if not parallel.is_main_process:
                return runner.serve(parallel)
            out = terminal.place(self.out, "compare")
            how = {"jobs": self.jobs, "threads": self.threads, "parallel": parallel, **report.narrated()}
            with self.cores():
                if out.exists():  # torchrun has started its processes anew
                    resume_comparison(out, **how)
                else:
                    run_comparison(asked, out, created=terminal.created, tracking=self.tracking, **how)
        report.print_comparison(out)


@dataclass(frozen=True, kw_only=True)
class _CompareTable(Compare, TrackingFlags):
    """[compare] of a launch file: the options of the command, and where records go."""


def _print_plan(asked: Comparison) -> None:
    """What would run, after the checks that come before a comparison, and what it would take."""
    specs = asked.pending({})
    for spec in specs:
        check(spec)
    rows = [(spec.name, f"{spec.loop.steps:,}", terminal.rates(spec)) for spec in specs]
    terminal.print_table(("run", "steps", "learning rates"), rows)
    told, steps = terminal.console().print, sum(spec.loop.steps for spec in specs)
    told(
        f"{len(specs)} runs, {steps:,} steps in all"
        + ("; a search makes more as losses come in." if asked.tune else ".")
    )
    for recipe in asked.recipes:
        model = recipe.objective
        if isinstance(model, LanguageModel):
            found = estimate(model, recipe.optimizer)
            told(
                f"{recipe.name}: {found.parameters:,} parameters, {model.batch} x {model.sequence} tokens a step; "
                f"memory of a run, estimated: {found.memory / 1e9:.2f} GB"
            )
