"""The page of a matrix experiment, made from its run folders alone: tables, sentences and the paper's figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polargrad.lab.matrix.configurations import Configuration, Experiment
from polargrad.lab.matrix.problem import ProblemSpec
from polargrad.lab.report import page as report
from polargrad.lab.report.curves import over_seeds
from polargrad.lab.report.figures import LIGHT, MARKERS, MUTED, Figure, Line, line_figure, style
from polargrad.lab.report.page import UNKNOWN, Section, Table
from polargrad.lab.run.folder import Run

COLUMNS = ("configuration", "step size", "start", "quarter", "half", "end", "lowest", "ms/step", "optimizer", "status")
_HELD_OUT = "held_out_rmse"


def final_gaps(runs: Sequence[Run]) -> dict[str, float | None]:
    """The gap of each configuration at its last evaluation, the median over its seeds; None where one diverged."""
    gaps: dict[str, list[float | None]] = {}
    for run in runs:
        gap = None if run.status == "diverged" else run.of_kind("eval")[-1]["gap"]
        gaps.setdefault(run.spec.recipe, []).append(gap)
    return {
        name: None if None in values else statistics.median(v for v in values if v is not None)
        for name, values in gaps.items()
    }


def results(runs: Sequence[Run]) -> Table:
    """One row for each run: the gap on the way and at the end, and what a step cost."""
    label = runs[0].spec.objective.metric_label
    note = f"Start to lowest: {label}, in float64. Times are of this machine under its load then."
    rows = [_row(run) for run in runs]
    if not any(_HELD_OUT in record for run in runs for record in run.of_kind("eval")):
        return Table(COLUMNS, rows, note)
    held_out = [run.of_kind("eval")[-1].get(_HELD_OUT) for run in runs]
    return Table(
        (*COLUMNS[:-1], "held out", COLUMNS[-1]),
        [[*row[:-1], _gap(error), row[-1]] for row, error in zip(rows, held_out, strict=True)],
        f"{note} Held out: root mean squared error of entries that were not observed, at the end.",
    )


def write_page(experiment: Experiment, runs: Sequence[Run], page: str | Path) -> Path:
    """Write figures and page of an experiment's runs.

    Args:
        experiment: the experiment that the runs belong to.
        runs: at least one.
        page: the file to write; figures go into `figures` beside it. What is there is replaced, since it holds nothing
            that the records do not.

    Returns:
        The page's path.
    """
    drawn = figures(experiment, runs)
    objective, preset = runs[0].spec.objective, runs[0].spec.description.rpartition(" ")[2]
    assert isinstance(objective, ProblemSpec)
    sizes = ", ".join(f"{key} {value}" for key, value in objective.settings.items())
    seeds = sorted({run.spec.seed for run in runs})
    lead = [
        f"{experiment.formula}. {sizes}. Preset {preset}, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}.",
        *sentences(runs),
    ]
    momentum = [figure for figure in drawn if figure.key.startswith("momentum-")]
    first = [figure for figure in drawn if figure not in momentum]
    sections = [Section("Results", tuple(experiment.notes.get(preset, ())), (results(runs),))]
    sections += [
        Section(title, figures=part) for title, part in (("Figures", first), ("With momentum", momentum)) if part
    ]
    environments = {run.spec.name: run.environment for run in runs}
    return report.write_page(page, experiment.title, lead, sections, environments)


def sentences(runs: Sequence[Run]) -> list[str]:
    """The lowest and the highest end of runs of each length, and what went wrong in which run."""
    said, lengths = [], sorted({run.spec.loop.steps for run in runs})
    for steps in lengths:  # a longer run is not held against a shorter one
        gaps = final_gaps([run for run in runs if run.spec.loop.steps == steps])
        finished = sorted((gap, name) for name, gap in gaps.items() if gap is not None)
        if finished:
            (low, best), (high, worst) = finished[0], finished[-1]
            end = "at the end" if len(lengths) == 1 else f"after {steps} steps"
            highest = f"; highest: {worst}, {high:.2g}" if len(finished) > 1 or len(lengths) == 1 else ""
            said.append(f"Lowest {end}: {best}, {low:.2g}{highest}.")
    for run in runs:
        said += [
            f"{run.spec.name} diverged at step {event['step']}: {event['message']}."
            for event in run.of_kind("event")
            if event["event"] == "diverged"
        ]
    skipping = [
        run.spec.name
        for run in runs
        if run.status != "diverged" and any(event["event"] == "skipped" for event in run.of_kind("event"))
    ]
    if skipping:
        said.append(f"Gradients with NaN or infinity were left out in {', '.join(skipping)}.")
    return said


def _row(run: Run) -> list[str]:
    evaluations, steps = run.of_kind("eval"), run.of_kind("step")
    total = run.spec.loop.steps

    def at(step: float) -> str:
        near = [record for record in evaluations if record["step"] <= step]
        return _gap(near[-1]["gap"]) if near and evaluations[-1]["step"] >= step else UNKNOWN

    gaps = [record["gap"] for record in evaluations if record["gap"] is not None]
    count, seconds = (steps[-1]["step"], steps[-1]["seconds"]) if steps else (0, 0.0)
    share = steps[-1]["optimizer_seconds"] / seconds if steps and seconds else None
    return [
        run.spec.name,
        ", ".join(f"{rate:g}" for rate in run.spec.learning_rates.values()),
        at(0),
        at(total / 4),
        at(total / 2),
        at(total),
        _gap(min(gaps, default=None)),
        f"{1e3 * seconds / count:.2f}" if count else UNKNOWN,
        UNKNOWN if share is None else f"{share:.0%}",
        run.status,
    ]


def _gap(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2e}"


# One colour for each family of optimizers, in the order of `LIGHT`.
_FAMILIES = ("PolarGrad", "Muon", "polar first", "momentum first", "Newton", "Adam")
_DASHES = ("-", (0, (4.5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))


def figures(experiment: Experiment, runs: Sequence[Run]) -> list[Figure]:
    """Every figure that the records allow: first without momentum, then its variants beside plain PolarGrad."""
    known = {c.name: c for every in experiment.presets.values() for c in every}
    ran = [known[name] for name in dict.fromkeys(run.spec.recipe for run in runs) if name in known]
    momentum, first = [c for c in ran if c.momentum], [c for c in ran if not c.momentum]
    groups = [("", "", first)]
    if momentum:
        groups.append(("momentum-", " with momentum", [*[c for c in first if c.family == "PolarGrad"][:2], *momentum]))
    with style():
        drawn = [
            _figure(prefix + key, title + suffix, ylabel, group, runs, what)
            for prefix, suffix, group in groups
            for key, title, ylabel, what in _panels(runs)
        ]
    return [figure for figure in drawn if figure is not None]


def _panels(runs: Sequence[Run]) -> list[tuple[str, str, str, dict[str, str]]]:
    """Key, title and y axis of each figure, and what `over_seeds` takes for it."""
    label, gap = runs[0].spec.objective.metric_label, {"kind": "eval", "key": "gap"}
    kappa = "condition number"
    panels = [
        ("objective", "Objective", label, gap),
        ("objective-seconds", "Objective against time", label, {**gap, "x": "seconds"}),
        ("residual-condition", "Condition number of the residual", kappa, {**gap, "key": "residual_condition_number"}),
        ("held-out", "Held-out entries", "root mean squared error", {**gap, "key": _HELD_OUT}),
    ]
    parameters = dict.fromkeys(record["parameter"] for run in runs for record in run.of_kind("matrix"))
    for parameter in parameters:
        where = f" in {parameter}" if len(parameters) > 1 else ""
        for name in (kappa, "nuclear norm", "stable rank", "alignment"):
            what = {"kind": "matrix", "key": name.replace(" ", "_"), "parameter": parameter}
            key = f"gradient-{name.replace(' ', '-')}-{parameter}"
            panels.append((key, f"{name.capitalize()} of the gradient{where}", name, what))
    return panels


def _figure(
    key: str, title: str, ylabel: str, group: Sequence[Configuration], runs: Sequence[Run], what: Mapping[str, Any]
) -> Figure | None:
    """One line for each configuration, a band where it ran on several seeds, a cross where it diverged."""
    seen: dict[str, int] = {}
    lines, momentum_ends = [], []
    for c in group:
        same = [run for run in runs if run.spec.recipe == c.name]
        curve = over_seeds(same, **what, positive=True, center=statistics.median)
        if not curve.x:
            continue
        # A family beyond the palette is grey; its dashes distinguish it from the dark one.
        in_palette = c.family in _FAMILIES
        variant = seen.get(c.family, 0 if in_palette else 3)
        seen[c.family] = variant + 1
        look = {
            "color": LIGHT[_FAMILIES.index(c.family)] if in_palette else MUTED,
            "linestyle": _DASHES[variant % len(_DASHES)],
            "linewidth": 1.5,
            "marker": MARKERS[len(lines) % len(MARKERS)],
            "markevery": (
                len(lines),
                max(1, len(curve.x) // 12),
            ),  # shifted, so that lines that coincide are told apart
        }
        lines.append(Line(c.label, curve, look, diverged=any(run.status == "diverged" for run in same)))
        momentum_ends += [curve.x[-1]] if c.momentum else []
    if not lines:
        return None
    xlabel = what.get("x", "iteration")
    figure = line_figure(key, title, lines, xlabel=xlabel, ylabel=ylabel, log=True)
    if momentum_ends:  # the variants without momentum may have run for longer
        figure.canvas.axes[0].set_xlim(-0.02 * max(momentum_ends), 1.02 * max(momentum_ends))
    return figure
