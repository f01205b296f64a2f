"""A study: a command that measures many small things rather than one run, and writes a folder like a run's.

DIR/study.json  environment.json  records.jsonl  summary.json  figures/  report.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from polargrad.lab.files import json_text, named_errors
from polargrad.lab.report.page import Section, Table, write_page
from polargrad.lab.run.environment import environment
from polargrad.lab.run.folder import ENVIRONMENT, PAGE, RECORDS, SUMMARY, create_folder, write_json

STUDY = "study.json"

# Called with the name of each stage as it begins, and the share of all the work that lies before it.
StageProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class StudyResult:
    """Findings of a study.

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
        options: as plain data.

    Raises:
        FileExistsError: if the folder exists. Nothing in it is touched.
    """

    def __init__(self, path: str | Path, name: str, options: Mapping[str, Any]) -> None:
        self.path, self.name = Path(path), name
        self.records: list[dict[str, Any]] = []
        self._environment = environment()
        create_folder(self.path)
        write_json(self.path / ENVIRONMENT, self._environment)
        write_json(self.path / STUDY, {"format": 1, "study": name, "options": dict(options)})
        self._file = (self.path / RECORDS).open("x", encoding="utf-8")

    def record(self, kind: str, **metrics: Any) -> None:
        """Keep one record and write it as one line; NaN and infinity are written as null."""
        record = {"kind": kind, **metrics}
        self.records.append(record)
        with named_errors(f"cannot write {self.path / RECORDS}"):
            self._file.write(json_text(_finite(record), indent=None))
            self._file.flush()

    def finish(self, title: str, lead: Sequence[str], sections: Sequence[Section], summary: Mapping[str, Any]) -> Path:
        """Write summary, figures and page, and return the page's path."""
        write_json(self.path / SUMMARY, _finite(summary))
        return write_page(self.path / PAGE, title, lead, sections, {self.name: self._environment})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def table_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[tuple[str, str]], note: str = "") -> Table:
    """A table of records: each column is its head and the format of a record's values.

    Example:
        >>> table_of([{"x": 0.25}], [("share", "{x:.0%}")]).rows
        [['25%']]
    """
    return Table([head for head, _ in columns], [[form.format_map(row) for _, form in columns] for row in rows], note)


def _finite(value: Any) -> Any:
    """Plain data with null for every NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
