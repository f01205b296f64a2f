"""`polargrad report`, and how every command that runs something says how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import Positional
from polargrad.lab.comparison import analysis
from polargrad.lab.comparison.rows import TextFormat, formatted, row_of
from polargrad.lab.options import Options, Used, option
from polargrad.lab.run.folder import COMPARISON, FIGURES, PAGE, PROTOCOL, Run, find_runs, read_run, refuse_existing
from polargrad.lab.run.spec import LanguageModel

if TYPE_CHECKING:
    from polargrad.lab.comparison.page import Findings


@dataclass(frozen=True)
class Report(Options):
    """Write the report of run folders, or of the folders of comparisons, as one self-contained HTML page.

    Example: polargrad report runs/monday runs/tuesday --out both.html

    --format prints the runs as rows instead, for other programs: names, status, losses, seconds, rates.

    Example: polargrad report runs/monday --format csv > monday.csv

    Args:
        folders: run folders or comparisons
        format: print rows in this format instead of writing the page
        out: the new page; by default DIR/report.html, for several report-DATE-TIME.html
    """

    folders: Positional[tuple[Path, ...]]
    out: Path | None = option(None, metavar="FILE", used=Used("format", unless=True, why="it prints no page"))
    format: TextFormat | None = None

    def __call__(self) -> None:
        """Read the folders, print the table and write the page."""
        if not self.folders:
            raise ValueError("there is nothing to report; give at least one folder")
        if self.format is not None:
            found = [read_run(path) for folder in self.folders for path in find_runs(folder)]
            return print(formatted([row_of(run) for run in found], self.format), end="")
        if len(self.folders) == 1 and self.out is None and (self.folders[0] / COMPARISON).is_file():
            return print_comparison(self.folders[0])
        if len(self.folders) == 1 and self.out is None and (self.folders[0] / PROTOCOL).is_file():
            return print_protocol(self.folders[0])
        runs = [read_run(path) for folder in self.folders for path in find_runs(folder)]
        if self.out is not None:
            refuse_existing(self.out)
            self.out.parent.mkdir(parents=True, exist_ok=True)
        alone = self.folders[0] / PAGE if len(self.folders) == 1 else terminal.dated("report", Path(), ".html")
        _print_report(runs, self.out or alone)


def narrated() -> dict[str, Any]:
    """Options by which a comparison reports its progress on stderr."""
    from polargrad.lab.train import terminal_progress

    return {"progress": terminal_progress, "report": terminal.tell}


def print_run(finished: Run) -> None:
    """Draw the figures of one run, and print how it ended and where it is."""
    from polargrad.lab.report import curves

    curves.draw(finished)
    shown = terminal.console()
    (one,) = analysis.alone([finished])
    shown.print(analysis.sentence(one, one))
    shown.print(f"Records are in {finished.path}, figures in {finished.path / FIGURES}.")


def print_pretrained(finished: Run) -> None:
    """Print how a run ended, and how fast it was, and write its page."""
    from polargrad.lab.comparison.page import Findings

    page = Findings([finished]).write_page(finished.path / PAGE, save_figures=True)
    summary = finished.summary or {}
    units, seconds = summary.get("units", 0), summary.get("seconds", 0.0)
    speed = f", {units / seconds:,.0f} tokens/s" if seconds else ""
    (one,) = analysis.alone([finished])
    part = one.optimizer_share.mean
    share = "" if part is None else f", {part:.0%} of the time in the optimizer"
    print(f"{analysis.sentence(one, one)[:-1]}: {units:,} tokens{speed}{share}.")
    print(f"Records are in {finished.path}. Report: {page}")


def print_experiment(runs: Sequence[Run], page: Path) -> None:
    """Every configuration of a matrix problem in a table, what there is to say of them, and where the page is."""
    from polargrad.lab.studies.matrix.page import results, sentences

    found = results(runs)
    terminal.print_table(found.columns, found.rows)
    for line in (*sentences(runs), f"Report: {page}"):
        terminal.console().print(line)


def print_comparison(folder: Path) -> None:
    """Print the tables of a comparison's runs that have ended, and write the page."""
    from polargrad.lab.comparison.page import Findings

    found = Findings.read(folder)
    return _print_findings(found, folder / PAGE) if found.is_replicated else _print_report(found.runs, folder / PAGE)


def print_protocol(folder: Path) -> None:
    """Print what a protocol has found so far, and write its page."""
    from polargrad.lab.comparison.protocol import ProtocolFindings

    found = ProtocolFindings.read(folder)
    for setting in found.protocol.settings:
        terminal.console().print(str(setting))
        for table in (found.results(setting), found.tuned(setting)):
            if table.rows:
                terminal.print_table(table.columns, table.rows)
                terminal.console().print(table.note + "\n")
    for line in (*found.sentences(), f"Report: {found.write_page(folder / PAGE)}"):
        terminal.console().print(line)


def _print_findings(found: Findings, page: Path) -> None:
    for table in found.tables():
        terminal.print_table(table.columns, table.rows)
        if found.is_replicated:
            terminal.console().print(table.note + "\n")
    over = found.grid.sentences() if found.grid else []
    notes = (f"Note: {warning}" for warning in found.warnings())
    for line in (*over, *found.sentences(), *notes, f"Report: {found.write_page(page)}"):
        terminal.console().print(line)


def _print_report(runs: Sequence[Run], page: Path) -> None:
    """Print the table of runs and write their page: of language models side by side, or of a matrix experiment."""
    if all(isinstance(run.spec.objective, LanguageModel) for run in runs):
        from polargrad.lab.comparison.page import Findings

        return _print_findings(Findings(runs), page)
    from polargrad.lab.studies.matrix import experiments

    print_experiment(runs, experiments.report(runs, page))
