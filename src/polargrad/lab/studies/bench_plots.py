"""What a reader sees of the polar benchmark: the plot of time against error, and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from polargrad.lab.studies.bench_polar import Measurement

__all__ = ["markdown", "pareto_front", "pareto_plot"]

# Two of Okabe and Ito's colours, which colour-blind readers tell apart; shape and filling say the same again.
_OURS, _BESIDE, _FRONT, _INK = "#0072b2", "#d55e00", "#9aa1ab", "#1f2430"
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "polargrad",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#5a6272",
    "text.color": _INK,
}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates, from the smallest first coordinate on.

    Example:
        >>> pareto_front([(1.0, 3.0), (2.0, 1.0), (3.0, 2.0)])
        [(1.0, 3.0), (2.0, 1.0)]
    """
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _groups(measurements: Sequence[Measurement]) -> dict[tuple[str, str, str], list[Measurement]]:
    """The measurements of one problem together, in order."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.shape, measurement.dtype, measurement.spectrum), []).append(measurement)
    return groups


def _plottable(measurement: Measurement) -> bool:
    return bool(measurement.multiples and measurement.error is not None and math.isfinite(measurement.error))


def _panel(axes: Axes, title: str, measurements: Sequence[Measurement]) -> None:
    points = [(m, float(m.multiples or 0), max(float(m.error or 0), 1e-17)) for m in measurements if _plottable(m)]
    axes.set(xscale="log", yscale="log", title=title)
    axes.title.set_fontsize(9)
    if not points:
        return
    front = pareto_front([(x, y) for _, x, y in points])
    axes.plot(*zip(*front, strict=True), color=_FRONT, linewidth=1.2, drawstyle="steps-post", zorder=1)
    for measurement, x, y in points:
        colour = _OURS if measurement.ours else _BESIDE
        axes.plot(
            x,
            y,
            marker="o" if measurement.ours else "s",
            markersize=4.5,
            markerfacecolor=colour if measurement.ours else "white",
            markeredgecolor=colour,
            linestyle="none",
        )
    low, high = min(x for _, x, _ in points), max(x for _, x, _ in points)
    axes.set_xlim(low / 1.6, high * (high / low) ** 0.55 * 1.6)
    errors = [y for *_, y in points]
    bottom, top = math.log10(min(errors)) - 0.9, math.log10(max(errors)) + 0.9
    axes.set_ylim(10**bottom, 10**top)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _labels(axes, points, (top - bottom) / 24)


def _labels(axes: Axes, points: Sequence[tuple[Measurement, float, float]], gap: float) -> None:
    """Names beside the points, moved up or down where they would lie on each other; thin lines lead back."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    span = math.log10(axes.get_xlim()[1] / axes.get_xlim()[0])
    marker = 0.012 * span
    # Names must not lie on points either.
    taken = [(math.log10(x) - marker, math.log10(x) + marker, math.log10(y)) for _, x, y in points]
    for measurement, x, y in sorted(points, key=lambda point: (point[2], point[1])):
        left = math.log10(x) + 1.5 * marker
        right = left + 0.0155 * span * len(measurement.contender)
        steps = sorted((sign * step * gap / 3 for step in range(60) for sign in (1, -1)), key=abs)
        heights = [math.log10(y) + step for step in steps if low + gap / 2 < math.log10(y) + step < high - gap / 2]
        free = (h for h in heights if not any(abs(h - t) < gap and left < e and right > b for b, e, t in taken))
        height = next(free, math.log10(y))
        taken.append((left, right, height))
        axes.annotate(
            measurement.contender,
            (x, y),
            (10**left, 10**height),
            fontsize=7,
            color=_OURS if measurement.ours else _BESIDE,
            va="center",
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": _FRONT, "shrinkA": 0, "shrinkB": 2}
            if abs(height - math.log10(y)) > gap / 2
            else None,
        )


def pareto_plot(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """Time against error, one panel per problem and one figure per dtype; each as SVG and PNG."""
    written = []
    for dtype in dict.fromkeys(m.dtype for m in measurements):
        groups = {key: group for key, group in _groups(measurements).items() if key[1] == dtype}
        spectra = list(dict.fromkeys(key[2] for key in groups))
        shapes = list(dict.fromkeys(key[0] for key in groups))
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(5.4 * len(spectra), 3.7 * len(shapes)), layout="constrained")
            panels = figure.subplots(len(shapes), len(spectra), squeeze=False)
            for (shape, _, spectrum), group in groups.items():
                axes = panels[shapes.index(shape)][spectra.index(spectrum)]
                _panel(axes, f"{shape}, {spectrum}, {dtype}", group)
            for row in panels:
                row[0].set_ylabel("error: max(orthogonality, backward error)")
            for axes in panels[-1]:
                axes.set_xlabel("time, in products A^T A of the same shape")
            figure.suptitle(
                "Polar decomposition: time against error. Filled circles: this library. Open squares: others. "
                "Grey: the front.",
                fontsize=9,
            )
            for ending in ("svg", "png"):
                path = folder / f"polar-{dtype}.{ending}"
                figure.savefig(path, dpi=130, metadata={"Date": None} if ending == "svg" else None)
                written.append(path)
    return written


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def markdown(measurements: Sequence[Measurement], machine: dict[str, Any]) -> str:
    """One table per shape and dtype: a row per contender, time and error per spectrum."""
    known = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    lines = [
        "Times are multiples of one product A^T A of the same shape and dtype, timed in the same run; errors are",
        "max(||U^T U - I||_F / sqrt(k), ||A - U H||_F / ||A||_F), the first on the singular vectors that A determines",
        "(sigma >= 100 eps sigma_max where A is singular to working precision); memory is the largest allocation on",
        "top of A, in sizes of A, without the workspace of LAPACK.",
        "",
        f"Machine: {known}.",
    ]
    groups = _groups(measurements)
    for shape, dtype in dict.fromkeys((m.shape, m.dtype) for m in measurements):
        here = {key[2]: group for key, group in groups.items() if key[:2] == (shape, dtype)}
        gemm = next((m.gemm_seconds for group in here.values() for m in group if m.gemm_seconds), None)
        lines += ["", f"### {shape}, {dtype} (one product: {_number(gemm and 1e3 * gemm, '.3g')} ms)", ""]
        lines += ["| method | " + " | ".join(here) + " | memory |", "|---|" + "---|" * (len(here) + 1)]
        for name in dict.fromkeys(m.contender for group in here.values() for m in group):
            mine = [next((m for m in group if m.contender == name), None) for group in here.values()]
            if all(m is None or m.multiples is None for m in mine):
                continue
            cells = [
                "-" if m is None or m.multiples is None else f"{m.multiples:.3g} ({_number(m.error, '.0e')})"
                for m in mine
            ]
            peaks = [m.peak_memory for m in mine if m is not None and m.peak_memory is not None]
            memory = _number(max(peaks) if peaks else None, ".2g")
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {memory} |")
        notes = dict.fromkeys((m.contender, m.note) for group in here.values() for m in group if m.note)
        lines += ["", *(f"{name}: {note}" + "  " for name, note in notes)] if notes else []
    return "\n".join(lines) + "\n"
