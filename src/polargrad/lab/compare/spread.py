"""Recipes measured over several seeds: means, spreads, and how soon each reaches where another ended."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polargrad.lab.compare.analysis import Reach, final_metric, first_reach
from polargrad.lab.run.folder import Run


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds; the seeds without one do not count.

    Args:
        values: one for each seed that has it.
        of: how many seeds there are.
    """

    values: tuple[float, ...]
    of: int

    @property
    def mean(self) -> float | None:
        """The mean, or None if no seed has the figure."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a seed (n - 1), from two seeds on."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int = 4, percent: bool = False) -> str:
        """Mean, standard deviation and range as a person reads them, "2 of 3 seeds" where some have none.

        Example:
            >>> Spread((4.1, 4.2, 4.3), 3).text(2)
            '4.20 ± 0.10'
            >>> Spread((), 3).text()
            'no'
        """
        if self.mean is None:
            return "no"
        scale, unit = (100.0, "%") if percent else (1.0, "")
        said = f"{self.mean * scale:.{digits}f}{unit}"
        if self.deviation is not None:
            said += f" ± {self.deviation * scale:.{digits}f}"
        return said if len(self.values) == self.of else f"{said} ({len(self.values)} of {self.of} seeds)"


@dataclass(frozen=True)
class Group:
    """One recipe at one configuration, a run for each seed.

    Args:
        recipe: its name.
        runs: ordered by seed; all else is equal in their specs.
    """

    recipe: str
    runs: tuple[Run, ...]

    @property
    def final(self) -> Spread:
        """The metric at the end."""
        return self._spread(final_metric)

    @property
    def seconds(self) -> Spread:
        """Of forward, backward and optimizer."""
        return self._spread(lambda run: _last_step(run, "seconds"))

    @property
    def optimizer_share(self) -> Spread:
        """The optimizer's part of the seconds."""
        return self._spread(lambda run: _ratio(_last_step(run, "optimizer_seconds"), _last_step(run, "seconds")))

    def reach(self, other: Group) -> Reached:
        """When this recipe is where another one ended, seed by seed: both have seen the same batches."""
        theirs = {run.spec.seed: run for run in other.runs}
        pairs = [(run, theirs[run.spec.seed]) for run in self.runs if run.spec.seed in theirs]
        reaches = [(_crossing(run, end), _crossing(end, end)) for run, end in pairs]
        reached = [(mine, own) for mine, own in reaches if mine is not None and own is not None]
        of = len(pairs)
        return Reached(
            steps=Spread(tuple(mine.step for mine, _ in reached), of),
            seconds=Spread(tuple(mine.seconds for mine, _ in reached), of),
            step_ratio=Spread(tuple(mine.step / own.step for mine, own in reached if own.step), of),
            time_ratio=Spread(tuple(mine.seconds / own.seconds for mine, own in reached if own.seconds), of),
        )

    def _spread(self, figure: Callable[[Run], float | None]) -> Spread:
        found = [figure(run) for run in self.runs]
        return Spread(tuple(value for value in found if value is not None), len(self.runs))


@dataclass(frozen=True)
class Reached:
    """When one recipe was where another ended: its steps and seconds, and these over the other's own."""

    steps: Spread
    seconds: Spread
    step_ratio: Spread
    time_ratio: Spread


def groups(runs: Sequence[Run]) -> list[Group]:
    """One group for each recipe, in the order in which recipes come.

    Of the configurations that a recipe ran with, the one with the most steps counts, then the one with the most seeds,
    then the one with the fewest seeds that diverged, then the one with the lowest mean of the metric.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault(run.spec.recipe, {}).setdefault(_configuration(run), []).append(run)
    return [_chosen(recipe, list(configurations.values())) for recipe, configurations in found.items()]


def _chosen(recipe: str, candidates: list[list[Run]]) -> Group:
    made = [Group(recipe, tuple(sorted(runs, key=lambda run: run.spec.seed))) for runs in candidates]

    def rank(group: Group) -> tuple[Any, ...]:
        final = group.final
        ended = float("inf") if final.mean is None else final.mean
        return (-group.runs[0].spec.loop.steps, -len(group.runs), -len(final.values), ended)

    return min(made, key=rank)


def _configuration(run: Run) -> str:
    """What runs, but for the seed."""
    plain = dataclasses.replace(run.spec, name="any", seed=0).to_dict()
    return json.dumps({**plain, "description": ""}, sort_keys=True)


def _crossing(run: Run, end: Run) -> Reach | None:
    target = final_metric(end)
    return None if target is None else first_reach(run.of_kind("eval"), run.spec.objective.metric, target)


def _last_step(run: Run, key: str) -> float | None:
    steps = run.of_kind("step")
    return steps[-1][key] if steps else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
