"""A search over all of a recipe's numbers, one after the other, in a fixed number of runs.

The state of a search is a function of the final losses of the runs that have ended, as in `rate_search`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from polargrad.lab.comparison.rate_search import FIXED_ROLES, SearchState, alike_roles
from polargrad.lab.options import check_integer
from polargrad.lab.run.spec import Plain, RunSpec
from polargrad.lab.train.optimizers import OURS, build_optimizer
from polargrad.optim.matrix_view import VIEW_OPTIONS

# The smallest part of a whole move that a search goes by.
FINEST = 0.25
# How far a search that draws its values goes, in moves up and down.
SPAN = 3.0

Point = tuple[float, ...]


def _rate(value: float, moves: float) -> float | None:
    return value * 2.0**moves


def _memory(value: float, moves: float) -> float | None:
    """A decay in [0, 1): a move doubles or halves the memory 1 / (1 - value)."""
    moved = 1.0 - (1.0 - value) * 2.0**-moves
    return moved if 0.0 <= float(f"{moved:.4g}") < 1.0 else None


def _weight_decay(value: float, moves: float) -> float | None:
    if value > 0.0 or moves == 0.0:
        return value * 3.0**moves
    return 0.01 * 3.0**moves if moves > 0.0 else None


def _share(value: float, moves: float) -> float | None:
    moved = value + 0.2 * moves
    return moved if 0.0 < moved <= 1.0 else None


# How each option moves; the order is that of the search. What a recipe leaves out has the value that does nothing.
MOVES: Mapping[str, Callable[[float, float], float | None]] = {
    "lr": _rate,
    "momentum": _memory,
    "decay_fraction": _share,
    "weight_decay": _weight_decay,
    "betas": _memory,
    "normalize_rows": _memory,
}
ABSENT = {"weight_decay": 0.0}
# Numbers mean the same in two roles that agree in these.
_KIND = ("rule", "geometry", "scale", "momentum_order")


@dataclass(frozen=True)
class Coordinate:
    """A number of a recipe that is searched over.

    Args:
        option: its name, a key of `MOVES`; "decay_fraction" is the schedule's.
        roles: whose option it is; they move together.
        index: which of several numbers, as in betas; None for an option that is one number.
    """

    option: str
    roles: tuple[str, ...] = ()
    index: int | None = None

    @property
    def label(self) -> str:
        """The name in tables, such as "embedding+head.betas[0]"."""
        place = f"{'+'.join(self.roles)}." if self.roles else ""
        return f"{place}{self.option}{'' if self.index is None else f'[{self.index}]'}"

    def value(self, spec: RunSpec) -> float:
        """The number in a spec."""
        if not self.roles:
            return getattr(spec.schedule, self.option)
        found: Any = spec.optimizer[self.roles[0]].get(self.option, ABSENT.get(self.option))
        return float(found if self.index is None else found[self.index])

    def moved(self, spec: RunSpec, moves: float) -> float | None:
        """The number after some moves up or down, to four digits; None where it would leave its range."""
        value = MOVES[self.option](self.value(spec), moves)
        if value is None:
            return None
        value = float(f"{value:.4g}")
        try:
            check_roles(self.applied(spec, value), self.roles)
        except ValueError:  # as where falling rates leave no room for the warm-up, or Nesterov's momentum becomes 0
            return None
        return value

    def span(self, spec: RunSpec) -> tuple[float, float]:
        """The fewest and the most moves, at most `SPAN` either way, that stay in its range."""
        steps = [FINEST * step for step in range(1, round(SPAN / FINEST) + 1)]
        low = [0.0, *itertools.takewhile(lambda moves: self.moved(spec, -moves) is not None, steps)]
        high = [0.0, *itertools.takewhile(lambda moves: self.moved(spec, moves) is not None, steps)]
        return -low[-1], high[-1]

    def applied(self, spec: RunSpec, value: float) -> RunSpec:
        """The spec with the number set."""
        if not self.roles:
            return dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, **{self.option: value}))
        for role in self.roles:
            whole: Plain = value
            if self.index is not None:
                pair: Any = list(spec.optimizer[role][self.option])  # pyright: ignore[reportArgumentType]
                pair[self.index] = value
                whole = tuple(pair)
            spec = spec.with_option(role, self.option, whole)
        return spec


def check_roles(spec: RunSpec, roles: tuple[str, ...]) -> None:
    """Refuse options of roles that our optimizer refuses; one from outside says so when its run begins."""
    for role in roles:
        if spec.optimizer[role].get("rule", "polar") in OURS:
            options = {key: value for key, value in spec.optimizer[role].items() if key not in VIEW_OPTIONS}
            build_optimizer([{"params": [torch.nn.Parameter(torch.zeros(2, 2))], **options}])


def coordinates_of(spec: RunSpec, other: RunSpec | None = None) -> tuple[Coordinate, ...]:
    """Rates, momenta, weight decays and betas of roles with equal options, and the share of the run with falling rates.

    Of norms, biases and positions the rates alone. With another spec, roles move together that are alike in both.
    """
    elsewhere = {} if other is None else {role: roles for roles in alike_roles(other) for role in roles}
    alike: dict[tuple[Any, ...], list[str]] = {}
    for roles in [*alike_roles(spec), *((role,) for role in FIXED_ROLES if role in spec.optimizer)]:
        for role in roles:
            alike.setdefault((roles, elsewhere.get(role)), []).append(role)
    found = []
    for option in MOVES:
        if hasattr(spec.schedule, option):
            found.append(Coordinate(option))
        for roles in map(tuple, alike.values()):
            if roles[0] in FIXED_ROLES and option != "lr":
                continue
            given: Any = spec.optimizer[roles[0]].get(option, ABSENT.get(option))
            if isinstance(given, tuple | list):
                found += [Coordinate(option, roles, index) for index in range(len(given))]
            elif isinstance(given, int | float):
                found.append(Coordinate(option, roles))
    return tuple(found)


def with_numbers_of(spec: RunSpec, tuned: RunSpec) -> RunSpec:
    """A recipe at the numbers of another one, where both step a role by the same rule, norm and scale.

    Example:
        >>> from polargrad.lab.recipes import spec_of
        >>> tuned = spec_of("muon+adamw", changes=["hidden.lr=0.02", "head.lr=0.01"])
        >>> found = with_numbers_of(spec_of("muon+polargrad"), tuned).learning_rates
        >>> found["hidden"], found["head"]  # the head is stepped by other rules
        (0.02, 0.2)
    """
    for role, own in spec.optimizer.items():
        other = tuned.optimizer.get(role, {})
        if any(own.get(key) != other.get(key) for key in _KIND):
            continue
        copied = spec
        for option in ("lr",) if role in FIXED_ROLES else MOVES:
            if option in other and (option in own or option in ABSENT):
                copied = copied.with_option(role, option, other[option])
        with contextlib.suppress(ValueError):  # as where Nesterov's momentum would be 0: the recipe keeps its own
            check_roles(copied, (role,))
            spec = copied
    shares = {one.option: one.value(tuned) for one in coordinates_of(tuned) if not one.roles}
    return dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, **shares))


@dataclass(frozen=True)
class CoordinateSearch:
    """The search for one recipe's numbers in a fixed number of runs at full length.

    From the recipe's own values, or others if they are better, it goes along each coordinate in turn, up and else down,
    for as long as the loss falls, then along the next; after a round without gain the moves are halved. Every recipe
    has the same number of runs, so that one with more numbers is searched less finely.

    Args:
        base: the recipe at its own values; its name, seed and text are those of the search.
        runs: how many; 0 is no search.
        start: the recipe at other values that are tried second, such as those of `with_numbers_of`.

    Raises:
        ValueError: a negative number of runs.
    """

    base: RunSpec
    runs: int = 24
    start: RunSpec | None = None

    def __post_init__(self) -> None:
        check_integer("runs", self.runs, least=0)

    @property
    def prefix(self) -> str:
        """The names of its runs, down to their number."""
        return f"{self.base.name} try "

    def walk(self, home: RunSpec, coordinates: tuple[Coordinate, ...]) -> Generator[tuple[Point, int], float, None]:
        """The points of the search from `home` with the number of halvings so far; each is answered by its loss."""
        return _walk(home, coordinates)

    def state(self, losses: Mapping[str, float | None]) -> SearchState:
        """The state after runs with these final losses, by name; None for a run that diverged.

        `bracketed` says that the search ended with moves at their finest, `extensions` how often they were halved.
        """
        if not self.runs:
            return SearchState((), self.base, False, 0, "there was no search.")
        proposals = self._proposals()
        (spec, halvings), lowest, best = next(proposals), math.inf, None
        for number in range(1, self.runs + 1):
            name = f"{self.prefix}{number:02}"
            spec = dataclasses.replace(spec, name=name, recipe=self.base.recipe)
            if name not in losses:
                return SearchState((spec,), best, False, halvings)
            loss = losses[name]
            loss = math.inf if loss is None else loss
            if loss < lowest or best is None:
                lowest, best = loss, spec
            try:
                spec, halvings = proposals.send(loss)
            except StopIteration:
                return SearchState((), best, True, halvings, "no number is better a quarter of a move up or down.")
        return SearchState((), best, False, halvings, f"the search ended with its {self.runs} runs.")

    def _proposals(self) -> Generator[tuple[RunSpec, int], float, None]:
        """The specs of the runs in order, with the number of halvings; each is answered by its loss."""
        home, lowest = self.base, (yield self.base, 0)
        if self.start is not None:
            loss = yield self.start, 0
            if loss < lowest:
                home, lowest = self.start, loss
        coordinates = coordinates_of(home, self.base)
        walk = self.walk(home, coordinates)
        next(walk)  # home itself
        with contextlib.suppress(StopIteration):
            point, halvings = walk.send(lowest)
            while True:
                loss = yield _moved(home, coordinates, point), halvings
                point, halvings = walk.send(loss)


def _moved(home: RunSpec, coordinates: tuple[Coordinate, ...], point: Point) -> RunSpec:
    spec = home
    for coordinate, moves in zip(coordinates, point, strict=True):
        if moves:
            value = coordinate.moved(home, moves)
            assert value is not None
            spec = coordinate.applied(spec, value)
    return spec


def _walk(base: RunSpec, coordinates: tuple[Coordinate, ...]) -> Generator[tuple[Point, int], float, None]:
    best: Point = (0.0,) * len(coordinates)
    move, halvings = 1.0, 0
    lowest = yield best, halvings
    known = {best}
    while move >= FINEST:
        gained = False
        for i, coordinate in enumerate(coordinates):
            for sign in (1.0, -1.0):
                moved = False
                while True:
                    point = (*best[:i], best[i] + sign * move, *best[i + 1 :])
                    if point in known or coordinate.moved(base, point[i]) is None:
                        break
                    known.add(point)
                    loss = yield point, halvings
                    if not loss < lowest:
                        break
                    best, lowest, gained, moved = point, loss, True, True
                if moved:
                    break
        if not gained:
            move, halvings = move / 2, halvings + 1
