"""Figures of a grid: how runs ended, and how rough the way was, against the learning rate, the warm-up or another axis.

A panel for each recipe, in which every line is a setting of the other axes; with one axis alone a single panel, in
which every line is a recipe. A cross at the top is a run that diverged, a triangle there a value beyond the axis.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from polargrad.lab.comparison.analysis import Replicates, condition_number
from polargrad.lab.comparison.grid import Grid, GridRow
from polargrad.lab.comparison.sweep import Axis
from polargrad.lab.report.figures import (
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
_TOP = 0.955  # height of crosses and triangles, as part of the axes
_MARKS = {"X": "diverged", "^": "beyond the axis"}

# The title of a panel, and its lines: each a row with its number among all lines of the figure.
_Panel = tuple[str, Sequence[tuple[int, GridRow]]]


@dataclass(frozen=True)
class _Quantity:
    """What is drawn: a number for each seed of a cell; above the limit a triangle stands at the top instead."""

    label: str
    values: Callable[[Replicates], Sequence[float]]
    limit: float = math.inf
    scale: str = "linear"


def figures(grid: Grid) -> list[Figure]:
    """Final metric, spikes, rise and condition numbers along the main axis; of several axes the best along each."""
    objective, along = grid.cells[0].runs[0].spec.objective, grid.along
    limit = math.inf if grid.start is None else 1.02 * grid.start
    end, unit = f"Final {objective.metric_label}", f"final {objective.metric_label} ({objective.metric_unit})"
    final = _Quantity(unit, lambda cell: cell.final.values, limit)
    spikes = _Quantity("loss spikes of a run", lambda cell: cell.spikes.values, scale="integer")
    rise = _Quantity("largest rise of the training loss", _rises, scale="logarithmic")
    rows = grid.rows()
    if any(row.settings for row in rows):
        names = list(dict.fromkeys(row.setting for row in rows))
        panels = [(name, [(names.index(r.setting), r) for r in grid.rows(name)]) for name in grid.recipes]
    else:
        names, panels = [row.recipe for row in rows], [("", list(enumerate(rows)))]
    with style():
        drawn = [
            _figure("grid-final", f"{end} against {along.title}", along, panels, names, final),
            _figure("grid-spikes", f"Loss spikes against {along.title}", along, panels, names, spikes),
            _figure("grid-rise", f"Largest loss rise against {along.title}", along, panels, names, rise),
        ]
        for number, axis in enumerate(grid.axes if len(grid.axes) > 1 else ()):
            best = [(grid.recipes.index(row.recipe), row) for row in grid.best_along(axis)]
            panel = f"the best over {' and '.join(other.label for other in grid.axes if other != axis)}", best
            title = f"{end} against {axis.title}"
            drawn.append(_figure(f"grid-best-{number}", title, axis, [panel], grid.recipes, final))
        for number, role in enumerate(grid.probed):
            title = f"Condition number of the gradient ({role}) against {along.title}"
            drawn.append(_figure(f"grid-condition-{number}", title, along, panels, names, _condition(role)))
    return drawn


def _rises(cell: Replicates) -> Sequence[float]:
    """The rises of a cell, none if all of its runs diverged: theirs have no bound."""
    return () if cell.diverged == len(cell.runs) else cell.rise.values


def _condition(role: str) -> _Quantity:
    def values(cell: Replicates) -> list[float]:
        return [value for run in cell.runs if (value := condition_number(run, role)) is not None]

    return _Quantity("median over the run", values, scale="logarithmic")


def _figure(
    key: str, title: str, axis: Axis, panels: Sequence[_Panel], names: Sequence[str], what: _Quantity
) -> Figure:
    columns = min(len(panels), _MOST_COLUMNS)
    lines = -(-len(panels) // columns)
    canvas = titled_canvas(title, (4.8 if columns == 1 else 0.7 + 2.5 * columns, 0.8 + 2.5 * lines))
    placed = list(canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    marks: set[str] = set()
    for index, (axes, (panel, rows)) in enumerate(zip(placed, panels, strict=False)):
        axes.set_title(panel, loc="left", fontsize=9, parse_math=False)
        for number, row in rows:
            marks |= _draw(axes, axis, row, what, line_style(number), 0.09 * (number - (len(names) - 1) / 2))
        if index % columns == 0:
            axes.set_ylabel(what.label)
        if index + columns >= len(panels):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(axis.scale)
    for axes in placed[len(panels) :]:
        axes.set_visible(False)
    _horizontal(placed[0], axis)
    values = [value for _, rows in panels for _, row in rows for cell in row.cells for value in what.values(cell)]
    _vertical(placed[0], [value for value in values if value <= what.limit and math.isfinite(value)], what.scale)
    handles = [Line2D([], [], **line_style(index)) for index in range(len(names))]
    handles += [Line2D([], [], color=MUTED, marker=m, linestyle="", markersize=6.5) for m in _MARKS if m in marks]
    legend(canvas, handles, [*names, *(text for mark, text in _MARKS.items() if mark in marks)])
    return Figure(key, title, canvas)


def _draw(axes: Axes, axis: Axis, row: GridRow, what: _Quantity, look: dict[str, Any], side: float) -> set[str]:
    """Draw one line with its band and its marks at the top, `side` inches beside their place; return the marks."""
    x, spreads, marks = [], [], set[str]()
    place = axes.get_xaxis_transform() + ScaledTranslation(side, 0, axes.figure.dpi_scale_trans)
    for cell in row.cells:
        x.append(_position(axis, cell.value(axis)))
        values = what.values(cell)
        beyond = any(value > what.limit or math.isinf(value) for value in values)
        for mark in ["X"] * bool(cell.diverged) + ["^"] * beyond:
            axes.plot(x[-1:], [_TOP], mark, color=look["color"], markersize=6.5, transform=place, clip_on=False)
            marks.add(mark)
        finite = [value for value in values if math.isfinite(value)] or [math.nan]  # NaN is not drawn
        spreads.append((statistics.fmean(finite), min(finite), max(finite)))
    draw_line(axes, Curve(x, *map(list, zip(*spreads, strict=True))), look)
    return marks


def _position(axis: Axis, value: Any) -> float:
    """Learning rates stand where they are on a logarithmic axis, other values one after the other."""
    return float(value) if axis.is_rate else float(axis.ordered.index(value))


def _horizontal(axes: Axes, axis: Axis) -> None:
    at = [_position(axis, value) for value in axis.ordered]
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in axis.ordered]
    if axis.is_rate:
        axes.set_xscale("log")
    apart = max(1, -(-sum(len(text) + 2 for text in texts) // 36))
    axes.set_xticks(at[::apart], texts[::apart])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(at) < 2:
        axes.set_xlim(*((at[0] / 1.15, at[0] * 1.3) if axis.is_rate else (at[0] - 0.15, at[0] + 0.15)))


def _vertical(axes: Axes, shown: Sequence[float], scale: str) -> None:
    """From the lowest value to the highest, with room above for the marks."""
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if scale == "logarithmic" and low > 0:
        logarithmic(axes, low, high)
    if axes.get_yscale() == "log":
        room = (high / low) ** 0.08 if high > low else 1.2
        axes.set_ylim(low / room, high * room**2)
        return
    if scale == "integer":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        low, high = 0.0, max(high, 1.0)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - room, high + 2 * room)
