"""Curves of recipes over several seeds: the mean, and a band from the lowest to the highest seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from polargrad.lab.compare.spread import Group
from polargrad.lab.report.plots import LIGHT, Figure, figure_axes, legend, line_style, style


def figures(shown: Sequence[Group]) -> list[Figure]:
    """The metric against steps and against seconds.

    Args:
        shown: one line and band each, in the order given.
    """
    with style():
        return [
            _curve(shown, "step", "steps", "steps"),
            _curve(shown, "seconds", "seconds", "seconds of forward, backward and optimizer"),
        ]


def _curve(shown: Sequence[Group], key: str, short: str, long: str) -> Figure:
    objective = shown[0].runs[0].spec.objective
    title = f"{objective.metric_label.capitalize()} against {short}"
    several = any(len(group.runs) > 1 for group in shown)
    canvas, axes = figure_axes(title, "mean, and band from the lowest to the highest seed" if several else "")
    lines = []
    for index, group in enumerate(shown):
        points = _points(group, key, objective.metric)
        x, mean, low, high = ([point[k] for point in points] for k in range(4))
        lines += axes.plot(x, mean, **line_style(index, len(points)))
        axes.fill_between(x, low, high, color=LIGHT[index % len(LIGHT)], alpha=0.2, linewidth=0)
    starts = [point[3] for group in shown for point in _points(group, key, objective.metric)[:1]]
    if starts and axes.get_ylim()[1] > (top := 1.06 * max(starts)):
        axes.set_ylim(top=top)  # a run that blows up may not flatten the others
    axes.set_xlabel(long)
    axes.set_ylabel(f"{objective.metric_label} ({objective.metric_unit})")
    legend(canvas, lines, [group.recipe for group in shown])
    return Figure(f"loss-{short}", title, "Loss", canvas)


def _points(group: Group, key: str, metric: str) -> list[tuple[float, float, float, float]]:
    """(mean of the key, mean, lowest and highest metric) of each evaluation that every seed has."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for run in group.runs:
        for record in run.of_kind("eval"):
            if record.get(metric) is not None:
                by_step.setdefault(record["step"], []).append((record[key], record[metric]))
    points = []
    for step in sorted(by_step):
        found = by_step[step]
        if len(found) == len(group.runs):
            values = [value for _, value in found]
            points.append((statistics.fmean(x for x, _ in found), statistics.fmean(values), min(values), max(values)))
    return points
