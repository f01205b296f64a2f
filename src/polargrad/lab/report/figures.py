"""How figures look and where they go: style, line figures, files, SVG inside a page.

Every line has a colour (after Okabe and Ito's palette, which colour-blind readers can tell apart), a dash pattern and a
marker of its own. As SVG inside a page the colours become custom properties of CSS: one drawing for light and dark.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from polargrad.lab.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Okabe and Ito, "Color Universal Design" (2008), the two lightest left out; in dark pages their lighter relatives.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b3468c", "#b07c00", "#3f3f46")
DARK = ("#56b4e9", "#ff9147", "#2fc79b", "#e39ac6", "#f0c340", "#c9ccd3")
INK, MUTED, RULE = "#1f2430", "#5a6272", "#d5d9e0"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
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
SIZE = (4.8, 3.3)
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", **{c: f"--run-{i}" for i, c in enumerate(LIGHT)}}


@dataclass(frozen=True)
class Figure:
    """A drawing and its description.

    Args:
        key: name of its files, without ending.
        title: what it shows, in plain text.
        canvas: matplotlib's figure.
    """

    key: str
    title: str
    canvas: Canvas

    @property
    def is_wide(self) -> bool:
        """Whether its text can only be read at the full width of a page."""
        return self.canvas.get_size_inches()[0] > 1.5 * SIZE[0]


@dataclass(frozen=True)
class Curve:
    """Points of a line, with the band around it; of a single run low, middle and high are equal."""

    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Line:
    """A line of a figure.

    Args:
        name: in the legend.
        curve: where it runs.
        style: matplotlib's keywords, as `line_style` gives.
        behind: points of a thin, faint line of the same colour.
        diverged: whether it ends in a cross. Lines that diverge do not stretch a logarithmic axis.
    """

    name: str
    curve: Curve
    style: Mapping[str, Any]
    behind: tuple[Sequence[float], Sequence[float]] | None = None
    diverged: bool = False


def line_figure(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    xlabel: str,
    ylabel: str,
    subtitle: str = "",
    size: tuple[float, float] = SIZE,
    log: bool = False,
    top: float | None = None,
    level: float | None = None,
) -> Figure:
    """Lines over one pair of axes, with a legend below them.

    Args:
        key: of the figure.
        title: of the figure, and above the axes.
        lines: in the order of the legend; those without points are left out.
        xlabel: quantity and unit.
        ylabel: quantity and unit.
        subtitle: a smaller line above the axes.
        size: in inches.
        log: whether y is logarithmic, where the values span more than a factor of 3.
        top: the axis ends there if values lie above it.
        level: where a dotted horizontal line stands.
    """
    lines = [line for line in lines if len(line.curve.x)]
    with style():
        canvas = titled_canvas(title, size)
        axes = canvas.add_subplot()
        if subtitle:
            axes.set_title(subtitle, loc="left", fontsize=8, color=MUTED, parse_math=False)
        handles = []
        for line in lines:
            if line.behind is not None:
                axes.plot(*line.behind, color=line.style["color"], linewidth=0.7, alpha=0.28)
            handles.append(draw_line(axes, line.curve, line.style))
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.5)), zorder=1)
        if log and lines:
            _logarithmic_frame(axes, lines)
        if top is not None and axes.get_ylim()[1] > top:
            axes.set_ylim(top=top)
        for line in lines:
            if line.diverged:
                y = min(line.curve.middle[-1], axes.get_ylim()[1])
                axes.plot(line.curve.x[-1], y, marker="X", markersize=7, color=line.style["color"], clip_on=False)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        names = [line.name + (" (diverged)" if line.diverged else "") for line in lines]
        legend(canvas, handles, names)
    return Figure(key, title, canvas)


def draw_line(axes: Axes, curve: Curve, style: Mapping[str, Any]) -> Line2D:
    """Draw a curve with its band, if it has one, and return the line."""
    (handle,) = axes.plot(curve.x, curve.middle, **style)
    if any(high > low for low, high in zip(curve.low, curve.high, strict=True)):
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0)
    return handle


def titled_canvas(title: str, size: tuple[float, float]) -> Canvas:
    """A figure without axes, with its title at the left. Call it within `style()`."""
    canvas = Canvas(figsize=size)
    canvas.suptitle(title, x=0.012, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    return canvas


def line_style(index: int, points: int = 1) -> dict[str, Any]:
    """Colour, dashes and marker of the line with this number; of many points some twenty are marked."""
    return {
        "color": LIGHT[index % len(LIGHT)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markevery": max(1, points // 20),
    }


def legend(canvas: Canvas, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Names below the axes, which keep their height.

    The text is set last, since matplotlib gives $ and a leading _ a meaning.
    """
    if not lines:
        return
    shown = [name if len(name) <= 48 else name[:47] + "…" for name in names]
    placeholders = ["x" * len(name) for name in shown]
    lengths = [len(name) + 6 for name in shown]
    width, height = canvas.get_size_inches()
    room = int(56 * width / SIZE[0])
    columns = len(names) if sum(lengths) < room else max(1, room // max(lengths))
    rows = -(-len(names) // columns)
    canvas.set_size_inches(width, height + 0.19 * (rows - 1))
    made = canvas.legend(lines, placeholders, loc="outside lower left", ncols=columns)
    for text, name in zip(made.get_texts(), shown, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def logarithmic(axes: Axes, low: float, high: float) -> None:
    """Make y logarithmic with readable labels; leave it linear where the values span less than a factor of 3."""
    if high < 3 * low:
        return
    axes.set_yscale("log")
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    plain = low >= 1e-3 and high < 1e4
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if plain else _power(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


@contextmanager
def style() -> Iterator[None]:
    """Our style, without warnings about letters that the font lacks: a run may have any name."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def save(drawn: Sequence[Figure], folder: Path) -> list[Path]:
    """Write every figure as SVG and PNG into a folder and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in drawn:
        with style():
            kinds: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 160}}
            for ending, how in kinds.items():
                drawing = BytesIO()
                figure.canvas.savefig(drawing, format=ending, **how)
                write_file(folder / f"{figure.key}.{ending}", drawing.getvalue())
        paths += [folder / f"{figure.key}.svg", folder / f"{figure.key}.png"]
    return paths


def inline_svg(figure: Figure) -> str:
    """The figure as an SVG element for a page that defines --ink, --muted, --rule and --run-0, --run-1, ...

    Identifiers start with the figure's key, since all figures of a page share one namespace. matplotlib's XML writer
    has escaped the text.
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
    """A tag with its identifiers and colours adapted to a page; text between tags stays as it is."""
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", tag)
    return re.sub("|".join(_VARIABLES), lambda colour: f"var({_VARIABLES[colour[0]]})", tag)


def _logarithmic_frame(axes: Axes, lines: Sequence[Line]) -> None:
    """A logarithmic axis over the lines; those that diverged leave it at most a decade above the highest start."""
    steady = [line.curve for line in lines if not line.diverged]
    curves = [line.curve for line in lines]
    low, highest = min(min(curve.low) for curve in curves), max(max(curve.high) for curve in curves)
    high = max(max(curve.high) for curve in steady) if steady else highest
    if steady:
        high = max(high, min(highest, 10.0 * max(curve.middle[0] for curve in curves)))
    logarithmic(axes, low, high)
    if high > 3.0 * low:
        margin = (high / low) ** 0.05
        axes.set_ylim(low / margin, high * margin)


def _power(value: float) -> str:
    """A number as a power of ten, with a factor in front where it is not one.

    >>> _power(1e6), _power(0.02)
    ('10⁶', '2·10⁻²')
    """
    exponent = math.floor(math.log10(value) + 1e-9)
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = round(value / 10.0**exponent)
    return power if factor == 1 else f"{factor}·{power}"
