"""Curves of runs, read from their records: the loss, and metrics of the gradients that were measured.

A line is one run, or one recipe over several seeds: then the mean, and a band from the lowest to the highest seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from polargrad.lab.report.figures import Curve, Figure, Line, line_figure, line_style, save
from polargrad.lab.report.page import Section
from polargrad.lab.run.folder import FIGURES, Run
from polargrad.lab.run.spec import LanguageModel

# Key of a matrix record, and its name.
GRADIENT_METRICS = (("condition_number", "condition number"), ("nuclear_norm", "nuclear norm"))
SECONDS = "seconds of forward, backward and optimizer"


def over_seeds(
    runs: Sequence[Run],
    kind: str,
    key: str,
    *,
    x: str = "step",
    parameter: str | None = None,
    positive: bool = False,
    center: Callable[[Sequence[float]], float] = statistics.fmean,
) -> Curve:
    """A metric at the steps that all of the runs recorded.

    Args:
        runs: one configuration with different seeds.
        kind: of record, "eval" or "matrix".
        key: of the metric; records without it, or with null, do not count.
        x: "step" or "seconds".
        parameter: of matrix records.
        positive: whether only positive values count, as on a logarithmic axis.
        center: the mean, or another middle of the seeds' values.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        for record in run.of_kind(kind):
            value = record.get(key)
            if value is None or (positive and value <= 0.0) or parameter not in (None, record.get("parameter")):
                continue
            found.setdefault(record["step"], []).append((record[x], value))
    points = [points for _, points in sorted(found.items()) if len(points) == len(runs)]
    values = [[value for _, value in at] for at in points]
    return Curve(
        tuple(center([place for place, _ in at]) for at in points),
        tuple(map(center, values)),
        tuple(map(min, values)),
        tuple(map(max, values)),
    )


def loss_figures(shown: Mapping[str, Sequence[Run]], level: float | None = None) -> list[Figure]:
    """The metric against steps and against seconds. A run alone has its training loss faintly behind it.

    Args:
        shown: the runs of each line, by its name.
        level: where a dotted line stands, such as the baseline's final loss.
    """
    objective = next(iter(shown.values()))[0].spec.objective
    metric, label = objective.metric, objective.metric_label
    several = any(len(runs) > 1 for runs in shown.values())
    drawn = []
    for x, short, xlabel in (("step", "steps", "steps"), ("seconds", "seconds", SECONDS)):
        lines = []
        for index, (name, runs) in enumerate(shown.items()):
            curve = over_seeds(runs, "eval", metric, x=x)
            behind = None if len(runs) > 1 else _training(runs[0], x)
            lines.append(Line(name, curve, line_style(index, len(curve.x)), behind))
        starts = [line.curve.high[0] for line in lines if line.curve.x]
        drawn.append(
            line_figure(
                f"loss-{short}",
                f"{label.capitalize()} against {short}",
                lines,
                subtitle="mean, and band from the lowest to the highest seed" if several else "",
                xlabel=xlabel,
                ylabel=f"{label} ({objective.metric_unit})",
                # a run that blows up must not flatten the others
                top=max(starts) + 0.06 * abs(max(starts)) if starts else None,
                level=level,
            )
        )
    return drawn


def gradient_sections(shown: Mapping[str, Run], note: str = "") -> list[Section]:
    """A section for each metric of the measured gradients, with a figure for each matrix; none without records.

    Args:
        shown: a run for each line, by its name.
        note: below the headings.
    """
    sections = []
    for key, name in GRADIENT_METRICS:
        if drawn := list(_gradient_figures(shown, key, name)):
            text = "Of the raw gradient, before momentum and before any clipping."
            sections.append(
                Section(f"{name.capitalize()} of the gradient", note=f"{text} {note}".strip(), figures=drawn)
            )
    return sections


def draw(run: Run) -> list[Path]:
    """Draw the figures of a language model's run into its folder and return their paths.

    A matrix experiment draws its runs together.
    """
    if not isinstance(run.spec.objective, LanguageModel):
        return []
    shown = {run.spec.name: run}
    gradients = [figure for section in gradient_sections(shown) for figure in section.figures]
    return save([*loss_figures({run.spec.name: [run]}), *gradients], run.path / FIGURES)


def _training(run: Run, x: str) -> tuple[list[float], list[float]]:
    """The training loss where it was finite."""
    records = [record for record in run.of_kind("step") if record["loss"] is not None]
    return [record[x] for record in records], [record["loss"] for record in records]


def _gradient_figures(shown: Mapping[str, Run], key: str, name: str) -> Iterator[Figure]:
    """A metric of each measured matrix's raw gradient against the steps, on a logarithmic axis."""
    records = [record for run in shown.values() for record in run.of_kind("matrix")]
    for number, (role, parameter) in enumerate(dict.fromkeys((r["role"], r["parameter"]) for r in records)):
        lines = []
        for index, (label, run) in enumerate(shown.items()):
            curve = over_seeds([run], "matrix", key, parameter=parameter, positive=True)
            lines.append(Line(label, curve, line_style(index, len(curve.x))))
        if not any(len(line.curve.x) for line in lines):
            continue
        figure = line_figure(
            f"{key.replace('_', '-')}-{number}",
            f"{role}: {name} of the gradient",
            lines,
            subtitle=parameter,
            xlabel="steps",
            ylabel=name,
            log=True,
        )
        yield Figure(figure.key, f"{name.capitalize()} of the gradient of {parameter} ({role})", figure.canvas)
