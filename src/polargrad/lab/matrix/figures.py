"""The paper's figures, drawn from records alone: objective, condition numbers and nuclear norm, on logarithmic axes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polargrad.lab.matrix.configurations import Configuration
from polargrad.lab.matrix.experiment import Experiment
from polargrad.lab.report.plots import LIGHT, MUTED, Figure, figure_axes, logarithmic, style
from polargrad.lab.run.folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "curves", "figures"]

# One colour for each family of optimizers, in the order of `plots.LIGHT`.
_FAMILIES = ("PolarGrad", "Muon", "polar first", "momentum first", "Newton", "Adam")
_DASHES = ("-", (0, (4.5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
_SIZE = (6.6, 4.0)
# Key of a matrix record, what it is called, whether a logarithmic axis shows it best.
_PROBES = (
    ("condition_number", "condition number"),
    ("nuclear_norm", "nuclear norm"),
    ("stable_rank", "stable rank"),
    ("alignment", "alignment"),
)


@dataclass(frozen=True)
class Curve:
    """A figure over the steps, over all seeds.

    Args:
        x: steps or seconds.
        middle: the median.
        low: the lowest.
        high: the highest.
    """

    x: tuple[float, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curves(runs: Sequence[Run], kind: str, key: str, *, x: str = "step", parameter: str | None = None) -> Curve:
    """The median and the range over runs of one configuration, at the steps that some of them recorded.

    Args:
        runs: the same configuration on different seeds.
        kind: of record, "eval" or "matrix".
        key: of the figure; records that lack it, or have null or a figure that is not positive, are left out.
        x: "step", or "seconds" (then the median of the seconds at each step).
        parameter: of matrix records.
    """
    values: dict[int, list[float]] = {}
    places: dict[int, list[float]] = {}
    for run in runs:
        for record in run.of_kind(kind):
            value = record.get(key)
            if (parameter is None or record["parameter"] == parameter) and value is not None and value > 0.0:
                values.setdefault(record["step"], []).append(value)
                places.setdefault(record["step"], []).append(record[x])
    steps = sorted(values)
    return Curve(
        tuple(statistics.median(places[step]) for step in steps),
        tuple(statistics.median(values[step]) for step in steps),
        tuple(min(values[step]) for step in steps),
        tuple(max(values[step]) for step in steps),
    )


def figures(experiment: Experiment, runs: Sequence[Run]) -> list[Figure]:
    """Every figure that the records allow: first without momentum, then its variants beside plain PolarGrad."""
    known = {c.name: c for every in experiment.configurations.values() for c in every}
    there = [known[name] for name in dict.fromkeys(run.spec.recipe for run in runs) if name in known]
    of = {c.name: [run for run in runs if run.spec.recipe == c.name] for c in there}
    with_momentum = [c for c in there if c.momentum]
    first = [c for c in there if not c.momentum]
    groups = [("", "", first)] if first else []
    if with_momentum:
        beside = [c for c in first if c.family == "PolarGrad"][:2]
        groups.append(("momentum-", " with momentum", [*beside, *with_momentum]))
    drawn = []
    with style():
        for key, title, group in groups:
            drawn += _group(experiment, key, title, group, of)
    return drawn


def _group(
    experiment: Experiment,
    prefix: str,
    suffix: str,
    group: Sequence[Configuration],
    of: Mapping[str, Sequence[Run]],
) -> list[Figure]:
    label = next(iter(of.values()))[0].spec.objective.metric_label
    panels = [
        ("objective", f"Objective{suffix}", label, {"kind": "eval", "key": "gap"}, "iteration"),
        ("objective-seconds", f"Objective against time{suffix}", label, _SECONDS, "seconds"),
        (
            "residual-condition",
            f"Condition number of the residual{suffix}",
            "condition number",
            {"kind": "eval", "key": "residual_condition_number"},
            "iteration",
        ),
        ("held-out", f"Held-out entries{suffix}", "root mean squared error", _HELD_OUT, "iteration"),
    ]
    parameters = dict.fromkeys(
        record["parameter"] for runs in of.values() for run in runs for record in run.of_kind("matrix")
    )
    for parameter in parameters:
        where = f" in {parameter}" if len(parameters) > 1 else ""
        panels += [
            (
                f"gradient-{key.replace('_', '-')}-{parameter}",
                f"{name.capitalize()} of the gradient{where}{suffix}",
                name,
                {"kind": "matrix", "key": key, "parameter": parameter},
                "iteration",
            )
            for key, name in _PROBES
        ]
    drawn = (
        _figure(prefix + key, title, experiment.title, ylabel, xlabel, group, of, what)
        for key, title, ylabel, what, xlabel in panels
    )
    return [figure for figure in drawn if figure is not None]


_SECONDS = {"kind": "eval", "key": "gap", "x": "seconds"}
_HELD_OUT = {"kind": "eval", "key": "held_out_rmse"}


def _figure(
    key: str,
    title: str,
    section: str,
    ylabel: str,
    xlabel: str,
    group: Sequence[Configuration],
    of: Mapping[str, Sequence[Run]],
    what: Mapping[str, Any],
) -> Figure | None:
    """One line for each configuration, a band where it ran on several seeds, a cross where it diverged."""
    found = [(c, curves(of[c.name], **what)) for c in group]
    found = [(c, curve) for c, curve in found if curve.x]
    if not found:
        return None
    canvas, axes = figure_axes(title, size=_SIZE)
    seen: dict[str, int] = {}
    handles, names, crosses = [], [], []
    for configuration, curve in found:
        # A family beyond the palette is grey, and told from the dark one by its dashes.
        variant = seen.get(configuration.family, 0 if configuration.family in _FAMILIES else 3)
        seen[configuration.family] = variant + 1
        color = _color(configuration.family)
        (line,) = axes.plot(
            curve.x, curve.middle, color=color, linestyle=_DASHES[variant % len(_DASHES)], linewidth=1.5
        )
        if curve.low != curve.high:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
        diverged = any(run.status == "diverged" for run in of[configuration.name])
        if diverged:
            crosses.append((curve.x[-1], curve.middle[-1], color))
        handles.append(line)
        names.append(configuration.label + (" (diverged)" if diverged else ""))
    steady = [curve for c, curve in found if all(run.status != "diverged" for run in of[c.name])]
    _frame(axes, [curve for _, curve in found], steady)
    if shown := [curve.x[-1] for c, curve in found if c.momentum]:
        axes.set_xlim(-0.02 * max(shown), 1.02 * max(shown))  # what stands beside them may have run for longer
    for x, y, color in crosses:
        axes.plot(x, min(y, axes.get_ylim()[1]), marker="X", markersize=7, color=color, clip_on=False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    canvas.legend(handles, names, loc="outside right center", fontsize=8, handlelength=3.2)
    return Figure(key, title, section, canvas)


def _color(family: str) -> str:
    return LIGHT[_FAMILIES.index(family)] if family in _FAMILIES else MUTED


def _frame(axes: Axes, drawn: Sequence[Curve], steady: Sequence[Curve]) -> None:
    """A logarithmic axis over what the lines span; those that diverged may not flatten the steady ones."""
    low = min(min(curve.low) for curve in drawn)
    high = max(max(curve.high) for curve in steady or drawn)
    if steady:
        high = max(high, min(max(max(curve.high) for curve in drawn), 10.0 * max(curve.middle[0] for curve in drawn)))
    logarithmic(axes, low, high)
    if high > 3.0 * low:
        margin = (high / low) ** 0.05
        axes.set_ylim(low / margin, high * margin)
