"""Grids of runs over the axes of a sweep, and whether the best point lies inside its grid."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from polargrad.lab.compare.analysis import best_of_recipe, final_metric, recipe_of
from polargrad.lab.compare.axes import Axis, OptionAxis, text_of
from polargrad.lab.run.folder import Run
from polargrad.lab.run.spec import Plain, RunSpec


@dataclass(frozen=True)
class Point:
    """A point of a grid.

    Args:
        spec: what runs there.
        settings: what was set, a value for each axis that concerns the recipe.
    """

    spec: RunSpec
    settings: tuple[tuple[Axis, Plain], ...] = ()


def points(specs: Sequence[RunSpec], axes: Sequence[Axis]) -> list[Point]:
    """Every point of the grids that the axes span over each spec.

    Raises:
        ValueError: an axis over roles that no spec has, two axes that set the same, a value that does not fit.
    """
    known = {role for spec in specs for role in spec.optimizer}
    for axis in axes:
        if isinstance(axis, OptionAxis) and (unknown := [role for role in axis.roles if role not in known]):
            raise ValueError(f"no recipe here has a role {unknown[0]!r}; their roles are {', '.join(sorted(known))}")
    options = {option for spec in specs for given in spec.optimizer.values() for option in given}
    options |= {axis.option for axis in axes if isinstance(axis, OptionAxis)}
    for one, other in itertools.combinations(axes, 2):
        shared = [(r, o) for r in sorted(known) for o in sorted(options) if one.sets(r, o) and other.sets(r, o)]
        if shared or one.label == other.label:
            what = f"the {shared[0][1]} of {shared[0][0]}" if shared else one.label
            raise ValueError(f"the sweeps of {one.label} and {other.label} both set {what}; leave one out")
    return [point for spec in specs for point in _points(spec, axes)]


def expand(spec: RunSpec, axes: Sequence[Axis]) -> list[RunSpec]:
    """Every point of the grid that the axes span over a spec.

    An axis of which the spec has no role does not concern it; so one sweep can serve recipes with different roles.

    Args:
        spec: where the grid starts from; its recipe is kept, its name gets what was set.
        axes: the first varies slowest.

    Returns:
        The specs, or the spec alone if no axis concerns it.

    Raises:
        ValueError: if a value does not fit the spec.
    """
    return [point.spec for point in _points(spec, axes)]


def _points(spec: RunSpec, axes: Sequence[Axis]) -> list[Point]:
    mine = [axis for axis in axes if axis.concerns(spec)]
    if not mine:
        return [Point(spec)]
    found = []
    for values in itertools.product(*(axis.values for axis in mine)):
        settings = tuple(zip(mine, values, strict=True))
        made = spec
        for axis, value in settings:
            made = axis.applied(made, value)
        found.append(Point(dataclasses.replace(made, name=f"{spec.name}@{text_of(settings)}"), settings))
    return found


def edge_notes(runs: Sequence[Run], chosen: Sequence[Run] | None = None) -> list[str]:
    """For each recipe's best run, the learning rates and warm-ups on the edge of what was tried, each in a sentence.

    Roles whose rates always moved together, in whatever ratio, are one axis. What was tried at one value alone was not
    swept, and no warm-up is shorter than none.

    Args:
        runs: all that was tried.
        chosen: the best of each recipe; None: by the lowest final metric.
    """
    notes = []
    for best in best_of_recipe(runs) if chosen is None else chosen:
        tried = [run for run in runs if recipe_of(run) == recipe_of(best)]
        if final_metric(best) is None:
            if len(tried) > 1:
                notes.append(f"{best.spec.recipe}: no run has a final loss; try lower rates.")
            continue
        notes += [f"{best.spec.recipe}: {note}" for note in (*_rate_edges(best, tried), *_warmup_edges(best, tried))]
    return notes


def _rate_edges(best: Run, tried: Sequence[Run]) -> list[str]:
    own = best.spec.learning_rates
    together: dict[tuple[str, ...], list[str]] = {}
    for role, rate in own.items():
        ratios = tuple(
            f"{run.spec.learning_rates[role] / rate:.9g}" for run in tried if role in run.spec.learning_rates
        )
        together.setdefault(ratios, []).append(role)
    notes = []
    for ratios, roles in together.items():
        values = [float(ratio) for ratio in ratios]
        if min(values) == max(values) or 1.0 not in (min(values), max(values)):
            continue
        end, further = ("lowest", "lower") if min(values) == 1.0 else ("highest", "higher")
        sharing: dict[float, list[str]] = {}
        for role in roles:
            sharing.setdefault(own[role], []).append(role)
        each = [f"{'+'.join(names)} rate, {rate:g}" for rate, names in sharing.items()]
        said = f"the best {each[0]}, is" if len(each) == 1 else f"the best rates ({'; '.join(each)}) are"
        notes.append(
            f"{said} the {end} tried; try {further} ones before trusting {'it' if len(each) == 1 else 'them'}."
        )
    return notes


def _warmup_edges(best: Run, tried: Sequence[Run]) -> list[str]:
    own, values = warmup_of(best.spec), {warmup_of(run.spec) for run in tried} - {None}
    if own is None or len(values) < 2 or own not in (least := min(values), max(values)) or own == 0:  # pyright: ignore[reportArgumentType]
        return []
    end, further = ("shortest", "a shorter") if own == least else ("longest", "a longer")
    return [f"the best warm-up, {own} steps, is the {end} tried; try {further} one before trusting it."]


def warmup_of(spec: RunSpec) -> int | None:
    """The steps of a spec's warm-up; None if its schedule knows none."""
    return getattr(spec.schedule, "warmup", None)
