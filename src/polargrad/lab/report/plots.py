"""Figures, drawn from records alone.

Every line has a colour (after Okabe and Ito's palette, which colour-blind readers can tell apart), a dash pattern and a
marker of its own. As SVG inside a page the colours become custom properties of CSS: one drawing for light and dark.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from polargrad.lab.compare.analysis import baseline_of, final_metric
from polargrad.lab.run.folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008), the two lightest left out; in dark pages their lighter relatives.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b3468c", "#b07c00", "#3f3f46")
DARK = ("#56b4e9", "#ff9147", "#2fc79b", "#e39ac6", "#f0c340", "#c9ccd3")
INK, MUTED, RULE = "#1f2430", "#5a6272", "#d5d9e0"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "polargrad",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_SIZE = (4.8, 3.3)
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", **{c: f"--run-{i}" for i, c in enumerate(LIGHT)}}

# what a matrix record measures: its key, how it is called, and the section's title
MATRIX_FIGURES = (("condition_number", "condition number"), ("nuclear_norm", "nuclear norm"))


@dataclass(frozen=True)
class Figure:
    """A drawing and what a reader is told about it.

    Args:
        key: its name as a file, without ending.
        title: what it shows, in plain text.
        section: figures of one section stand together.
        canvas: matplotlib's figure.
    """

    key: str
    title: str
    section: str
    canvas: Canvas

    @property
    def is_wide(self) -> bool:
        """Whether it wants a page's whole width for its text to be read."""
        return self.canvas.get_size_inches()[0] > 1.5 * _SIZE[0]


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Every figure that the runs' records allow: loss against steps and seconds, then each probed matrix.

    Args:
        runs: drawn in one colour each, in the order given.

    Returns:
        The figures in the order in which a report shows them.
    """
    with style():
        return [
            _loss(runs, "step", "steps", "steps"),
            _loss(runs, "seconds", "seconds", "seconds of forward, backward and optimizer"),
            *(figure for key, name in MATRIX_FIGURES for figure in _matrices(runs, key, name)),
        ]


def save(drawn: Sequence[Figure], folder: Path) -> list[Path]:
    """Write every figure as SVG and PNG into a folder and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in drawn:
        with style():
            figure.canvas.savefig(folder / f"{figure.key}.svg", metadata={"Date": None})
            figure.canvas.savefig(folder / f"{figure.key}.png", dpi=160)
        paths += [folder / f"{figure.key}.svg", folder / f"{figure.key}.png"]
    return paths


def inline_svg(figure: Figure) -> str:
    """The figure as an SVG element for a page that defines --ink, --muted, --rule and --run-0, --run-1, ...

    Identifiers get the figure's key in front, since all figures of a page share one space of names. Text in it has been
    escaped by matplotlib's XML writer.
    """
    buffer = BytesIO()
    with style():
        figure.canvas.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    return re.sub(r"<[^>]*>", lambda tag: _for_page(tag[0], figure.key), svg)


def _for_page(tag: str, key: str) -> str:
    """One tag with its identifiers and colours made fit for a page; text between tags is left alone."""
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", tag)
    return re.sub("|".join(_VARIABLES), lambda colour: f"var({_VARIABLES[colour[0]]})", tag)


@contextmanager
def style() -> Iterator[None]:
    """Our style, and silence about letters that the font lacks: a run may be called anything."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _loss(runs: Sequence[Run], key: str, short: str, long: str) -> Figure:
    """The metric at every evaluation, the training loss faintly behind it, and the level that the baseline ended on."""
    objective = runs[0].spec.objective
    title = f"{objective.metric_label.capitalize()} against {short}"
    canvas, axes = figure_axes(title)
    lines = []
    for index, run in enumerate(runs):
        training = [(record[key], record["loss"]) for record in run.of_kind("step") if record["loss"] is not None]
        axes.plot(*_columns(training), color=LIGHT[index % len(LIGHT)], linewidth=0.7, alpha=0.28)
        evaluations = [record for record in run.of_kind("eval") if record.get(objective.metric) is not None]
        lines += axes.plot(
            *_columns([(record[key], record[objective.metric]) for record in evaluations]),
            **line_style(index, len(evaluations)),
        )
    level = final_metric(baseline_of(runs))
    if level is not None and len(runs) > 1:
        axes.axhline(level, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.5)), zorder=1)
    _hide_divergence(axes, runs)
    axes.set_xlabel(long)
    axes.set_ylabel(f"{objective.metric_label} ({objective.metric_unit})")
    legend(canvas, lines, [run.spec.name for run in runs])
    return Figure(f"loss-{short}", title, "Loss", canvas)


def _matrices(runs: Sequence[Run], key: str, name: str) -> Iterator[Figure]:
    """One figure for each probed matrix: a figure of its raw gradient over the steps, on a logarithmic axis."""
    records = [record for run in runs for record in run.of_kind("matrix")]
    for number, (role, parameter) in enumerate(dict.fromkeys((r["role"], r["parameter"]) for r in records)):
        curves = [
            [
                (record["step"], record[key])
                for record in run.of_kind("matrix")
                if record["parameter"] == parameter and record.get(key) is not None and record[key] > 0
            ]
            for run in runs
        ]
        values = [value for curve in curves for _, value in curve]
        if not values:
            continue
        canvas, axes = figure_axes(f"{role}: {name} of the gradient", parameter)
        drawn = [
            (i, *axes.plot(*_columns(curve), **line_style(i, len(curve)))) for i, curve in enumerate(curves) if curve
        ]
        logarithmic(axes, min(values), max(values))
        axes.set_xlabel("steps")
        axes.set_ylabel(name)
        legend(canvas, [line for _, line in drawn], [runs[index].spec.name for index, _ in drawn])
        title = f"{name.capitalize()} of the gradient of {parameter} ({role})"
        yield Figure(f"{key.replace('_', '-')}-{number}", title, f"{name.capitalize()} of the gradient", canvas)


def figure_axes(title: str, subtitle: str = "", size: tuple[float, float] = _SIZE) -> tuple[Canvas, Axes]:
    """An empty figure of our form, with its title at the left; within `style()`."""
    canvas = Canvas(figsize=size)
    axes = canvas.add_subplot()
    canvas.suptitle(title, x=0.012, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    if subtitle:
        axes.set_title(subtitle, loc="left", fontsize=8, color=MUTED, parse_math=False)
    return canvas, axes


def line_style(index: int, points: int) -> dict[str, Any]:
    """Colour, dashes and marker of the run with this number; of many points some twenty are marked."""
    return {
        "color": LIGHT[index % len(LIGHT)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markevery": max(1, points // 20),
    }


def legend(canvas: Canvas, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Names under the axes, which keep their height; set after the fact, since matplotlib reads labels with $ or _."""
    if not lines:
        return
    shortened = [name if len(name) <= 48 else name[:47] + "…" for name in names]
    lengths = [len(name) + 6 for name in shortened]
    width, height = canvas.get_size_inches()
    room = int(56 * width / _SIZE[0])
    columns = len(names) if sum(lengths) < room else max(1, room // max(lengths))
    rows = -(-len(names) // columns)
    canvas.set_size_inches(width, height + 0.19 * (rows - 1))
    legend = canvas.legend(lines, ["x" * len(name) for name in shortened], loc="outside lower left", ncols=columns)
    for text, name in zip(legend.get_texts(), shortened, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _hide_divergence(axes: Axes, runs: Sequence[Run]) -> None:
    """A run that blows up may not flatten the others: the axis ends a little above where the runs began."""
    metric = runs[0].spec.objective.metric
    starts = [record[metric] for run in runs for record in run.of_kind("eval")[:1] if record.get(metric) is not None]
    if starts and axes.get_ylim()[1] > (top := max(starts) + 0.06 * abs(max(starts))):
        axes.set_ylim(top=top)


def logarithmic(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with labels that can be read, or a linear one where the values span less than a factor 3."""
    if high < 3 * low:
        return
    axes.set_yscale("log")
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    plain = low >= 1e-3 and high < 1e4
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if plain else _power(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    """A number as a power of ten, with a factor where it is none.

    >>> _power(1e6), _power(0.02)
    ('10⁶', '2·10⁻²')
    """
    exponent = math.floor(math.log10(value) + 1e-9)
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = round(value / 10.0**exponent)
    return power if factor == 1 else f"{factor}·{power}"


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
