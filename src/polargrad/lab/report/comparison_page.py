"""The page of a comparison over seeds or a grid: losses with their spread, who reaches whom, how rates were chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polargrad.lab.compare.analysis import cautions, final_metric
from polargrad.lab.compare.comparison import final_losses, read_comparison
from polargrad.lab.compare.grid import Grid
from polargrad.lab.compare.spread import Group, groups
from polargrad.lab.compare.sweep import edge_notes, warmup_of
from polargrad.lab.report.study import Section, Table, render
from polargrad.lab.run.folder import COMPARISON, FIGURES, Run

if TYPE_CHECKING:
    from polargrad.lab.compare.tuning import Tuned
    from polargrad.lab.report.plots import Figure

__all__ = ["cross_tables", "grid_of", "in_order", "lead", "results", "write_page"]

AT_BEST = "Each recipe at its best point of the grid."


def write_page(runs: Sequence[Run], page: str | Path) -> Path:
    """Write figures and page of the runs of one comparison.

    Args:
        runs: all of them, searches for rates included.
        page: the file to write; figures go into `figures` beside it. What is there is replaced, since it holds nothing
            that the records do not.

    Returns:
        The page's path.
    """
    from polargrad.lab.report import plots, plots_grid, plots_spread

    page = Path(page)
    shown = in_order(groups(runs), page.parent)
    curves = plots_spread.figures(shown)
    firsts = [group.runs[0] for group in shown]
    gradients = [figure for figure in plots.figures(firsts) if figure.section != "Loss"]
    grid = grid_of(runs, page.parent)
    over = [] if grid is None else plots_grid.figures(grid)
    plots.save([*curves, *over, *gradients], page.parent / FIGURES)
    sections = _sections(runs, shown, curves, gradients, page.parent)
    if grid is not None:
        sections[0] = dataclasses.replace(sections[0], paragraphs=[AT_BEST, *sections[0].paragraphs])
        sections.insert(1, Section("The grid", grid.sentences(), grid.tables(), over))
    html = render(_title(shown), lead(shown, page.parent, runs), sections)
    part = page.with_name(page.name + ".part")
    part.write_text(html, encoding="utf-8")
    part.replace(page)
    return page


def results(shown: Sequence[Group]) -> Table:
    """One row for each recipe."""
    metric = shown[0].runs[0].spec.objective.metric_label
    rows = [
        (
            group.recipe,
            group.final.text(),
            " ".join("diverged" if v is None else f"{v:.4f}" for v in map(final_metric, group.runs)),
            str(group.runs[0].spec.loop.steps),
            group.seconds.text(1),
            group.optimizer_share.text(0, percent=True),
            _rates(group.runs[0]),
        )
        for group in shown
    ]
    return Table(
        ("recipe", f"final {metric}", "each seed", "steps", "seconds", "optimizer", "learning rates, warm-up"),
        rows,
        note=f"Mean ± standard deviation over the seeds {_seeds(shown)}. Seconds are those of forward, backward and "
        "optimizer.",
    )


def cross_tables(shown: Sequence[Group]) -> list[Table]:
    """For steps and for seconds: when the recipe of a row was where the recipe of a column ended."""
    tables = []
    for name, digits in (("steps", 0), ("seconds", 1)):
        rows = []
        for group in shown:
            cells = []
            for other in shown:
                reached = group.reach(other)
                spread, ratio = (
                    (reached.steps, reached.step_ratio) if name == "steps" else (reached.seconds, reached.time_ratio)
                )
                part = "" if group is other or ratio.mean is None else f" ({ratio.mean:.0%})"
                cells.append(("never" if spread.mean is None else spread.text(digits)) + part)
            rows.append((group.recipe, *cells))
        tables.append(
            Table(
                (f"{name} to the final loss of", *(group.recipe for group in shown)),
                rows,
                note="In brackets the part of what the other itself took; seed by seed, on the same batches.",
            )
        )
    return tables


def grid_of(runs: Sequence[Run], folder: Path) -> Grid | None:
    """The grid that the comparison in a folder asked for; None without one."""
    return Grid.of(read_comparison(folder), runs) if (folder / COMPARISON).is_file() else None


def lead(shown: Sequence[Group], folder: Path, runs: Sequence[Run] = ()) -> list[str]:
    """The findings in sentences, and what stands on the edge of a grid that the runs make up."""
    ranked = sorted((g for g in shown if g.final.mean is not None), key=lambda group: group.final.mean or 0.0)
    if not ranked:
        return ["Every recipe diverged."]
    best, metric = ranked[0], shown[0].runs[0].spec.objective.metric_label
    lines = [f"Lowest {metric}: {best.recipe}, {best.final.text()}."]
    for other in ranked[1:]:
        reached = best.reach(other)
        if reached.step_ratio.mean is not None and reached.time_ratio.mean is not None:
            lines.append(
                f"It reaches the end of {other.recipe} ({other.final.text()}) in {reached.step_ratio.mean:.0%} of its "
                f"steps and {reached.time_ratio.mean:.0%} of its seconds."
            )
    lines += [f"{group.recipe} diverged." for group in shown if group.final.mean is None]
    chosen = [next((run for run in group.runs if final_metric(run) is not None), group.runs[0]) for group in shown]
    edges = edge_notes(runs, chosen) if grid_of(runs, folder) is not None else []
    return [*lines, *(f"Note: {note}" for note in edges), *_unbracketed(folder)]


def _sections(
    runs: Sequence[Run], shown: Sequence[Group], curves: Sequence[Figure], gradients: Sequence[Figure], folder: Path
) -> list[Section]:
    finals = [run for group in shown for run in group.runs]
    by_seed = [run for run in finals if run.spec.seed == finals[0].spec.seed]
    sections = [
        Section("Results", cautions(by_seed), [results(shown)], curves),
        Section("Who reaches whom", (), cross_tables(shown)),
    ]
    searched = [run for run in runs if run not in finals]
    if searched and grid_of(runs, folder) is None:
        notes = [f"{name}: {_said(tuned)}" for name, tuned in _searches(folder).items()]
        sections.append(Section("Learning rates tried", notes, [_tried(searched)]))
    if gradients:
        sections.append(Section("Gradients", [f"Of the runs with seed {shown[0].runs[0].spec.seed}."], (), gradients))
    return sections


def _tried(searched: Sequence[Run]) -> Table:
    ordered = sorted(searched, key=lambda run: (run.spec.recipe, -run.spec.loop.steps, final_metric(run) or 1e30))
    rows = [
        (
            run.spec.recipe,
            _rates(run),
            str(run.spec.loop.steps),
            str(run.spec.seed),
            run.status if (end := final_metric(run)) is None else f"{end:.4f}",
        )
        for run in ordered
    ]
    return Table(("recipe", "learning rates", "steps", "seed", "final"), rows)


def _searches(folder: Path) -> Mapping[str, Tuned]:
    if not (folder / COMPARISON).is_file():
        return {}
    return read_comparison(folder).searches(final_losses(folder))


def _said(tuned: Tuned) -> str:
    if tuned.pending:
        return f"the search is under way; {len(tuned.pending)} runs are known to come."
    if tuned.bracketed:
        return f"every rate has a worse one below and above it, after {tuned.extensions} rounds beyond the first grid."
    return f"the search was ended after {tuned.extensions} rounds with a better rate perhaps further out."


def _unbracketed(folder: Path) -> list[str]:
    return [f"{name}: {_said(tuned)}" for name, tuned in _searches(folder).items() if not tuned.bracketed]


def in_order(found: list[Group], folder: Path) -> list[Group]:
    """As the comparison named them; those whose rates are still searched for wait until the others are all there is."""
    if not (folder / COMPARISON).is_file():
        return found
    waiting = {name for name, tuned in _searches(folder).items() if tuned.pending}
    found = [group for group in found if group.recipe not in waiting] or found
    order = [spec.recipe for spec in read_comparison(folder).recipes]
    return sorted(found, key=lambda group: order.index(group.recipe) if group.recipe in order else len(order))


def _title(shown: Sequence[Group]) -> str:
    seeds = len(shown[0].runs)
    return f"{', '.join(group.recipe for group in shown)}: {seeds} seed{'s' if seeds > 1 else ''}"


def _seeds(shown: Sequence[Group]) -> str:
    return ", ".join(str(seed) for seed in dict.fromkeys(run.spec.seed for group in shown for run in group.runs))


def _rates(run: Run) -> str:
    roles: dict[float, list[str]] = {}
    for role, rate in run.spec.learning_rates.items():
        roles.setdefault(rate, []).append(role)
    rates = ", ".join(f"{'+'.join(sharing)} {rate:g}" for rate, sharing in roles.items())
    return rates if (warmup := warmup_of(run.spec)) is None else f"{rates}; {warmup} steps"
