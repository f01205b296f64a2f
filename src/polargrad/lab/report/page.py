"""The page of every report: a title, findings, sections of text, tables and figures, and where it ran.

A page is one HTML file without external resources; its links are relative. All text of a run is escaped: by jinja2 in
the page, by matplotlib in figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from polargrad.lab.files import write_file
from polargrad.lab.report import figures
from polargrad.lab.report.figures import LIGHT, Figure
from polargrad.lab.run.folder import FIGURES

UNKNOWN = "–"


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text.

    Args:
        text: plain text.
        warning: follows the text in another colour.
        swatch: number of the line in the figures whose colour stands before the text.
        best: whether it is the best of its column, shown in bold.
    """

    text: str
    warning: str = ""
    swatch: int | None = None
    best: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.warning}".strip()


@dataclass(frozen=True)
class Table:
    """A table that a click on a head sorts. Lines within a cell or a head are separated by newlines.

    Args:
        columns: the heads.
        rows: the first cell of each names the row.
        note: what a reader should know, below the table.

    Raises:
        ValueError: if a row has another number of cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        if odd := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"a row has {len(odd[0])} cells for {len(self.columns)} columns: {odd[0]!r}")

    @property
    def numeric(self) -> list[bool]:
        """For each column whether most of its cells begin with a number; such columns stand at the right."""
        begins = [[bool(re.match(r"[-+−]?\d", str(cell))) for cell in row] for row in self.rows]
        return [
            column > 0 and 2 * sum(row[column] for row in begins) >= max(1, len(begins))
            for column in range(len(self.columns))
        ]

    @property
    def is_stacked(self) -> bool:
        """Whether a narrow screen shows each row as a card, rather than a table that scrolls sideways."""
        return len(self.columns) > 3 and len(self.rows) <= 12


@dataclass(frozen=True)
class Details:
    """A part of a page that opens on a click.

    Args:
        title: always visible.
        swatch: as of `Cell`.
        paragraphs: plain text.
        links: relative addresses by their text.
        warnings: plain text, in another colour.
        code: shown as it is.
    """

    title: str
    swatch: int | None = None
    paragraphs: Sequence[str] = ()
    links: Mapping[str, str] | None = None
    warnings: Sequence[str] = ()
    code: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in the order of its arguments.

    Args:
        title: its heading.
        note: a smaller line below the heading.
        paragraphs: plain text.
        tables: with their notes.
        figures: side by side where there is room.
        details: one below the other.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    note: str = ""
    details: Sequence[Details] = ()


def write_page(
    path: str | Path,
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    environments: Mapping[str, Mapping[str, Any]],
    *,
    warnings: Sequence[str] = (),
    save_figures: bool = True,
) -> Path:
    """Write a page; one that exists is replaced, since it holds nothing that the records do not.

    Args:
        path: of the file.
        title: of the page.
        lead: the findings in sentences.
        sections: below them.
        environments: where each run ran, by its name.
        warnings: why the findings may not hold, each in a sentence.
        save_figures: whether to write the figures also as files, into the folder `figures` beside the page.

    Returns:
        The path.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    path = Path(path)
    drawn = [figure for section in sections for figure in section.figures]
    if save_figures:
        figures.save(drawn, path.parent / FIGURES)
    templates = Environment(
        loader=PackageLoader("polargrad.lab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = templates.get_template("page.html.j2").render(
        title=title,
        subtitle=f"polargrad report of {datetime.now():%Y-%m-%d %H:%M}, {len(environments)} run"
        + ("" if len(environments) == 1 else "s"),
        lead=lead,
        warnings=warnings,
        sections=sections,
        environment=_environment(environments),
        # Safe: the tags are matplotlib's own, and its XML writer escaped the text between them.
        svg={figure.key: Markup(figures.inline_svg(figure)) for figure in drawn},
        colors={"ink": figures.INK, "muted": figures.MUTED, "rule": figures.RULE, "light": LIGHT, "dark": figures.DARK},
    )
    write_file(path, html)
    return path


# Above so many runs only their number is told.
_MOST_NAMED = 8


def _environment(environments: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A line for each entry; where runs differ, each value with the runs that have it."""
    lines = []
    for key in dict.fromkeys(key for environment in environments.values() for key in environment):
        values: dict[str, list[str]] = {}
        for name, environment in environments.items():
            values.setdefault(_text(environment.get(key)), []).append(name)
        told = {v: ", ".join(n) if len(n) <= _MOST_NAMED else f"{len(n)} runs" for v, n in values.items()}
        text = next(iter(values)) if len(values) == 1 else "; ".join(f"{v} ({n})" for v, n in told.items())
        lines.append((key.replace("_", " "), text))
    return lines


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
