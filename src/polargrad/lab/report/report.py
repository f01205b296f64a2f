"""One self-contained HTML page about some runs, made from their folders alone.

Everything that comes from a run is escaped: jinja2 escapes what it is given, matplotlib what it draws. The page asks
for nothing outside itself; links to the records are relative.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from polargrad.lab.compare import analysis
from polargrad.lab.compare.analysis import Outcome
from polargrad.lab.compare.sweep import edge_notes
from polargrad.lab.run.folder import ENVIRONMENT, RECORDS, SPEC, SUMMARY, Run
from polargrad.lab.run.spec import LanguageModel

if TYPE_CHECKING:
    from polargrad.lab.report.plots import Figure

UNKNOWN = "–"


def write_report(runs: Sequence[Run], page: str | Path) -> Path:
    """Write the report of some runs.

    Args:
        runs: at least one, all judged by the same metric. Where a recipe has several, the figures show its best.
        page: the file to write. One that is there is replaced, since it holds nothing that the records do not.

    Returns:
        The page's path.

    Raises:
        ValueError: if there are no runs, or if they do not share a metric.
    """
    from polargrad.lab.report import plots

    page = Path(page)
    if runs and not isinstance(runs[0].spec.objective, LanguageModel):
        from polargrad.lab.matrix import laboratory

        return laboratory.report(runs, page)
    runs = analysis.with_distinct_names(runs)
    shown = analysis.best_of_recipe(runs)
    measured = analysis.outcomes(shown)
    html = _render(runs, measured, plots.figures(shown), page.parent)
    part = page.with_name(page.name + ".part")
    part.write_text(html, encoding="utf-8")
    part.replace(page)
    return page


def _render(runs: Sequence[Run], measured: Sequence[Outcome], drawn: Sequence[Figure], folder: Path) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from polargrad.lab.report import plots

    shown = [outcome.run for outcome in measured]
    baseline = analysis.baseline_of(shown)
    objective = baseline.spec.objective
    template = Environment(
        loader=PackageLoader("polargrad.lab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    lowest = min((o.final for o in measured if o.final is not None), default=None)
    return template.render(
        title=_title(shown, baseline),
        subtitle=f"polargrad report of {datetime.now():%Y-%m-%d %H:%M}, {_plural(len(runs), 'run')}",
        sentences=_sentences(measured, baseline),
        cautions=analysis.cautions(runs),
        metric_label=objective.metric_label,
        metric_label_capitalized=objective.metric_label.capitalize(),
        metric_unit=objective.metric_unit,
        baseline=baseline.spec.name,
        rows=[_row(i, outcome, lowest, folder) for i, outcome in enumerate(measured)],
        sweep=_sweep_rows(runs) if len(runs) > len(shown) else [],
        edges=edge_notes(runs),
        sections=_sections(drawn),
        environment=_environment(runs),
        colors={"ink": plots.INK, "muted": plots.MUTED, "rule": plots.RULE, "light": plots.LIGHT, "dark": plots.DARK},
    )


def _title(shown: Sequence[Run], baseline: Run) -> str:
    others = [run.spec.name for run in shown if run is not baseline]
    if not others:
        return baseline.spec.name
    return f"{' and '.join(others) if len(others) < 3 else f'{len(others)} runs'} against {baseline.spec.name}"


def _sentences(measured: Sequence[Outcome], baseline: Run) -> list[str]:
    """The baseline's sentence first, since the others refer to it."""
    ordered = sorted(measured, key=lambda outcome: outcome.run is not baseline)
    return [analysis.sentence(outcome, baseline) for outcome in ordered]


def _row(index: int, outcome: Outcome, lowest: float | None, folder: Path) -> dict[str, Any]:
    from polargrad.lab.report.plots import LIGHT

    run = outcome.run
    return {
        "name": run.spec.name,
        "color": index % len(LIGHT),
        "status": run.status,
        "final": _figure(outcome.final),
        "is_best": outcome.final is not None and outcome.final == lowest,
        "best": UNKNOWN if outcome.best is None else f"{outcome.best:.4f} ({outcome.best_step})",
        "reach_steps": _reached(outcome, outcome.reach and outcome.reach.step, outcome.step_ratio),
        "reach_seconds": _reached(outcome, outcome.reach and outcome.reach.seconds, outcome.time_ratio),
        "optimizer_share": UNKNOWN if outcome.optimizer_share is None else f"{outcome.optimizer_share:.0%}",
        "steps": outcome.steps,
        "seconds": f"{outcome.seconds:.1f}",
        "rates": _rates(run),
        "description": run.spec.description,
        "model": _model(run),
        "seed": run.spec.seed,
        "hash": run.spec.content_hash,
        "links": _links(run, folder),
        "events": _events(run),
        "spec": run.spec.to_json(),
    }


def _reached(outcome: Outcome, value: float | None, ratio: float | None) -> str:
    if value is None:
        return "diverged" if outcome.diverged_at is not None else "not reached"
    return f"{value:.1f}" + ("" if ratio is None else f" ({ratio:.0%})")


def _rates(run: Run) -> list[str]:
    """One entry for each learning rate, with the roles that have it."""
    roles: dict[float, list[str]] = {}
    for role, rate in run.spec.learning_rates.items():
        roles.setdefault(rate, []).append(role)
    return [f"{', '.join(sharing)} {rate:g}" for rate, sharing in roles.items()]


def _model(run: Run) -> str:
    """What was minimized, in words."""
    objective = run.spec.objective
    if not isinstance(objective, LanguageModel):
        return f"{objective.kind}: " + ", ".join(f"{key} {value}" for key, value in vars(objective).items())
    count = run.environment.get("parameters")
    size = f" of {count:,} parameters" if isinstance(count, int) else ""
    return (
        f"{objective.family}{size}: {_plural(objective.layers, 'layer')}, width {objective.hidden_size}, "
        f"MLP {objective.mlp}, vocabulary {objective.vocabulary}; {objective.batch} sequences of "
        f"{objective.sequence} tokens a step, {_plural(run.spec.loop.steps, 'step')} planned; "
        f"corpus {run.environment.get('corpus', objective.corpus)}"
    )


def _events(run: Run) -> list[str]:
    """What happened, each kind of event and message once, with the step at which it first did."""
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


def _links(run: Run, folder: Path) -> list[dict[str, str]]:
    """Relative links to the run's files as seen from the page's folder."""
    links = []
    for name in (SPEC, ENVIRONMENT, RECORDS, SUMMARY):
        if (run.path / name).is_file():
            relative = os.path.relpath((run.path / name).resolve(), folder.resolve())
            links.append({"href": quote(Path(relative).as_posix()), "text": name})
    return links


def _sweep_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every run of every recipe, the best of each marked."""
    best = {id(run) for run in analysis.best_of_recipe(runs)}
    return [
        {
            "name": run.spec.name,
            "rates": "; ".join(_rates(run)),
            "final": "diverged" if run.status == "diverged" else _figure(analysis.final_metric(run)),
            "is_best": id(run) in best,
        }
        for run in runs
    ]


def _sections(drawn: Sequence[Figure]) -> list[tuple[str, list[dict[str, Any]]]]:
    from markupsafe import Markup

    from polargrad.lab.report.plots import inline_svg

    sections: dict[str, list[dict[str, Any]]] = {}
    for figure in drawn:
        # Safe: the tags are matplotlib's own, and its XML writer escaped the text between them.
        sections.setdefault(figure.section, []).append({"title": figure.title, "svg": Markup(inline_svg(figure))})
    return list(sections.items())


def _environment(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """One line for each entry; where runs differ, each value with the runs that have it."""
    lines = []
    for key in dict.fromkeys(key for run in runs for key in run.environment):
        values: dict[str, list[str]] = {}
        for run in runs:
            values.setdefault(_said(run.environment.get(key)), []).append(run.spec.name)
        text = next(iter(values)) if len(values) == 1 else "; ".join(f"{v} ({', '.join(n)})" for v, n in values.items())
        lines.append((key.replace("_", " "), text))
    return lines


def _said(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(entry)}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
