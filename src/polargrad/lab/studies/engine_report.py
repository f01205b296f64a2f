"""Results of the engine's benchmark: the plot of time against error, the tables, and their files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from polargrad.lab.files import write_file
from polargrad.lab.report.figures import LIGHT, MUTED, Figure, save, style, titled_canvas
from polargrad.lab.studies.engine import PolarMeasurement, machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEERS = LIGHT[:2]  # shape and filling of the marks say the same again


def write(measurements: Sequence[PolarMeasurement], folder: Path) -> list[Path]:
    """Write polar.csv, polar.json (with the machine), polar.md and a plot for each dtype into a folder.

    Raises:
        FileExistsError: the folder already holds a benchmark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "polar.csv"
    if table.exists():
        raise FileExistsError(f"{table} exists; choose another folder, or remove it")
    rows = [asdict(measurement) for measurement in measurements]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, fieldnames=list(PolarMeasurement.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(rows)
    write_file(table, lines.getvalue())
    record = folder / "polar.json"
    write_file(record, json.dumps({"machine": machine(), "measurements": rows}, indent=1) + "\n")
    page = folder / "polar.md"
    write_file(page, markdown(measurements, machine()))
    figures = [pareto_figure(measurements, dtype) for dtype in dict.fromkeys(m.dtype for m in measurements)]
    return [table, record, page, *save(figures, folder)]


def markdown(measurements: Sequence[PolarMeasurement], machine: dict[str, Any]) -> str:
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
            mine = [next((m for m in group if m.contender == name and m.multiples), None) for group in here.values()]
            if not any(mine):
                continue
            cells = ["-" if m is None else f"{m.multiples:.3g} ({_number(m.error, '.0e')})" for m in mine]
            peaks = [m.peak_memory for m in mine if m is not None and m.peak_memory is not None]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {_number(max(peaks, default=None), '.2g')} |")
        notes = dict.fromkeys((m.contender, m.note) for group in here.values() for m in group if m.note)
        lines += ["", *(f"{name}: {note}" + "  " for name, note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def pareto_figure(measurements: Sequence[PolarMeasurement], dtype: str) -> Figure:
    """Time against error of one dtype, with a panel per batch.

    Args:
        measurements: those of other dtypes are left out.
        dtype: name of a torch dtype.
    """
    groups = {key: group for key, group in _groups(measurements).items() if key[1] == dtype}
    spectra = list(dict.fromkeys(key[2] for key in groups))
    shapes = list(dict.fromkeys(key[0] for key in groups))
    with style():
        title = "Polar decomposition: time against error. Circles: this library. Squares: others. Grey: the front."
        canvas = titled_canvas(title, (5.4 * len(spectra), 3.7 * len(shapes)))
        panels = canvas.subplots(len(shapes), len(spectra), squeeze=False)
        for (shape, _, spectrum), group in groups.items():
            _panel(panels[shapes.index(shape)][spectra.index(spectrum)], f"{shape}, {spectrum}, {dtype}", group)
        for row in panels:
            row[0].set_ylabel("error: max(orthogonality, backward error)")
        for axes in panels[-1]:
            axes.set_xlabel("time, in products A^T A of the same shape")
    return Figure(f"polar-{dtype}", f"Time against error of every polar method in {dtype}", canvas)


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


def _groups(measurements: Sequence[PolarMeasurement]) -> dict[tuple[str, str, str], list[PolarMeasurement]]:
    """The measurements of one batch together, in order."""
    groups: dict[tuple[str, str, str], list[PolarMeasurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.shape, measurement.dtype, measurement.spectrum), []).append(measurement)
    return groups


def _panel(axes: Axes, title: str, measurements: Sequence[PolarMeasurement]) -> None:
    points = [
        (m, m.multiples, max(m.error, 1e-17))
        for m in measurements
        if m.multiples and m.error is not None and math.isfinite(m.error)
    ]
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, fontsize=9)
    if not points:
        return
    front = pareto_front([(x, y) for _, x, y in points])
    axes.plot(*zip(*front, strict=True), color=MUTED, alpha=0.6, linewidth=1.2, drawstyle="steps-post", zorder=1)
    for measurement, x, y in points:
        color, marker = (_OURS, "o") if measurement.ours else (_PEERS, "s")
        face = color if measurement.ours else "white"
        axes.plot(x, y, marker, markersize=4.5, markeredgecolor=color, markerfacecolor=face)
    low, high = min(x for _, x, _ in points), max(x for _, x, _ in points)
    axes.set_xlim(low / 1.6, high * (high / low) ** 0.55 * 1.6)  # room for the names
    errors = [y for *_, y in points]
    bottom, top = math.log10(min(errors)) - 0.9, math.log10(max(errors)) + 0.9
    axes.set_ylim(10**bottom, 10**top)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _labels(axes, points, (top - bottom) / 24)


def _labels(axes: Axes, points: Sequence[tuple[PolarMeasurement, float, float]], gap: float) -> None:
    """Names beside the points, moved up or down where they would overlap; thin lines lead back."""
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
        arrow = {"arrowstyle": "-", "linewidth": 0.5, "color": MUTED, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            measurement.contender,
            (x, y),
            (10**left, 10**height),
            fontsize=7,
            color=_OURS if measurement.ours else _PEERS,
            va="center",
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            arrowprops=arrow if abs(height - math.log10(y)) > gap / 2 else None,
        )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
