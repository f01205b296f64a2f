"""The figure of the unifying view, drawn from its records alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polargrad.lab.report.figures import INK, LIGHT, MUTED, Figure, style, titled_canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["figure"]

_BEFORE: dict[str, Any] = {"marker": "o", "color": MUTED, "markerfacecolor": "white"}
_AFTER: dict[str, Any] = {"marker": "s", "color": LIGHT[0]}


def figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Three panels over the optimizers: kappa of the Hessian and of the gradient before and after, and the descent."""
    rows = [record for record in records if record["kind"] == "measurement"]
    names = list(dict.fromkeys(row["optimizer"] for row in rows))
    with style():
        canvas = titled_canvas("What each optimizer conditions: curvature, gradient, descent", (9.6, 4.6))
        panels = [canvas.add_subplot(1, 3, 1)]
        panels += [canvas.add_subplot(1, 3, i, sharey=panels[0]) for i in (2, 3)]
        _dumbbells(panels[0], rows, names, "hessian_kappa", "preconditioned_kappa")
        panels[0].set_xlabel("condition number of the Hessian")
        _dumbbells(panels[1], rows, names, "gradient_kappa", "direction_kappa")
        panels[1].set_xlabel("condition number of the gradient")
        for y, name in enumerate(names):
            values = [row["efficiency"] for row in rows if row["optimizer"] == name]
            panels[2].plot([min(values), max(values)], [y, y], color=LIGHT[0], linewidth=2.0, alpha=0.45)
            panels[2].plot([statistics.median(values)], [y], "s", color=LIGHT[0])
        panels[2].set_xlim(0.0, 1.05)
        panels[2].set_xlabel("descent over the best step\nof that length in its norm")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)
        handles = [
            panels[0].plot([], [], linestyle="none", **_BEFORE, label="before")[0],
            panels[0].plot([], [], linestyle="none", **_AFTER, label="after (median over the run)")[0],
            panels[2].plot([], [], color=LIGHT[0], linewidth=2.0, alpha=0.45, label="range over the run")[0],
        ]
        canvas.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=8)
    return Figure("unifying-view", "Condition numbers and descent of every optimizer", canvas)


def _dumbbells(axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], before: str, after: str) -> None:
    """A line from the median before to the median after, on a logarithmic axis."""
    axes.set_xscale("log")
    for y, name in enumerate(names):
        own = [row for row in rows if row["optimizer"] == name]
        start = statistics.median(row[before] for row in own)
        finite = [row[after] for row in own if row[after] is not None and math.isfinite(row[after])]
        if finite:
            end = statistics.median(finite)
            axes.plot([start, end], [y, y], color=INK, linewidth=1.0, zorder=1)
            axes.plot([end], [y], zorder=3, **_AFTER)
        axes.plot([start], [y], zorder=2, **_BEFORE)
