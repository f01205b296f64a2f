"""The paper's figures, drawn from records alone: objective, condition numbers and nuclear norm, on logarithmic axes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from polargrad.lab.matrix import Configuration, Experiment
from polargrad.lab.report.curves import over_seeds
from polargrad.lab.report.figures import LIGHT, MUTED, Figure, Line, line_figure, style
from polargrad.lab.run.folder import Run

__all__ = ["figures"]

# One colour for each family of optimizers, in the order of `LIGHT`.
_FAMILIES = ("PolarGrad", "Muon", "polar first", "momentum first", "Newton", "Adam")
_DASHES = ("-", (0, (4.5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
_SIZE = (6.6, 4.0)
# Key of a matrix record, what it is called, whether a logarithmic axis shows it best.
_PROBES = (
    ("condition_number", "condition number"),
    ("nuclear_norm", "nuclear norm"),
    ("stable_rank", "stable rank"),
    ("alignment", "alignment"),
)


def figures(experiment: Experiment, runs: Sequence[Run]) -> list[Figure]:
    """Every figure that the records allow: first without momentum, then its variants beside plain PolarGrad."""
    known = {c.name: c for every in experiment.presets.values() for c in every}
    there = [known[name] for name in dict.fromkeys(run.spec.recipe for run in runs) if name in known]
    of = {c.name: [run for run in runs if run.spec.recipe == c.name] for c in there}
    with_momentum = [c for c in there if c.momentum]
    first = [c for c in there if not c.momentum]
    groups = [("", "", first)] if first else []
    if with_momentum:
        beside = [c for c in first if c.family == "PolarGrad"][:2]
        groups.append(("momentum-", " with momentum", [*beside, *with_momentum]))
    drawn = []
    with style():
        for key, title, group in groups:
            drawn += _group(key, title, group, of)
    return drawn


def _group(prefix: str, suffix: str, group: Sequence[Configuration], of: Mapping[str, Sequence[Run]]) -> list[Figure]:
    label = next(iter(of.values()))[0].spec.objective.metric_label
    panels = [
        ("objective", f"Objective{suffix}", label, {"kind": "eval", "key": "gap"}, "iteration"),
        ("objective-seconds", f"Objective against time{suffix}", label, _SECONDS, "seconds"),
        (
            "residual-condition",
            f"Condition number of the residual{suffix}",
            "condition number",
            {"kind": "eval", "key": "residual_condition_number"},
            "iteration",
        ),
        ("held-out", f"Held-out entries{suffix}", "root mean squared error", _HELD_OUT, "iteration"),
    ]
    parameters = dict.fromkeys(
        record["parameter"] for runs in of.values() for run in runs for record in run.of_kind("matrix")
    )
    for parameter in parameters:
        where = f" in {parameter}" if len(parameters) > 1 else ""
        panels += [
            (
                f"gradient-{key.replace('_', '-')}-{parameter}",
                f"{name.capitalize()} of the gradient{where}{suffix}",
                name,
                {"kind": "matrix", "key": key, "parameter": parameter},
                "iteration",
            )
            for key, name in _PROBES
        ]
    drawn = (
        _figure(prefix + key, title, ylabel, xlabel, group, of, what) for key, title, ylabel, what, xlabel in panels
    )
    return [figure for figure in drawn if figure is not None]


_SECONDS = {"kind": "eval", "key": "gap", "x": "seconds"}
_HELD_OUT = {"kind": "eval", "key": "held_out_rmse"}


def _figure(
    key: str,
    title: str,
    ylabel: str,
    xlabel: str,
    group: Sequence[Configuration],
    of: Mapping[str, Sequence[Run]],
    what: Mapping[str, Any],
) -> Figure | None:
    """One line for each configuration, a band where it ran on several seeds, a cross where it diverged."""
    seen: dict[str, int] = {}
    lines = []
    for c in group:
        curve = over_seeds(of[c.name], **what, positive=True, center=statistics.median)
        if not curve.x:
            continue
        # A family beyond the palette is grey, and told from the dark one by its dashes.
        variant = seen.get(c.family, 0 if c.family in _FAMILIES else 3)
        seen[c.family] = variant + 1
        dashes = _DASHES[variant % len(_DASHES)]
        diverged = any(run.status == "diverged" for run in of[c.name])
        look = {"color": _color(c.family), "linestyle": dashes, "linewidth": 1.5}
        lines.append(Line(c.label, curve, look, diverged=diverged))
    if not lines:
        return None
    figure = line_figure(key, title, lines, xlabel=xlabel, ylabel=ylabel, size=_SIZE, log=True, legend_beside=True)
    ends = {c.label: c.momentum for c in group}
    if shown := [line.curve.x[-1] for line in lines if ends[line.name]]:
        # what stands beside them may have run for longer
        figure.canvas.axes[0].set_xlim(-0.02 * max(shown), 1.02 * max(shown))
    return figure


def _color(family: str) -> str:
    return LIGHT[_FAMILIES.index(family)] if family in _FAMILIES else MUTED
