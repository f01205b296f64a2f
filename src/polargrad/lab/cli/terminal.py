"""How commands write: tables and sentences on stdout, where results go on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polargrad.lab.compare import analysis
from polargrad.lab.compare.sweep import edge_notes
from polargrad.lab.matrix.page import results, sentences
from polargrad.lab.run.folder import FIGURES, Run
from polargrad.lab.run.spec import RunSpec

__all__ = [
    "console",
    "dated",
    "print_experiment",
    "print_outcomes",
    "print_run",
    "rates",
    "say_where",
    "table",
    "texts",
]


def console() -> Console:
    """Plain text as given, without markup of its own: names may hold brackets. Wide where nobody resizes it."""
    return Console(
        markup=False, highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140
    )


def table(*columns: str) -> Table:
    """An empty table without lines."""
    made = Table(box=None, pad_edge=False, show_header=any(columns), padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def texts(*cells: object) -> list[Text]:
    """Cells in which nothing is taken for markup."""
    return [Text(str(cell)) for cell in cells]


def rates(spec: RunSpec) -> str:
    """Each role with its learning rate."""
    return ", ".join(f"{role} {rate:g}" for role, rate in spec.learning_rates.items())


def dated(name: str, folder: Path = Path("runs"), ending: str = "") -> Path:
    """Where results go if nobody says."""
    return folder / f"{name}-{datetime.now():%Y%m%d-%H%M%S}{ending}"


def say_where(out: Path) -> None:
    """Tell it before the work begins."""
    print(f"Results go to {out}", file=sys.stderr)


def print_experiment(runs: Sequence[Run], page: Path) -> None:
    """Every configuration of a matrix problem in a table, what there is to say of them, and where the page is."""
    shown, found = console(), results(runs)
    made = table(*found.columns)
    for row in found.rows:
        made.add_row(*texts(*row))
    shown.print(made)
    for line in sentences(runs):
        shown.print(line)
    shown.print(f"Report: {page}")


def print_run(finished: Run) -> None:
    """How one run ended and where it is."""
    shown = console()
    shown.print(analysis.sentence(analysis.outcomes([finished])[0], finished))
    shown.print(f"Records are in {finished.path}, figures in {finished.path / FIGURES}.")


def print_outcomes(runs: Sequence[Run]) -> None:
    """The table of every run, the sentences about the best of each recipe, and warnings."""
    shown, runs = console(), analysis.with_distinct_names(runs)
    baseline = analysis.baseline_of(runs)
    metric = baseline.spec.objective.metric_label
    heads = ("run", f"final {metric}", "best", f"steps to {baseline.spec.name}'s", "seconds", "optimizer", "rates")
    made = table(*heads)
    for o in analysis.outcomes(runs):
        reach = "not reached" if o.reach is None else f"{o.reach.step:.1f}"
        share = "" if o.optimizer_share is None else f"{o.optimizer_share:.0%}"
        final = o.run.status if o.final is None else f"{o.final:.4f}"
        best = "" if o.best is None else f"{o.best:.4f}"
        made.add_row(*texts(o.run.spec.name, final, best, reach, f"{o.seconds:.1f}", share, rates(o.run.spec)))
    shown.print(made)
    for outcome in analysis.outcomes(analysis.best_of_recipe(runs)):
        shown.print(analysis.sentence(outcome, baseline))
    for note in (*analysis.cautions(runs), *edge_notes(runs)):
        shown.print(f"Note: {note}")
