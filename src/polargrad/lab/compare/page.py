"""Pages that compare runs: several runs against a baseline, and a comparison over seeds or a grid."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from polargrad.lab.compare import analysis
from polargrad.lab.compare.analysis import Replicates, final_metric
from polargrad.lab.compare.comparison import Comparison, read_comparison
from polargrad.lab.compare.grid import Grid, edge_notes, warmup_of
from polargrad.lab.compare.tuning import Tuned
from polargrad.lab.report.curves import gradient_sections, loss_figures
from polargrad.lab.report.page import UNKNOWN, Cell, Details, Section, Table, write_page
from polargrad.lab.run.folder import COMPARISON, ENDED, ENVIRONMENT, RECORDS, SPEC, SUMMARY, Run
from polargrad.lab.run.spec import LanguageModel

__all__ = ["Findings", "runs_table", "write_comparison_page", "write_runs_page"]


def write_runs_page(runs: Sequence[Run], page: str | Path, *, save_figures: bool = False) -> Path:
    """Write the page of runs, measured against the baseline among them.

    Args:
        runs: at least one, all judged by the same metric. Of several runs of a recipe the figures show the best.
        page: the file to write; one that exists is replaced.
        save_figures: whether to write the figures also into `figures` beside the page.

    Returns:
        The page's path.

    Raises:
        ValueError: if there are no runs, or if they do not share a metric.
    """
    page, runs = Path(page), analysis.with_distinct_names(runs)
    shown = analysis.best_of_recipe(runs)
    measured = analysis.alone(shown)
    baseline = analysis.baseline_of(measured)
    note = "Marks are evaluations on held-out data, the faint lines behind them the training loss"
    note += f", the dotted line {baseline.name}’s final loss." if len(shown) > 1 else "."
    losses = loss_figures({one.name: one.runs for one in measured}, baseline.final.mean if len(shown) > 1 else None)
    sections = [Section("Results", tables=[runs_table(measured)])]
    if len(runs) > len(shown):
        text = "The figures and the table above show the best run of each recipe."
        sections.append(Section("Learning rates tried", [text], [_tried(runs)], warnings=edge_notes(runs)))
    sections += [
        Section("Loss", note=note, figures=losses),
        *gradient_sections({one.name: one.runs[0] for one in measured}),
        _what_ran(shown, page.parent),
    ]
    others = [one.name for one in measured if one is not baseline]
    against = " and ".join(others) if len(others) < 3 else f"{len(others)} runs"
    # the baseline first, since the other sentences refer to it
    ordered = sorted(measured, key=lambda one: one is not baseline)
    return write_page(
        page,
        f"{against} against {baseline.name}" if others else baseline.name,
        [analysis.sentence(one, baseline) for one in ordered],
        sections,
        {run.spec.name: run.environment for run in runs},
        warnings=analysis.cautions(runs),
        save_figures=save_figures,
    )


def write_comparison_page(runs: Sequence[Run], page: str | Path) -> Path:
    """Write the page of a comparison over seeds or a grid, with its figures in `figures` beside it.

    Args:
        runs: all of them that have ended, those of a search for rates included.
        page: the file to write, in the comparison's folder; one that exists is replaced.

    Returns:
        The page's path.
    """
    from polargrad.lab.compare import figures

    page = Path(page)
    found = Findings.of(runs, page.parent)
    shown = found.shown
    first = {one.name: one.runs[0] for one in shown}
    by_seed = [run for run in found.final_runs if run.spec.seed == shown[0].runs[0].spec.seed]
    notes = [*(["Each recipe at its best point of the grid."] if found.grid else []), *analysis.cautions(by_seed)]
    losses = loss_figures({one.name: one.runs for one in shown})
    sections = [Section("Results", notes, [found.results()], losses)]
    if found.grid:
        drawn = figures.figures(found.grid)
        sections.append(Section("The grid", found.grid.sentences(), found.grid.tables(), drawn))
    sections.append(Section("Who reaches whom", (), found.cross_tables()))
    searched = [run for run in runs if run not in found.final_runs]
    if searched and not found.grid:
        notes = [f"{name}: {_search_state(tuned)}" for name, tuned in found.searches.items()]
        sections.append(Section("Learning rates tried", notes, [_tried(searched)]))
    sections += [
        *gradient_sections(first, f"Of the runs with seed {shown[0].runs[0].spec.seed}."),
        _what_ran(list(first.values()), page.parent),
    ]
    seeds = len(shown[0].runs)
    title = f"{', '.join(one.name for one in shown)}: {seeds} seed{'s' if seeds > 1 else ''}"
    environments = {run.spec.name: run.environment for run in runs}
    return write_page(page, title, found.sentences(), sections, environments)


@dataclass(frozen=True)
class Findings:
    """What the runs of a comparison show, in tables and sentences.

    Args:
        runs: all of them that have ended.
        asked: what the comparison asked for; None for runs that belong to none.
    """

    runs: tuple[Run, ...]
    asked: Comparison | None = None

    @classmethod
    def of(cls, runs: Sequence[Run], folder: Path) -> Findings:
        """Of runs of the comparison in a folder, if it holds one."""
        return cls(tuple(runs), read_comparison(folder) if (folder / COMPARISON).is_file() else None)

    @cached_property
    def searches(self) -> Mapping[str, Tuned]:
        """How far the search for rates has come for each recipe; empty without one."""
        losses = {run.spec.name: final_metric(run) for run in self.runs if run.status in ENDED}
        return self.asked.searches(losses) if self.asked else {}

    @cached_property
    def shown(self) -> list[Replicates]:
        """One configuration of each recipe, in the order asked for.

        Recipes whose rates are still searched for are left out while others have come further.
        """
        found = analysis.replicates(self.runs)
        if not self.asked:
            return found
        waiting = {name for name, tuned in self.searches.items() if tuned.pending}
        found = [one for one in found if one.name not in waiting] or found
        order = [spec.recipe for spec in self.asked.recipes]
        return sorted(found, key=lambda one: order.index(one.name) if one.name in order else len(order))

    @cached_property
    def final_runs(self) -> list[Run]:
        """The runs of `shown`."""
        return [run for one in self.shown for run in one.runs]

    @cached_property
    def grid(self) -> Grid | None:
        """The grid that the comparison asked for; None without one."""
        return Grid.of(self.asked, self.runs) if self.asked else None

    def results(self) -> Table:
        """One row for each recipe."""
        metric = self.shown[0].runs[0].spec.objective.metric_label
        rows = [
            (
                Cell(one.name, swatch=index),
                one.final.text(),
                " ".join("diverged" if v is None else f"{v:.4f}" for v in map(final_metric, one.runs)),
                str(one.runs[0].spec.loop.steps),
                one.seconds.text(1),
                one.optimizer_share.text(0, percent=True),
                _rates(one.runs[0]),
            )
            for index, one in enumerate(self.shown)
        ]
        seeds = ", ".join(str(seed) for seed in dict.fromkeys(run.spec.seed for run in self.final_runs))
        return Table(
            ("recipe", f"final {metric}", "each seed", "steps", "seconds", "optimizer", "learning rates, warm-up"),
            rows,
            note=f"Mean ± standard deviation over the seeds {seeds}. Seconds are those of forward, backward and "
            "optimizer.",
        )

    def cross_tables(self) -> list[Table]:
        """For steps and for seconds: when the recipe of a row was where the recipe of a column ended."""
        tables = []
        for name, digits in (("steps", 0), ("seconds", 1)):
            rows = []
            for one in self.shown:
                cells = []
                for other in self.shown:
                    reached = one.reach(other)
                    in_steps = name == "steps"
                    spread, ratio = (
                        (reached.steps, reached.step_ratio) if in_steps else (reached.seconds, reached.time_ratio)
                    )
                    part = "" if one is other or ratio.mean is None else f" ({ratio.mean:.0%})"
                    cells.append(("never" if spread.mean is None else spread.text(digits)) + part)
                rows.append((one.name, *cells))
            tables.append(
                Table(
                    (f"{name} to the final loss of", *(one.name for one in self.shown)),
                    rows,
                    note="In brackets the share of what the other itself took; seed by seed, on the same batches.",
                )
            )
        return tables

    def sentences(self) -> list[str]:
        """The lowest loss, how soon it reached the others' ends, and what stands on the edge of what was tried."""
        ranked = sorted((g for g in self.shown if g.final.mean is not None), key=lambda one: one.final.mean or 0.0)
        if not ranked:
            return ["Every recipe diverged."]
        best, metric = ranked[0], self.shown[0].runs[0].spec.objective.metric_label
        lines = [f"Lowest {metric}: {best.name}, {best.final.text()}."]
        for other in ranked[1:]:
            reached = best.reach(other)
            if reached.step_ratio.mean is not None and reached.time_ratio.mean is not None:
                lines.append(
                    f"It reaches the end of {other.name} ({other.final.text()}) in {reached.step_ratio.mean:.0%} of "
                    f"its steps and {reached.time_ratio.mean:.0%} of its seconds."
                )
        lines += [f"{one.name} diverged." for one in self.shown if one.final.mean is None]
        if self.grid:
            chosen = [next((run for run in g.runs if final_metric(run) is not None), g.runs[0]) for g in self.shown]
            lines += [f"Note: {note}" for note in edge_notes(self.runs, chosen)]
        return lines + [f"{n}: {_search_state(tuned)}" for n, tuned in self.searches.items() if not tuned.bracketed]


def runs_table(measured: Sequence[Replicates], separator: str = "\n") -> Table:
    """One row for each run: how low it came, and when it was where the baseline ended.

    Args:
        measured: runs alone.
        separator: between a run's learning rates.
    """
    baseline = analysis.baseline_of(measured)
    objective, name = baseline.runs[0].spec.objective, baseline.name
    lowest = min((one.final.mean for one in measured if one.final.mean is not None), default=None)
    rows = []
    for index, one in enumerate(measured):
        run, final, reached = one.runs[0], one.final.mean, one.reach(baseline)
        best, share = analysis.best_evaluation(run), one.optimizer_share.mean
        missing = "diverged" if analysis.diverged_at(run) is not None else "not reached"
        reaches = [
            missing if spread.mean is None else f"{spread.mean:.1f}" + ("" if part is None else f" ({part:.0%})")
            for spread, part in (
                (reached.steps, reached.step_ratio.mean),
                (reached.seconds, reached.time_ratio.mean),
            )
        ]
        rows.append(
            (
                Cell(one.name, "" if run.status == "finished" else f"({run.status})", swatch=index),
                Cell(UNKNOWN if final is None else f"{final:.4f}", best=final is not None and final == lowest),
                UNKNOWN if best is None else f"{best[0]:.4f} ({best[1]})",
                *reaches,
                UNKNOWN if share is None else f"{share:.0%}",
                str(one.steps),
                f"{one.seconds.mean or 0.0:.1f}",
                _rates(run, separator),
            )
        )
    return Table(
        (
            "Run",
            f"Final\n{objective.metric_label}",
            "Best\n(at step)",
            f"Steps to\n{name}’s final",
            f"Seconds to\n{name}’s final",
            "Optimizer’s share\nof a step",
            "Steps",
            "Seconds",
            "Learning rates,\nwarm-up",
        ),
        rows,
        note=f"{objective.metric_label.capitalize()} in {objective.metric_unit}, lower is better. A run reaches the "
        f"final loss of {name} where the straight line between two evaluations first comes down to it; “not reached” "
        f"means that no evaluation did. Percentages are of what {name} itself took to reach it. Seconds count forward, "
        "backward and optimizer; evaluation, measurement and logging are left out.",
    )


def _tried(runs: Sequence[Run]) -> Table:
    """Every run that was tried for its learning rates, the best of each recipe marked."""
    best = {id(run) for run in analysis.best_of_recipe(runs)}
    ordered = sorted(runs, key=lambda run: (run.spec.recipe, -run.spec.loop.steps, final_metric(run) or 1e30))
    rows = []
    for run in ordered:
        end = final_metric(run)
        text = run.status if end is None else f"{end:.4f}"
        seed, steps = str(run.spec.seed), str(run.spec.loop.steps)
        rows.append((run.spec.name, _rates(run), steps, seed, Cell(text, best=id(run) in best)))
    return Table(("run", "learning rates, warm-up", "steps", "seed", "final"), rows)


def _what_ran(shown: Sequence[Run], folder: Path) -> Section:
    """The spec, the records and the events of each run."""
    parts = []
    for index, run in enumerate(shown):
        about = f"{_model(run)}. Seed {run.spec.seed}. Content hash {run.spec.content_hash}."
        links = {
            name: quote(Path(os.path.relpath((run.path / name).resolve(), folder.resolve())).as_posix())
            for name in (SPEC, ENVIRONMENT, RECORDS, SUMMARY)
            if (run.path / name).is_file()
        }
        described = [run.spec.description] if run.spec.description else []
        parts.append(Details(run.spec.name, index, [*described, about], links, _events(run), run.spec.to_json()))
    return Section("What ran", details=parts)


def _model(run: Run) -> str:
    """What was minimized, in words."""
    objective = run.spec.objective
    if not isinstance(objective, LanguageModel):
        return f"{objective.kind}: " + ", ".join(f"{key} {value}" for key, value in objective.settings.items())
    count = run.environment.get("parameters")
    size = f" of {count:,} parameters" if isinstance(count, int) else ""
    layers, steps = objective.layers, run.spec.loop.steps
    return (
        f"{objective.family}{size}: {layers} layer{'s' if layers != 1 else ''}, width {objective.hidden_size}, "
        f"MLP {objective.mlp}, vocabulary {objective.vocabulary}; {objective.batch} sequences of "
        f"{objective.sequence} tokens a step, {steps} step{'s' if steps != 1 else ''} planned; "
        f"corpus {run.environment.get('corpus', objective.corpus)}"
    )


def _events(run: Run) -> list[str]:
    """What happened: each event and message once, with its first step."""
    first: dict[tuple[str, str], int] = {}
    count = Counter()
    for record in run.of_kind("event"):
        event = record["event"], str(record.get("message", ""))
        first.setdefault(event, record["step"])
        count[event] += 1
    return [
        f"Step {first[event]}: {event[0]}. {event[1]}" + (f" ({times} times)" if times > 1 else "")
        for event, times in count.items()
    ]


def _rates(run: Run, separator: str = ", ") -> str:
    """Each learning rate with the roles that have it, and the length of the warm-up."""
    roles: dict[float, list[str]] = {}
    for role, rate in run.spec.learning_rates.items():
        roles.setdefault(rate, []).append(role)
    rates = separator.join(f"{'+'.join(sharing)} {rate:g}" for rate, sharing in roles.items())
    return rates if (warmup := warmup_of(run.spec)) is None else f"{rates}{separator}warm-up {warmup} steps"


def _search_state(tuned: Tuned) -> str:
    if tuned.pending:
        return f"the search is under way; {len(tuned.pending)} runs are known to come."
    if tuned.bracketed:
        return f"every rate has a worse one below and above it, after {tuned.extensions} rounds beyond the first grid."
    return f"the search was ended after {tuned.extensions} rounds; a better rate may lie further out."
