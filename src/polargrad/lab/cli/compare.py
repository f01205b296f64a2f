"""`polargrad compare`: several recipes on the same data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from polargrad.lab.cli import report, terminal
from polargrad.lab.cli.arguments import Jobs, Parallelism, Positional
from polargrad.lab.comparison.comparison import ComparisonOptions, resume_comparison, run_comparison
from polargrad.lab.comparison.request import request
from polargrad.lab.options import given, option, values_of
from polargrad.lab.run import runner

_OF_REQUEST = ("set", "seeds", "seed", "steps", "minutes")


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
    then the recipes run with the seeds that count. `polargrad resume DIR` continues a comparison that was stopped.

    Example: polargrad compare adamw muon+adamw --tune --seeds 3 --jobs 2

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
    """

    names: Positional[tuple[str, ...]]
    set: tuple[str, ...] = option((), metavar="RECIPE[.ROLE].OPTION=V", repeated=True)
    seeds: int = 1
    seed: int = option(42, least=0)
    steps: int | None = None
    minutes: float | None = option(None, above=0)
    out: Path | None = None
    parallel: Parallelism = field(default_factory=Parallelism)

    def __call__(self) -> None:
        """Run everything, then print the table, warn of edges, and write the report."""
        with self.parallel.processes() as parallel:
            if not parallel.is_single and (unused := given(self, "tune", "seeds", "jobs", "threads", "minutes")):
                raise ValueError(f"{unused}: not with --parallel, where every process takes part in every run")
            asked = request(
                self.names, **{name: getattr(self, name) for name in _OF_REQUEST}, **values_of(ComparisonOptions, self)
            )
            if not parallel.is_main_process:
                return runner.serve(parallel)
            out = terminal.place(self.out, "compare")
            how = {"jobs": self.jobs, "threads": self.threads, "parallel": parallel, **report.narrated()}
            if out.exists():  # torchrun has started its processes anew
                resume_comparison(out, **how)
            else:
                run_comparison(asked, out, created=terminal.created, **how)
        report.print_comparison(out)
