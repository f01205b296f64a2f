"""A study: a command that measures many small things rather than one run, and writes a folder that reads like one.

DIR/study.json  environment.json  records.jsonl  summary.json  figures/  report.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from polargrad.lab.run.environment import environment
from polargrad.lab.run.folder import ENVIRONMENT, FIGURES, RECORDS, SUMMARY, create_folder

if TYPE_CHECKING:
    from polargrad.lab.report.plots import Figure

__all__ = ["PAGE", "STUDY", "Outcome", "Progress", "Section", "StudyFolder", "Table", "one_thread", "render"]

STUDY, PAGE = "study.json", "report.html"

# Told the name of each stage as it begins, and the share of all the work that lies before it.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Table:
    """Cells as they are shown.

    Args:
        columns: their heads.
        rows: the first cell of each names the row.
        note: what a reader should know, below the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        if odd := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"a row has {len(odd[0])} cells for {len(self.columns)} columns: {odd[0]!r}")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading.
        paragraphs: plain text.
        tables: shown after the text.
        figures: shown last.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Args:
        page: its report.
        lead: the findings in sentences.
        ok: whether every claim that it checks held.
    """

    page: Path
    lead: Sequence[str]
    ok: bool = True


class StudyFolder:
    """A new folder of a study, open for records.

    Args:
        path: the folder; it must not exist.
        name: of the study.
        options: what it was asked to do, as plain data.

    Raises:
        FileExistsError: if the folder exists. Nothing in it is touched.
    """

    def __init__(self, path: str | Path, name: str, options: Mapping[str, Any]) -> None:
        self.path, self.name = Path(path), name
        self.records: list[dict[str, Any]] = []
        create_folder(self.path)
        _write(self.path / ENVIRONMENT, environment())
        _write(self.path / STUDY, {"format": 1, "study": name, "options": dict(options)})
        self._file = (self.path / RECORDS).open("x", encoding="utf-8")

    def record(self, kind: str, **figures: Any) -> None:
        """Keep one record and write it as one line; NaN and infinity are written as null."""
        record = {"kind": kind, **figures}
        self.records.append(record)
        self._file.write(json.dumps(_finite(record), separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, title: str, lead: Sequence[str], sections: Sequence[Section], summary: Mapping[str, Any]) -> Path:
        """Write summary, figures and page, and return the page's path."""
        from polargrad.lab.report.plots import save

        _write(self.path / SUMMARY, summary)
        save([figure for section in sections for figure in section.figures], self.path / FIGURES)
        page = self.path / PAGE
        page.write_text(render(title, lead, sections), encoding="utf-8")
        return page

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for tensor operations: matrices of a few rows lose more by sharing work than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def render(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML, complete in itself; everything but the drawings is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from polargrad.lab.report import plots

    templates = Environment(
        loader=PackageLoader("polargrad.lab.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    drawn = {figure.key: plots.inline_svg(figure) for section in sections for figure in section.figures}
    where = environment()
    return templates.get_template("study.html.j2").render(
        title=title,
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        lead=lead,
        sections=sections,
        drawn=drawn,
        environment=[(key, str(value)) for key, value in where.items() if value is not None],
        ink=plots.INK,
        muted=plots.MUTED,
        rule=plots.RULE,
        light=plots.LIGHT,
        dark=plots.DARK,
    )


def _finite(value: Any) -> Any:
    """Plain data with null for every NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, data: Mapping[str, Any]) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
