"""`polargrad runs`: the runs below a folder, in a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import Positional
from polargrad.lab.comparison.rows import TextFormat, formatted, row_of
from polargrad.lab.options import Options, option
from polargrad.lab.run.folder import RECORDS, SPEC, RecordError, read_run


@dataclass(frozen=True)
class Runs(Options):
    """List the runs below a folder: how they ended, their losses and when they ended, the newest last.

    Example: polargrad runs

    Example: polargrad runs runs/search --recipe muon+adamw --status finished --sort loss --last 5

    Args:
        folder: folder to search through
        recipe: only runs of this recipe
        status: only runs that ended so
        name: only runs whose folder has this in its path
        sort: order of the rows; by loss the lowest is last
        last: number of rows, the last ones; by default all
        format: text that other programs read, instead of a table
    """

    folder: Positional[Path] = Path("runs")
    recipe: str = ""
    status: Literal["finished", "diverged", "interrupted", "unfinished"] | None = None
    name: str = ""
    sort: Literal["time", "loss", "recipe"] = "time"
    last: int | None = option(None, metavar="N")
    format: TextFormat | None = None

    def __call__(self) -> None:
        """Print the table, and what could not be read."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is not a folder; give one that holds runs")
        found, unreadable = list(self._found()), []
        rows = []
        for path in found:
            try:
                row = row_of(read_run(path))
            except (RecordError, FileNotFoundError) as error:
                unreadable.append(str(error))
                continue
            if self.recipe in ("", row["recipe"]) and self.status in (None, row["status"]):
                rows.append(row)
        keys = {"time": lambda row: 0, "loss": lambda row: -_loss(row), "recipe": lambda row: row["recipe"]}
        rows = sorted(rows, key=keys[self.sort])[-(self.last or len(rows)) :]
        if self.format is not None:
            print(formatted(rows, self.format), end="")
        else:
            columns = ("folder", "recipe", "seed", "status", "steps", "loss or gap", "seconds", "ended")
            terminal.print_table(columns, [_cells(row) for row in rows])
            terminal.console().print(f"{len(rows)} of {len(found)} runs below {self.folder}")
        for line in unreadable:
            terminal.tell(f"Not read: {line}")

    def _found(self) -> Iterator[Path]:
        """The run folders, the one that wrote last at the end."""
        paths = [spec.parent for spec in self.folder.rglob(SPEC) if not any(p.startswith(".") for p in spec.parts)]
        for path in sorted(paths, key=lambda path: (_written(path), str(path))):
            if self.name in str(path):
                yield path


def _written(path: Path) -> float:
    file = path / RECORDS
    return (file if file.exists() else path).stat().st_mtime


def _loss(row: dict[str, Any]) -> float:
    """The metric at the end, whatever it is called; infinite without one."""
    found = next(
        (row[key.removeprefix("best_")] for key in row if key.startswith("best_") and key != "best_step"), None
    )
    return float("inf") if found is None else found


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ended = datetime.fromtimestamp(_written(Path(row["folder"])))
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    end = "" if _loss(row) == float("inf") else f"{_loss(row):.4g}"
    own = (row["folder"], row["recipe"], str(row["seed"]), row["status"], str(row["steps"]))
    return (*own, end, seconds, f"{ended:%Y-%m-%d %H:%M}")
