"""Findings of compared runs as tables, sentences and a page: runs side by side, or recipes over seeds or a grid."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from polargrad.lab.comparison import analysis
from polargrad.lab.comparison.analysis import Replicates, Spread, final_metric
from polargrad.lab.comparison.comparison import Comparison, read_comparison
from polargrad.lab.comparison.grid import Grid, edge_notes, warmup_of
from polargrad.lab.comparison.rate_search import SearchState
from polargrad.lab.report.curves import gradient_sections, loss_figures
from polargrad.lab.report.page import UNKNOWN, Cell, Details, Section, Table, write_page
from polargrad.lab.run.folder import ENDED, ENVIRONMENT, RECORDS, SPEC, SUMMARY, Run, find_runs, read_run, status_of
from polargrad.lab.run.spec import LanguageModel

_REACHING = (
    "A run reaches the final loss of {} where the straight line between two evaluations first comes down to it; “not "
    "reached” means that no evaluation did. Percentages are of what {} itself took to reach it."
)
_SECONDS = "Seconds count forward, backward and optimizer; evaluation, measurement and logging are left out."


@dataclass(frozen=True)
class Findings:
    """Results of runs compared with each other.

    Args:
        runs: at least one, all judged by the same metric; those of a search for rates included.
        comparison: the comparison that they belong to; None for runs of any origin.

    Raises:
        ValueError: if there are no runs, or if they do not share a metric.
    """

    runs: Sequence[Run]
    comparison: Comparison | None = None

    def __post_init__(self) -> None:
        analysis.alone(self.runs)
        object.__setattr__(self, "runs", tuple(analysis.with_distinct_names(self.runs)))

    @classmethod
    def read(cls, folder: Path) -> Findings:
        """The findings of the runs that have ended in the folder of a comparison.

        Raises:
            FileNotFoundError: if none has, or if the folder holds no comparison.
        """
        comparison = read_comparison(folder)
        runs = [read_run(path) for path in find_runs(folder) if status_of(path) in ENDED]
        if not runs:
            raise FileNotFoundError(f"no run in {folder} has ended yet; `polargrad resume {folder}` continues it")
        order = list(comparison.places)
        runs.sort(key=lambda run: order.index(run.spec.name) if run.spec.name in order else len(order))
        return cls(runs, comparison)

    @property
    def is_replicated(self) -> bool:
        """Whether recipes are compared over seeds, a grid or searched rates, rather than runs side by side."""
        asked = self.comparison
        return asked is not None and (asked.tune or len(asked.seeds) > 1 or bool(asked.sweep))

    @cached_property
    def searches(self) -> Mapping[str, SearchState]:
        """The state of each recipe's search for learning rates; empty without one."""
        losses = {run.spec.name: final_metric(run) for run in self.runs if run.status in ENDED}
        return self.comparison.searches(losses) if self.comparison else {}

    @cached_property
    def shown(self) -> list[Replicates]:
        """The best run of each recipe; over seeds one configuration of each recipe, in the comparison's order.

        Recipes whose rates are still being searched for are left out, unless all are.
        """
        if not self.comparison or not self.is_replicated:
            return analysis.alone(analysis.best_of_recipe(self.runs))
        waiting = {name for name, state in self.searches.items() if state.pending}
        seeds = self.comparison.seeds  # of the runs that count, and not of a search
        counting = [run for run in self.runs if run.spec.seed in seeds]
        found = analysis.replicates(counting or self.runs)
        found = [one for one in found if one.name not in waiting] or found
        order = [spec.recipe for spec in self.comparison.recipes]
        return sorted(found, key=lambda one: order.index(one.name) if one.name in order else len(order))

    @cached_property
    def is_mixed(self) -> bool:
        """Whether some of what is shown has another objective, text or length than the rest."""
        return any(analysis.not_comparable(one.runs[0], self.shown[0].runs[0]) for one in self.shown)

    @cached_property
    def grid(self) -> Grid | None:
        """The grid of the comparison; None without one."""
        return Grid.of(self.comparison, self.runs) if self.comparison else None

    def title(self) -> str:
        """The title of the page."""
        names, baseline = [one.name for one in self.shown], analysis.baseline_of(self.shown).name
        if self.is_replicated:
            seeds = len(self.shown[0].runs)
            return f"{', '.join(names)}: {seeds} seed{'s' if seeds > 1 else ''}"
        others = [name for name in names if name != baseline]
        against = " and ".join(others) if len(others) < 3 else f"{len(others)} runs"
        return f"{against} against {baseline}" if others else baseline

    def sentences(self) -> list[str]:
        """Final losses, and how soon the best recipe reached those of the others."""
        if not self.is_replicated:
            baseline = analysis.baseline_of(self.shown)
            ordered = sorted(self.shown, key=lambda one: one is not baseline)  # the other sentences refer to it
            return [analysis.sentence(one, baseline) for one in ordered]
        ranked = sorted((g for g in self.shown if g.final.mean is not None), key=lambda one: one.final.mean or 0.0)
        if not ranked:
            return ["Every recipe diverged."]
        best, metric = ranked[0], self.runs[0].spec.objective.metric_label
        if self.is_mixed:
            best = analysis.baseline_of(self.shown)
            lines = [f"{best.name} ends at {best.final.text()}."]
        else:
            lines = [f"Lowest {metric}: {best.name}, {best.final.text()}."]
        for other in (one for one in ranked if one is not best):
            if what := analysis.not_comparable(other.runs[0], best.runs[0]):
                lines.append(
                    f"{other.name} ends at {other.final.text()}; it is not held against {best.name}, whose {what} is "
                    "another."
                )
                continue
            reached = best.reach(other)
            if reached.step_ratio.mean is not None and reached.time_ratio.mean is not None:
                lines.append(
                    f"It reaches the end of {other.name} ({other.final.text()}) in {reached.step_ratio.mean:.0%} of "
                    f"its steps and {reached.time_ratio.mean:.0%} of its seconds."
                )
        return lines + [f"{one.name} diverged." for one in self.shown if one.final.mean is None]

    def warnings(self) -> list[str]:
        """Reasons why the comparison may be unfair, and rates or warm-ups on the edge of the values tried."""
        if not self.is_replicated:
            return [*analysis.cautions(self.runs), *edge_notes(self.runs)]
        final = [run for one in self.shown for run in one.runs]
        found = analysis.cautions([run for run in final if run.spec.seed == final[0].spec.seed])
        if self.grid:
            chosen = [next((run for run in g.runs if final_metric(run) is not None), g.runs[0]) for g in self.shown]
            found += edge_notes(self.runs, chosen)
        return found + [f"{n}: {_search_state(state)}" for n, state in self.searches.items() if not state.bracketed]

    def results(self, *, for_terminal: bool = False) -> Table:
        """A table with a row for each run or recipe; for a terminal with fewer columns and lines."""
        baseline = analysis.baseline_of(self.shown)
        objective, name = self.runs[0].spec.objective, baseline.name
        lowest = min((one.final.mean for one in self.shown if one.final.mean is not None), default=None)
        best, in_steps, in_seconds = "Best\n(at step)", f"Steps to\n{name}’s final", f"Seconds to\n{name}’s final"
        left_out = {best, in_steps, in_seconds} if self.is_replicated else {"Each seed"}
        left_out |= {"Steps", in_seconds} if for_terminal else set()
        others = [one for one in self.shown if one is not baseline]
        if others and all(analysis.not_comparable(one.runs[0], baseline.runs[0]) for one in others):
            left_out |= {in_steps, in_seconds}
        rows = []
        lowest = None if self.is_mixed else lowest
        for index, one in enumerate(self.shown):
            run, reached, low = one.runs[0], one.reach(baseline), analysis.best_evaluation(one.runs[0])
            status = "" if self.is_replicated or run.status == "finished" else f"({run.status})"
            final = UNKNOWN if one.final.mean is None else one.final.text()
            ends = ["diverged" if end is None else f"{end:.4f}" for end in map(final_metric, one.runs)]
            row = {
                "Recipe" if self.is_replicated else "Run": Cell(one.name, status, swatch=index),
                f"Final\n{objective.metric_label}": Cell(final, best=lowest is not None and one.final.mean == lowest),
                "Each seed": " ".join(ends),
                best: UNKNOWN if low is None else f"{low[0]:.4f} ({low[1]})",
                in_steps: _reached(run, reached.steps, reached.step_ratio),
                in_seconds: _reached(run, reached.seconds, reached.time_ratio),
                "Optimizer\nshare": one.optimizer_share.text(0, percent=True),
                "Steps": str(one.steps),
                "Seconds": one.seconds.text(1),
                "Learning rates,\nwarm-up": _rates(run, ", " if for_terminal else "\n"),
            }
            rows.append({head: cell for head, cell in row.items() if head not in left_out})
        seeds = dict.fromkeys(run.spec.seed for one in self.shown for run in one.runs)
        note = f"{objective.metric_label.capitalize()} in {objective.metric_unit}, lower is better"
        if self.is_replicated:
            note += f"; mean ± standard deviation over the seeds {', '.join(map(str, seeds))}. {_SECONDS}"
        else:
            note += f". {_REACHING.format(name, name)} {_SECONDS}"
        return Table(tuple(rows[0]), [tuple(row.values()) for row in rows], note)

    def cross_tables(self) -> list[Table]:
        """Steps and seconds until the recipe of a row reached the final loss of the recipe of a column."""
        note = "In brackets the ratio to the other’s own; seed by seed, on the same batches."

        def cell(spread: Spread, ratio: Spread, digits: int, alone: bool) -> str:
            part = "" if alone or ratio.mean is None else f" ({ratio.mean:.0%})"
            if not spread.of:
                return "not comparable"
            return ("never" if spread.mean is None else spread.text(digits)) + part

        steps, seconds = [], []
        for one in self.shown:
            reached = [(one.reach(other), one is other) for other in self.shown]
            steps.append((one.name, *(cell(r.steps, r.step_ratio, 0, alone) for r, alone in reached)))
            seconds.append((one.name, *(cell(r.seconds, r.time_ratio, 1, alone) for r, alone in reached)))
        names = [one.name for one in self.shown]
        return [
            Table((f"{what} to the final loss of", *names), rows, note)
            for what, rows in (("steps", steps), ("seconds", seconds))
        ]

    def sections(self, folder: Path) -> list[Section]:
        """The page below its summary.

        Args:
            folder: of the page.
        """
        from polargrad.lab.comparison.figures import figures

        best = "The best run of each recipe." if len(self.shown) < len(self.runs) else ""
        text = ["Each recipe at its best point of the grid."] if self.grid else []
        sections = [Section("Results", text, [self.results()], note="" if self.is_replicated else best)]
        level, note = None, ""
        if not self.is_replicated:
            note = "Marks are evaluations on held-out data, the faint lines behind them the training loss"
            if len(self.shown) > 1:
                baseline = analysis.baseline_of(self.shown)
                if not self.is_mixed:
                    level, note = baseline.final.mean, f"{note}, the dotted line {baseline.name}’s final loss"
            note += "."
        losses = loss_figures({one.name: one.runs for one in self.shown}, level)
        sections.append(Section("Loss", figures=losses, note=note))
        if self.grid:
            sections.append(Section("The grid", self.grid.sentences(), self.grid.tables(), figures(self.grid)))
        if self.is_replicated:
            sections.append(Section("Steps and seconds to each other’s final loss", (), self.cross_tables()))
        if tried := self.tried():
            notes = [f"{name}: {_search_state(state)}" for name, state in self.searches.items()]
            sections.append(Section("Learning rates tried", notes, [tried]))
        first = [one.runs[0] for one in self.shown]
        of_seed = f"Of the runs with seed {first[0].spec.seed}." if self.is_replicated else ""
        return [
            *sections,
            *gradient_sections({one.name: one.runs[0] for one in self.shown}, of_seed),
            *_texts(first),
            _what_ran(first, folder),
        ]

    def tried(self) -> Table | None:
        """The runs of a search for learning rates, the best of each recipe marked; None without one."""
        final = [run for one in self.shown for run in one.runs]
        tried = [run for run in self.runs if run not in final] if self.is_replicated else self.runs
        if self.grid or not tried or len(final) == len(self.runs):
            return None
        best = {id(run) for run in analysis.best_of_recipe(tried)}
        rows = []
        for run in sorted(tried, key=lambda run: (run.spec.recipe, -run.spec.loop.steps, final_metric(run) or 1e30)):
            end = final_metric(run)
            text = Cell(run.status if end is None else f"{end:.4f}", best=id(run) in best)
            rows.append((run.spec.name, _rates(run), str(run.spec.loop.steps), str(run.spec.seed), text))
        return Table(("run", "learning rates, warm-up", "steps", "seed", "final"), rows)

    def tables(self) -> list[Table]:
        """Every table, for a terminal."""
        found = [self.results(for_terminal=True), *(self.cross_tables() if self.is_replicated else [])]
        found += self.grid.tables() if self.grid else []
        return [*found, *filter(None, [self.tried()])]

    def write_page(self, page: str | Path, *, save_figures: bool | None = None) -> Path:
        """Write the page and return its path.

        Args:
            page: the file; one that exists is replaced.
            save_figures: whether to write the figures also into `figures` beside the page; by default those of recipes
                over seeds or a grid, since runs draw their own.
        """
        return write_page(
            page,
            self.title(),
            self.sentences(),
            self.sections(Path(page).parent),
            {run.spec.name: run.environment for run in self.runs},
            warnings=self.warnings(),
            save_figures=self.is_replicated if save_figures is None else save_figures,
        )


def _texts(shown: Sequence[Run]) -> list[Section]:
    """What each trained language model wrote at the end of its run; empty where none did."""
    written = [(index, run, record) for index, run in enumerate(shown) for record in run.of_kind("sample")[-1:]]
    parts = [Details(run.spec.name, index, code=record["text"]) for index, run, record in written]
    note = "Drawn at temperature 0.8 from the 50 most likely tokens; `polargrad sample` continues a text of yours."
    return [Section("Text that the models write", note=note, details=parts)] if parts else []


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
    """The objective in words."""
    objective = run.spec.objective
    if not isinstance(objective, LanguageModel):
        return f"{objective.problem.kind}: " + ", ".join(f"{key} {value}" for key, value in objective.settings.items())
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
    """Each event and message once, with its first step."""
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


def _reached(run: Run, spread: Spread, ratio: Spread) -> str:
    if not spread.of:
        return "not comparable"
    if spread.mean is None:
        return "not reached" if analysis.diverged_at(run) is None else "diverged"
    return f"{spread.mean:.1f}" + ("" if ratio.mean is None else f" ({ratio.mean:.0%})")


def _rates(run: Run, separator: str = ", ") -> str:
    """Each learning rate with the roles that have it, and the length of the warm-up."""
    roles: dict[float, list[str]] = {}
    for role, rate in run.spec.learning_rates.items():
        roles.setdefault(rate, []).append(role)
    rates = separator.join(f"{'+'.join(sharing)} {rate:g}" for rate, sharing in roles.items())
    return rates if (warmup := warmup_of(run.spec)) is None else f"{rates}{separator}warm-up {warmup} steps"


def _search_state(state: SearchState) -> str:
    if state.pending:
        return f"the search is under way; {len(state.pending)} runs are known to come."
    return state.ended
