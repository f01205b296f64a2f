"""Grids over the options of a recipe's roles, and whether the best point lies inside its grid."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from polargrad.experiments.analysis import best_of_recipe, final_metric, recipe_of
from polargrad.experiments.spec import Plain, RunSpec
from polargrad.experiments.store import Run


@dataclass(frozen=True)
class Axis:
    """Values to try for one option of one role, or of several roles that move together.

    Args:
        roles: the roles whose option is set.
        option: the option's name, such as "lr".
        values: what to try.
    """

    roles: tuple[str, ...]
    option: str
    values: tuple[Plain, ...]

    @property
    def label(self) -> str:
        """As it is written: "embedding+head.lr"."""
        return f"{'+'.join(self.roles)}.{self.option}"


def parse_axis(text: str) -> Axis:
    """An axis as written on the command line.

    Args:
        text: ROLE.OPTION=VALUE,VALUE,...; roles joined by + move together. Values are read as JSON, else as strings.

    Returns:
        The axis.

    Raises:
        ValueError: if the text is not of that form.

    Example:
        >>> parse_axis("embedding+head.lr=0.1,0.3")
        Axis(roles=('embedding', 'head'), option='lr', values=(0.1, 0.3))
    """
    place, equals, listed = text.partition("=")
    names, dot, option = place.strip().rpartition(".")
    roles = tuple(name.strip() for name in names.split("+"))
    values = [value.strip() for value in listed.split(",")]
    if not (equals and dot and option and all(roles) and all(values)):
        raise ValueError(
            f"cannot read the sweep {text!r}; write ROLE.OPTION=VALUE,VALUE, as in hidden.lr=0.003,0.01,0.03"
        )
    return Axis(roles, option, tuple(dict.fromkeys(_value(value) for value in values)))


def expand(spec: RunSpec, axes: Sequence[Axis]) -> list[RunSpec]:
    """Every point of the grid that the axes span over a spec.

    An axis of which the spec has no role does not concern it; so one sweep can serve recipes with different roles.

    Args:
        spec: where the grid starts from; its recipe is kept, its name gets what was set.
        axes: the first varies slowest.

    Returns:
        The specs, or the spec alone if no axis concerns it.
    """
    mine = [axis for axis in axes if any(role in spec.optimizer for role in axis.roles)]
    points = []
    for values in itertools.product(*(axis.values for axis in mine)):
        point = spec
        for axis, value in zip(mine, values, strict=True):
            for role in axis.roles:
                point = point.with_option(role, axis.option, value) if role in spec.optimizer else point
        settings = ",".join(f"{axis.label}={_text(value)}" for axis, value in zip(mine, values, strict=True))
        points.append(dataclasses.replace(point, name=f"{spec.name}@{settings}") if settings else point)
    return points


def edge_notes(runs: Sequence[Run]) -> list[str]:
    """For each recipe's best run, the learning rates that lie on the edge of what was tried, each in a sentence.

    Roles whose rates always moved together are one axis. A rate of which one value alone was tried was not swept.
    """
    notes = []
    for best in best_of_recipe(runs):
        tried = [run.spec.learning_rates for run in runs if recipe_of(run) == recipe_of(best)]
        if final_metric(best) is None:
            if len(tried) > 1:
                notes.append(f"{best.spec.recipe}: no run has a final loss; try lower rates.")
            continue
        together: dict[tuple[float, ...], list[str]] = {}
        for role in best.spec.learning_rates:
            together.setdefault(tuple(rates.get(role, math.nan) for rates in tried), []).append(role)
        for column, roles in together.items():
            rate, values = best.spec.learning_rates[roles[0]], sorted(set(column))
            if len(values) > 1 and rate in (values[0], values[-1]):
                end, further = ("lowest", "lower") if rate == values[0] else ("highest", "higher")
                notes.append(
                    f"{best.spec.recipe}: the best {'+'.join(roles)} rate, {rate:g}, is the {end} tried; "
                    f"try {further} ones before trusting it."
                )
    return notes


def _value(text: str) -> Plain:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _text(value: Plain) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
