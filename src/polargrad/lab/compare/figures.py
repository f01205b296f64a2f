"""Figures of a grid: how runs ended, and how rough the way was, against the learning rate, the warm-up or what else.

A panel for each recipe, in which every line is a setting of the other axes; with one axis alone a single panel, in
which every line is a recipe. What diverged is a cross at the top, what lies beyond the axis a triangle there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from polargrad.lab.compare.analysis import Replicates, condition_number
from polargrad.lab.compare.grid import Grid, GridRow
from polargrad.lab.compare.sweep import Axis
from polargrad.lab.report.figures import (
    LIGHT,
    MUTED,
    Curve,
    Figure,
    draw_line,
    legend,
    line_style,
    logarithmic,
    style,
    titled_canvas,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_COLUMNS = 4
_TOP = 0.955  # where crosses and triangles stand, of the height of the axes


@dataclass(frozen=True)
class _Panel:
    """One axes of a figure: a line for each row, with its number among all lines of the figure."""

    title: str
    lines: Sequence[tuple[int, GridRow]]


@dataclass(frozen=True)
class _Quantity:
    """What is drawn: a number for each seed of a cell, infinite beyond every axis; None as high as it comes."""

    label: str
    values: Callable[[Replicates], Sequence[float]]
    limit: float | None = None
    kind: str = "linear"


def figures(grid: Grid) -> list[Figure]:
    """Final metric, spikes, rise and condition numbers along the main axis; of several axes the best along each."""
    objective = grid.cells[0].runs[0].spec.objective
    unit = f"{objective.metric_label} ({objective.metric_unit})"
    limit = None if grid.start is None else 1.02 * grid.start
    final = _Quantity(f"final {unit}", lambda cell: cell.final.values, limit)
    spikes = _Quantity("loss spikes of a run", lambda cell: cell.spikes.values, kind="whole")
    rise = _Quantity("largest rise of the training loss", _rises, kind="logarithmic")
    panels, names = _panels(grid)
    title = f"Final {objective.metric_label} against {grid.along.title}"
    with style():
        drawn = [
            _figure("grid-final", title, grid.along, panels, names, final),
            _figure("grid-spikes", f"Loss spikes against {grid.along.title}", grid.along, panels, names, spikes),
            _figure("grid-rise", f"Largest loss rise against {grid.along.title}", grid.along, panels, names, rise),
        ]
        for number, axis in enumerate(grid.axes if len(grid.axes) > 1 else ()):
            rows = [(grid.recipes.index(row.recipe), row) for row in grid.best_along(axis)]
            others = " and ".join(other.label for other in grid.axes if other != axis)
            panel = _Panel(f"the best over {others}", rows)
            title = f"Final {objective.metric_label} against {axis.title}"
            drawn.append(_figure(f"grid-best-{number}", title, axis, [panel], grid.recipes, final))
        for number, role in enumerate(grid.probed):
            title = f"Condition number of the gradient ({role}) against {grid.along.title}"
            condition = _Quantity("median over the run", partial(_conditions, role), kind="logarithmic")
            drawn.append(_figure(f"grid-condition-{number}", title, grid.along, panels, names, condition))
    return drawn


def _panels(grid: Grid) -> tuple[list[_Panel], list[str]]:
    """The panels, and the names of their lines."""
    rows = grid.rows()
    if all(not row.settings for row in rows):
        return [_Panel("", list(enumerate(rows)))], [row.recipe for row in rows]
    names = list(dict.fromkeys(row.setting for row in rows))
    return [
        _Panel(recipe, [(names.index(row.setting), row) for row in grid.rows(recipe)]) for recipe in grid.recipes
    ], names


def _figure(
    key: str, title: str, axis: Axis, panels: Sequence[_Panel], names: Sequence[str], what: _Quantity
) -> Figure:
    columns = min(len(panels), _MOST_COLUMNS)
    lines = -(-len(panels) // columns)
    canvas = titled_canvas(title, (4.8 if columns == 1 else 0.7 + 2.5 * columns, 0.8 + 2.5 * lines))
    placed = canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    numbers = [value for panel in panels for _, row in panel.lines for cell in row.cells for value in what.values(cell)]
    shown = [value for value in numbers if value <= (what.limit or math.inf) and math.isfinite(value)]
    used: set[str] = set()
    for index, axes in enumerate(placed):
        if index >= len(panels):
            axes.set_visible(False)
            continue
        axes.set_title(panels[index].title, loc="left", fontsize=9, parse_math=False)
        for number, row in panels[index].lines:
            used |= _draw(axes, axis, number, len(names), row, what)
        if index % columns == 0:
            axes.set_ylabel(what.label)
        if index + columns >= len(panels):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(axis.scale)
    _horizontal(placed[0], axis)
    _vertical(placed[0], shown, what)
    handles, said = _handles(names, used)
    legend(canvas, handles, said)
    return Figure(key, title, canvas)


def _draw(axes: Axes, axis: Axis, number: int, count: int, row: GridRow, what: _Quantity) -> set[str]:
    """One line with its band, and the marks at the top; which kinds of marks there are."""
    colour, used = LIGHT[number % len(LIGHT)], set[str]()
    x, spreads = [], []
    for cell in row.cells:
        at, values = _position(axis, cell.value(axis)), what.values(cell)
        beyond = any(value > (what.limit or math.inf) or math.isinf(value) for value in values)
        for kind, marker in (("diverged", "X"), ("beyond", "^")):
            if cell.diverged if kind == "diverged" else beyond:
                side = ScaledTranslation((number - (count - 1) / 2) * 0.09, 0, axes.figure.dpi_scale_trans)
                spot = axes.get_xaxis_transform() + side
                axes.plot([at], [_TOP], marker, color=colour, markersize=6.5, transform=spot, clip_on=False)
                used.add(kind)
        finite = [value for value in values if math.isfinite(value)] or [math.nan]  # NaN is not drawn
        x.append(at)
        spreads.append((statistics.fmean(finite), min(finite), max(finite)))
    draw_line(axes, Curve(x, *map(list, zip(*spreads, strict=True))), line_style(number, len(x)))
    return used


def _rises(cell: Replicates) -> list[float]:
    """Those of runs that came to their end: a run that diverged rises as far as it is let."""
    return [] if cell.diverged == len(cell.runs) else list(cell.rise.values)


def _conditions(role: str, cell: Replicates) -> list[float]:
    found = [condition_number(run, role) for run in cell.runs]
    return [value for value in found if value is not None]


def _position(axis: Axis, value: Any) -> float:
    """Learning rates stand where they are, on a logarithmic axis; other values one after the other."""
    return float(value) if axis.is_rate else float(axis.ordered.index(value))


def _horizontal(axes: Axes, axis: Axis) -> None:
    at, texts = [_position(axis, value) for value in axis.ordered], [_short(value) for value in axis.ordered]
    if axis.is_rate:
        axes.set_xscale("log")
    apart = max(1, -(-sum(len(text) + 2 for text in texts) // 36))
    axes.set_xticks(at[::apart], texts[::apart])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    pad = 0.15 if len(at) < 2 else 0.0
    if pad:
        axes.set_xlim(at[0] / (1 + pad) if axis.is_rate else at[0] - pad, at[0] * (1 + pad) + pad)


def _vertical(axes: Axes, shown: Sequence[float], what: _Quantity) -> None:
    """From the lowest value to the highest, with room above for the marks."""
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if what.kind == "logarithmic" and low > 0:
        logarithmic(axes, low, high)
    if axes.get_yscale() == "log":
        room = (high / low) ** 0.08 if high > low else 1.2
        axes.set_ylim(low / room, high * room**2)
        return
    if what.kind == "whole":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        low, high = 0.0, max(high, 1.0)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - room, high + 2 * room)


def _handles(names: Sequence[str], used: set[str]) -> tuple[list[Line2D], list[str]]:
    handles = [Line2D([], [], **line_style(index, 1)) for index in range(len(names))]
    said = list(names)
    for kind, marker, text in (("diverged", "X", "diverged"), ("beyond", "^", "beyond the axis")):
        if kind in used:
            handles.append(Line2D([], [], color=MUTED, marker=marker, linestyle="", markersize=6.5))
            said.append(text)
    return handles, said


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
