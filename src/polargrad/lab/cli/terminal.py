"""Output of commands: tables and sentences on stdout; the folder of results and progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from polargrad.lab.run.spec import RunSpec


class _Plain:
    """A console for where rich is not installed."""

    def print(self, text: object) -> None:
        print(text)


def console() -> Console | _Plain:
    """A console that prints names with brackets as they are; as wide as the terminal, 140 columns into a file."""
    try:
        from rich.console import Console
    except ImportError:
        return _Plain()
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=True, width=wide)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table without lines; without a head where no column has a name."""
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        cells = [[str(cell) for cell in row] for row in ([columns, *rows] if any(columns) else rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(box=None, pad_edge=False, show_header=any(columns), padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console().print(table)


def rates(spec: RunSpec) -> str:
    """The learning rates as text: each role with its own."""
    return ", ".join(f"{role} {rate:g}" for role, rate in spec.learning_rates.items())


def dated(name: str, folder: Path = Path("runs"), ending: str = "") -> Path:
    """The default place of results."""
    return folder / f"{name}-{datetime.now():%Y%m%d-%H%M%S}{ending}"


def place(out: Path | None, name: str) -> Path:
    """Where results go, by default into a dated folder; a torchrun that starts its processes anew stays in its folder.

    Raises:
        FileExistsError: if it exists.
    """
    from polargrad.lab.run.folder import refuse_existing, relaunched

    if (earlier := relaunched(out, dated(name).parent)) is not None:
        return earlier
    out = out or dated(name)
    refuse_existing(out)
    return out


def new_folder(out: Path | None, name: str) -> Path:
    """The folder of results, said on stderr before the work begins, once it is known that it can be made.

    Raises:
        FileExistsError: if it exists.
        OSError: it cannot be made.
    """
    from polargrad.lab.run.folder import create_folder

    out = place(out, name)
    create_folder(out)
    out.rmdir()  # whoever writes the results makes it
    created(out)
    return out


def created(folder: Path) -> None:
    """Say where results go."""
    tell(f"Results go to {folder}")


def tell(line: str) -> None:
    """Write a line on stderr at once, beside the results."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def idle_cores(resumed: Path | None = None) -> Iterator[None]:
    """Compute on as many threads as find an idle core, and say if these are fewer: the slowest would hold up all.

    A run that is resumed goes on with the threads that it began with, so that its numbers are the same.
    """
    import torch

    from polargrad.lab.run.environment import idle_threads, torch_threads
    from polargrad.lab.run.folder import ENDED, find_runs, read_environment, status_of

    threads, began = torch.get_num_threads(), None
    if resumed is not None:
        with suppress(FileNotFoundError):  # of a comparison that was stopped before its first run
            stopped = (run for run in find_runs(resumed) if status_of(run) not in ENDED)
            began = next((read_environment(run).get("threads") for run in stopped), None)
    if "OMP_NUM_THREADS" in os.environ:
        idle = threads
    elif isinstance(began, int):
        idle = min(threads, max(1, began))
    else:
        idle = idle_threads()
    if idle < threads:
        why = "it began" if began else "other programs keep cores busy"
        tell(f"{idle} of {threads} threads will compute, as {why}; OMP_NUM_THREADS={threads} takes all.")
    with torch_threads(idle):
        yield
