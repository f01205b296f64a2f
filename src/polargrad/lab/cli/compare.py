"""`polargrad compare`: several recipes on the same data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from polargrad.lab.cli import report, terminal
from polargrad.lab.cli.arguments import Jobs, Parallelism, Positional
from polargrad.lab.compare.comparison import Comparison, ComparisonOptions, run_comparison
from polargrad.lab.options import given, option, values_of
from polargrad.lab.recipes import COMPARISONS, spec_of
from polargrad.lab.run import runner
from polargrad.lab.run.spec import RunSpec

__all__ = ["Compare"]


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

    Args:
        names: recipes, spec.json files of runs, or one named comparison
        seeds: number of seeds, from --seed on; figures show bands
        seed: seed of the initial weights and of the batches
        steps: optimizer steps; the recipe's own number by default
        minutes: minutes of forward, backward and optimizer for every recipe, in place of --steps
        out: new folder of the comparison; runs/compare-DATE-TIME by default
    """

    names: Positional[tuple[str, ...]]
    seeds: int = 1
    seed: int = option(42, least=0)
    steps: int | None = None
    minutes: float | None = option(None, above=0)
    out: Path | None = None
    parallel: Parallelism = field(default_factory=Parallelism)

    def __call__(self) -> None:
        """Run everything, then print the table, warn of edges, and write the report."""
        if self.minutes is not None and self.steps is not None:
            raise ValueError("--minutes stands in place of --steps; give one of the two")
        with self.parallel.processes() as parallel:
            if not parallel.is_single and (unused := given(self, "tune", "seeds", "jobs", "threads", "minutes")):
                raise ValueError(f"{unused}: not with --parallel, where every process takes part in every run")
            specs, sweep = self._asked()
            options = {**values_of(ComparisonOptions, self), "sweep": sweep}
            asked = Comparison(tuple(specs), tuple(range(self.seed, self.seed + self.seeds)), **options)
            if not parallel.is_main_process:
                for spec in asked.pending({}):
                    runner.run_worker(spec, parallel)
                return
            out = terminal.new_folder(self.out, "compare")
            how = {"jobs": self.jobs, "threads": self.threads, **report.narrated()}
            run_comparison(asked, out, parallel=parallel, **how)
        report.print_comparison(out)

    def _asked(self) -> tuple[list[RunSpec], tuple[str, ...]]:
        """The recipes, and the axes of the grid over them."""
        named = [name for name in self.names if name in COMPARISONS]
        if not named:
            return [self._spec(name, self.steps) for name in self.names], self.sweep
        if len(self.names) > 1:
            raise ValueError(f"{named[0]} names a whole comparison; give it alone, or the recipes themselves")
        if self.tune:
            raise ValueError(f"{named[0]} has a grid of its own; leave --tune out, or give the recipes themselves")
        whole = COMPARISONS[named[0]]
        steps = whole.steps if self.steps is None else self.steps
        return [whole.observed(self._spec(name, steps)) for name in whole.recipes], self.sweep or whole.sweep

    def _spec(self, name: str, steps: int | None) -> RunSpec:
        if name.endswith(".json"):
            spec = RunSpec.from_json(Path(name).read_text(encoding="utf-8"))
            if (steps or spec.loop.steps) != spec.loop.steps or self.minutes is not None:
                raise ValueError(f"{name} fixes its {spec.loop.steps} steps; leave --steps and --minutes out")
            return dataclasses.replace(spec, seed=self.seed)
        spec = spec_of(name, steps=steps, seed=self.seed)
        if self.minutes is None:
            return spec
        from polargrad.lab.estimate import steps_within

        return spec_of(name, steps=steps_within(spec, self.minutes), seed=self.seed)
