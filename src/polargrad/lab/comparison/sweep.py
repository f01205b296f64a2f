"""Sweeps: the axes of a grid of runs, and the runs at its points."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from polargrad.lab.run.spec import Plain, RunSpec, parse_setting, parse_value


@dataclass(frozen=True)
class Axis:
    """An axis of a sweep: an option of some roles, all learning rates at once, or the length of the warm-up.

    Args:
        roles: the roles whose option is set, which move together; empty for `rates` and `warmup`.
        option: the option's name, such as "lr". Without roles "lr" takes multiples of every role's own rate, and
            "warmup" steps of the schedule's warm-up.
        values: what to try.

    Raises:
        ValueError: a multiple that is not a positive finite number, a warm-up that is not an integer of at least 0.

    Example:
        >>> Axis((), "lr", (0.5, 1, 2)).label, Axis(("embedding", "head"), "lr", (0.1,)).label
        ('rates', 'embedding+head.lr')
    """

    roles: tuple[str, ...]
    option: str
    values: tuple[Plain, ...]

    def __post_init__(self) -> None:
        if self.label == "rates" and (
            odd := [value for value in self.values if not _is_number(value) or float(value) <= 0]  # pyright: ignore[reportArgumentType]
        ):
            raise ValueError(f"rates takes positive numbers, multiples of every role's rate; got {odd[0]!r}")
        if self.label == "warmup" and (odd := [v for v in self.values if type(v) is not int or v < 0]):
            raise ValueError(f"warmup takes integers, numbers of steps from 0; got {odd[0]!r}")

    @property
    def label(self) -> str:
        """The axis as it is written: "rates", "warmup", or as in "embedding+head.lr"."""
        if self.roles:
            return f"{'+'.join(self.roles)}.{self.option}"
        return "rates" if self.option == "lr" else self.option

    @property
    def title(self) -> str:
        """The axis in words, as in "learning rate of embedding, head"."""
        if self.roles:
            return f"{'learning rate' if self.is_rate else self.option} of {', '.join(self.roles)}"
        return "learning rates" if self.is_rate else "length of the warm-up"

    @property
    def scale(self) -> str:
        """The label of an axis of a figure."""
        return {"rates": "times the recipe's own rates", "warmup": "steps of warm-up"}.get(self.label, self.label)

    @property
    def is_rate(self) -> bool:
        """Whether the values are learning rates or multiples of them."""
        return self.option == "lr"

    @property
    def ordered(self) -> tuple[Plain, ...]:
        """The values for a reader: numbers by size, others as given."""
        numbers = [value for value in self.values if _is_number(value)]
        return tuple(sorted(numbers)) if len(numbers) == len(self.values) else self.values  # pyright: ignore[reportArgumentType]

    def sets(self, role: str, option: str) -> bool:
        """Whether it decides the option of a role."""
        return option == self.option and (not self.roles or role in self.roles)

    def concerns(self, spec: RunSpec) -> bool:
        """Whether the spec has one of the roles."""
        return not self.roles or any(role in spec.optimizer for role in self.roles)

    def applied(self, spec: RunSpec, value: Plain) -> RunSpec:
        """The spec with the axis set to a value.

        Raises:
            ValueError: if the value does not fit the spec.
        """
        if self.label == "warmup":
            return _with_warmup(spec, value)
        for role in self.roles or spec.learning_rates:
            if role in spec.optimizer:
                set_to = value if self.roles else float(f"{spec.learning_rates[role] * float(value):.12g}")  # pyright: ignore[reportArgumentType]
                spec = spec.with_option(role, self.option, set_to)
        return spec


def parse_axis(text: str) -> Axis:
    """An axis as written on the command line.

    Args:
        text: ROLE.OPTION=VALUE,VALUE,...; roles joined by + move together. Or rates=VALUE,VALUE,... for multiples of
            all learning rates, or warmup=STEPS,STEPS,... Values are read as JSON, else as strings.

    Returns:
        The axis.

    Raises:
        ValueError: if the text is not of that form, or a value not of its kind.

    Example:
        >>> parse_axis("embedding+head.lr=0.1,0.3")
        Axis(roles=('embedding', 'head'), option='lr', values=(0.1, 0.3))
        >>> parse_axis("warmup=0,10,40")
        Axis(roles=(), option='warmup', values=(0, 10, 40))
    """
    place, _, listed = text.partition("=")
    whole = {"rates": "lr", "warmup": "warmup"}.get(place.strip())
    try:
        roles, option, listed = ((), whole, listed) if whole else parse_setting(text)
        texts = [value.strip() for value in listed.split(",")]
        if not all(texts):
            raise ValueError("a value is missing")
    except ValueError:
        raise ValueError(
            f"cannot read the sweep {text!r}; write ROLE.OPTION=VALUE,VALUE, as in hidden.lr=0.003,0.01,0.03, "
            "or rates=0.5,1,2, or warmup=0,10"
        ) from None
    return Axis(roles, option, tuple(dict.fromkeys(_value(value) for value in texts)))


@dataclass(frozen=True)
class GridPoint:
    """A point of a grid.

    Args:
        spec: the run at the point.
        settings: a value for each axis that concerns the recipe.
    """

    spec: RunSpec
    settings: tuple[tuple[Axis, Plain], ...] = ()


def grid_points(specs: Sequence[RunSpec], axes: Sequence[Axis]) -> list[GridPoint]:
    """Every point of the grids that the axes span over each spec; the first axis varies slowest.

    An axis over roles that a spec does not have does not concern it, so that one sweep can serve recipes with different
    roles.

    Args:
        specs: where the grids start; a point keeps the recipe, and its settings are added to the name.
        axes: what is varied.

    Raises:
        ValueError: an axis over roles that no spec has, two axes that set the same, a value that does not fit.
    """
    known = {role for spec in specs for role in spec.optimizer}
    for axis in axes:
        if axis.roles and (unknown := [role for role in axis.roles if role not in known]):
            raise ValueError(f"no recipe here has a role {unknown[0]!r}; their roles are {', '.join(sorted(known))}")
    options = {option for spec in specs for given in spec.optimizer.values() for option in given}
    options |= {axis.option for axis in axes if axis.roles}
    for one, other in itertools.combinations(axes, 2):
        shared = [(r, o) for r in sorted(known) for o in sorted(options) if one.sets(r, o) and other.sets(r, o)]
        if shared or one.label == other.label:
            what = f"the {shared[0][1]} of {shared[0][0]}" if shared else one.label
            raise ValueError(f"the sweeps of {one.label} and {other.label} both set {what}; leave one out")
    return [point for spec in specs for point in _points(spec, axes)]


def expand(spec: RunSpec, axes: Sequence[Axis]) -> list[RunSpec]:
    """The specs at every point of the grid that the axes span over a spec; the spec alone if no axis concerns it.

    Args:
        spec: where the grid starts; its recipe is kept, and the settings are added to its name.
        axes: the first varies slowest.

    Raises:
        ValueError: if a value does not fit the spec.
    """
    return [point.spec for point in _points(spec, axes)]


def setting_text(settings: Sequence[tuple[Axis, Plain]]) -> str:
    """Settings as they are written in the name of a run.

    Example:
        >>> setting_text([(parse_axis("warmup=0,10"), 10), (parse_axis("rates=0.5"), 0.5)])
        'warmup=10,rates=0.5'
    """
    return ",".join(f"{axis.label}={v:g}" if isinstance(v, float) else f"{axis.label}={v}" for axis, v in settings)


def _points(spec: RunSpec, axes: Sequence[Axis]) -> list[GridPoint]:
    mine = [axis for axis in axes if axis.concerns(spec)]
    if not mine:
        return [GridPoint(spec)]
    found = []
    for values in itertools.product(*(axis.values for axis in mine)):
        settings = tuple(zip(mine, values, strict=True))
        made = spec
        for axis, value in settings:
            made = axis.applied(made, value)
        found.append(GridPoint(dataclasses.replace(made, name=f"{spec.name}@{setting_text(settings)}"), settings))
    return found


def _with_warmup(spec: RunSpec, steps: Plain) -> RunSpec:
    if not any(entry.name == "warmup" for entry in dataclasses.fields(spec.schedule)):
        raise ValueError(
            f"the schedule of {spec.recipe}, {spec.schedule.name}, has no warm-up; leave the sweep of warmup out"
        )
    try:
        return dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, warmup=steps))
    except ValueError as error:
        raise ValueError(f"warmup={steps} of {spec.recipe}, {spec.loop.steps} steps: {error}") from None


def _is_number(value: Plain) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(text: str) -> Plain:
    value = parse_value(text)
    return value if value is None or isinstance(value, bool | int | float | str) else text
