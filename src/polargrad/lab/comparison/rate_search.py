"""Learning rates by successive halving, then by a search that ends only where no neighbour is better.

The state of a search is a function of the final losses of the runs that have ended, so that a comparison that was
stopped continues by computing the state again.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from polargrad.lab.comparison.sweep import Axis, setting_text
from polargrad.lab.options import Used, check_options, option
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import Schedule

# A rung keeps this part of its points, and has twice the steps of the one before.
SURVIVORS = 1 / 3
# Rungs of fewer steps say too little.
LEAST_STEPS = 20
# Of norms, biases and positions this search keeps the recipe's own rates.
FIXED_ROLES = ("vector", "position")

# A point of the search: how many times the ratio away from the recipe's own rates, for each axis.
Offsets = tuple[int, ...]


@dataclass(frozen=True)
class SearchState:
    """How far the search for a recipe's rates has come.

    Args:
        pending: the runs to make next; empty when the search is over.
        best: the run with the lowest loss at full length so far; None before there is one.
        bracketed: whether the search ended with a worse neighbour on either side of every rate.
        extensions: rounds that the search took beyond the first grid.
        ended: how it ended, in a sentence; empty while it is under way.
    """

    pending: tuple[RunSpec, ...]
    best: RunSpec | None
    bracketed: bool
    extensions: int
    ended: str = ""


OF_A_SEARCH = Used("tune", why="options of a search")
_OF_RATES = (OF_A_SEARCH, Used("tuner", ("rates",)))


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the search for rates.

    Args:
        ratio: ratio of neighbouring rates in the search
        limit: number of rounds in which the search may go beyond its first grid
        halving: whether the search begins with a grid of shortened runs, or at the recipe's own rates

    """

    ratio: float = option(2.0, above=1, used=_OF_RATES)
    limit: int = option(8, flag="extend", least=0, used=_OF_RATES)
    halving: bool = option(True, used=_OF_RATES)


@dataclass(frozen=True)
class RateSearch(SearchOptions):
    """The search for one recipe's rates.

    The first grid has the rates c / ratio, c and c * ratio on every axis, c being the recipe's own; it runs a quarter
    of the steps, the best third of it half of them, the best third of those all. From the best of these the search goes
    to whichever neighbour (one rate times or over the ratio) is better, at full length, until none is. Without halving
    it starts at the recipe's own rates: short runs may want other rates than long ones. After `limit` rounds the best
    so far stands, unbracketed.

    Args:
        base: the recipe at its own rates and full length; its seed is that of the search.

    Raises:
        ValueError: a ratio of at most 1, or a negative limit.
    """

    base: RunSpec

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def axes(self) -> list[Axis]:
        """The rates, of roles with equal options together."""
        return [Axis(roles, "lr", ()) for roles in alike_roles(self.base)]

    @property
    def rungs(self) -> list[int]:
        """Steps of each rung, the last one's all of them."""
        full = self.base.loop.steps
        short = (full // 4, full // 2) if self.halving else ()
        return [*(steps for steps in short if steps >= LEAST_STEPS), full]

    def spec(self, point: Offsets, steps: int) -> RunSpec:
        """The run at a point of the grid: only its end is evaluated, and no gradient is looked at."""
        spec, settings = self.base, []
        for axis, offset in zip(self.axes, point, strict=True):
            rate = float(f"{self.base.learning_rates[axis.roles[0]] * self.ratio**offset:.3g}")
            settings.append((axis, rate))
            spec = axis.applied(spec, rate)
        loop = dataclasses.replace(spec.loop, steps=steps, eval_every=0, probe_every=0)
        return dataclasses.replace(
            spec,
            name=f"{self.base.name}@{setting_text(settings)},steps={steps}",
            recipe=self.base.recipe,
            schedule=shortened(spec.schedule, self.base.loop.steps, steps),
            loop=loop,
            probe=(),
        )

    def state(self, losses: Mapping[str, float | None]) -> SearchState:
        """The state after runs with these final losses, by name; None for a run that diverged."""
        offsets = (-1, 0, 1) if self.halving else (0,)
        points: Sequence[Offsets] = list(itertools.product(offsets, repeat=len(self.axes)))
        for steps in self.rungs:
            if pending := self._missing(points, steps, losses):
                return SearchState(pending, None, False, 0)
            points = self._ranked(points, steps, losses)
            if steps != self.rungs[-1]:
                points = points[: max(1, math.ceil(len(points) * SURVIVORS))]
        return self._search(set(points), losses)

    def _search(self, known: set[Offsets], losses: Mapping[str, float | None]) -> SearchState:
        full = self.base.loop.steps
        for extensions in itertools.count():
            best = self._ranked(known, full, losses)[0]
            new = [point for point in _neighbours(best) if point not in known]
            if not new or extensions == self.limit:
                far = f"the search was ended after {extensions} rounds; a better rate may lie further out."
                near = (
                    f"every rate has a worse one below and above it, after {extensions} rounds beyond the first grid."
                )
                return SearchState((), self.spec(best, full), not new, extensions, far if new else near)
            if pending := self._missing(new, full, losses):
                return SearchState(pending, self.spec(best, full), False, extensions)
            known.update(new)
        raise AssertionError

    def _missing(
        self, points: Iterable[Offsets], steps: int, losses: Mapping[str, float | None]
    ) -> tuple[RunSpec, ...]:
        specs = (self.spec(point, steps) for point in points)
        return tuple(spec for spec in specs if spec.name not in losses)

    def _ranked(self, points: Iterable[Offsets], steps: int, losses: Mapping[str, float | None]) -> list[Offsets]:
        """Lowest loss first; among equals, as where all diverged, the lowest rates."""

        def key(point: Offsets) -> tuple[float, Offsets]:
            loss = losses[self.spec(point, steps).name]
            return math.inf if loss is None else loss, point

        return sorted(points, key=key)


def alike_roles(spec: RunSpec) -> list[tuple[str, ...]]:
    """The roles that a search moves, those with equal options together."""
    alike: dict[str, list[str]] = {}
    for role, options in spec.optimizer.items():
        if role not in FIXED_ROLES:
            alike.setdefault(repr(sorted(options.items())), []).append(role)
    return list(map(tuple, alike.values()))


def shortened(schedule: Schedule, full: int, steps: int) -> Schedule:
    """The schedule of a run of `full` steps, squeezed into `steps`.

    Example:
        >>> from polargrad.lab.train import WarmupLinearDecay
        >>> shortened(WarmupLinearDecay(total=200, warmup=10, decay_fraction=0.4), 200, 50)
        WarmupLinearDecay(total=50, warmup=2, decay_fraction=0.4)
    """
    lengths = {
        entry.name: max(1 if entry.name != "warmup" else 0, getattr(schedule, entry.name) * steps // full)
        for entry in fields(schedule)
        if entry.name in ("total", "warmup", "every")
    }
    return dataclasses.replace(schedule, **lengths)


def _neighbours(point: Offsets) -> list[Offsets]:
    """The points that differ by one in one place."""
    return [(*point[:axis], point[axis] + move, *point[axis + 1 :]) for axis in range(len(point)) for move in (1, -1)]
