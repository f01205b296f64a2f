"""Figures of the theory study, drawn from its records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polargrad.lab.report.figures import INK, LIGHT, MUTED, Figure, line_style, style, titled_canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["figures"]

Records = Sequence[Mapping[str, Any]]

# Optimizers whose lines the consistency figure shows: one for each behaviour that occurs.
_RESPONDING = (
    "gradient descent",
    "Adam",
    "Adam, eps 0",
    "torch Muon",
    "Muon",
    "PolarGrad, scale nuclear",
)


def figures(records: Records) -> dict[str, Figure]:
    """Every figure by its key: descent, rates, oracles, plateau, consistency, noise."""
    with style():
        return {
            "descent": _descent(_of(records, "descent")),
            "rates": _rates(_of(records, "descent")),
            "oracles": _oracles(_of(records, "oracle")),
            "plateau": _plateau(_of(records, "plateau")),
            "consistency": _consistency(_of(records, "consistency")),
            "noise": _noise(_of(records, "noise"), _of(records, "bias")),
        }


def _of(records: Records, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def _panels(title: str, count: int = 1, width: float = 5.6) -> tuple[Canvas, list[Axes]]:
    canvas = titled_canvas(title, (width if count == 1 else 8.2, 3.9))
    return canvas, [canvas.add_subplot(1, count, i + 1) for i in range(count)]


def _legend(canvas: Canvas, axes: Axes, columns: int) -> None:
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=columns, fontsize=8)


def _descent(records: Records) -> Figure:
    canvas, (axes,) = _panels("PolarGrad with step 1/(L r): the gap (solid) and its bound (dotted)")
    whole = [record for record in records if "gaps" in record and len(record["gaps"]) > 10]
    shown = sorted(whole, key=lambda record: record["kappa"])[:5]
    for index, record in enumerate(shown):
        m, n = record["shape"]
        label = f"{record['family']} {m}×{n}, κ {record['kappa']:.3g}"
        style_of = {**line_style(index), "markevery": max(len(record["gaps"]) // 8, 1)}
        axes.plot([max(gap, 1e-18) for gap in record["gaps"]], label=label, **{**style_of, "linestyle": "-"})
        axes.plot(record["bounds"], color=LIGHT[index % len(LIGHT)], linestyle=(0, (1, 1.5)), linewidth=1.1)
    axes.set_yscale("log")
    axes.set_ylim(1e-14, 3.0)
    axes.set_xlabel("steps")
    axes.set_ylabel("gap over first gap")
    _legend(canvas, axes, 2)
    return Figure("descent", "Gap of PolarGrad against its bound on five quadratics", canvas)


def _rates(records: Records) -> Figure:
    canvas, (axes,) = _panels("Measured against guaranteed: every quadratic above the line")
    kinds = (("exact", "exact factor", "o", LIGHT[0]), (None, "inexact factor", "^", LIGHT[1]))
    for claim, label, marker, color in kinds:
        points = [
            (1.0 - record["guaranteed_rate"], 1.0 - record["measured_rate"])
            for record in records
            if (record["claim"] == "exact") == (claim == "exact") and record["measured_rate"] is not None
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                linestyle="none",
                marker=marker,
                color=color,
                alpha=0.6,
                markersize=4,
                label=label,
            )
    axes.axline((1e-4, 1e-4), (1e-2, 1e-2), color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
    axes.annotate("bound", (2.4e-3, 1.6e-3), color=INK, fontsize=8, va="top", ha="left")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("guaranteed decrease per step, 1 − rate")
    axes.set_ylabel("measured decrease per step")
    _legend(canvas, axes, 2)
    return Figure("rates", "Measured against guaranteed decrease per step of every quadratic", canvas)


def _oracles(records: Records) -> Figure:
    canvas, panels = _panels("Stopped early: the error of each polar method, and the rate it leaves", 2)
    limited = [record for record in records if record["max_steps"] is not None]
    for index, method in enumerate(dict.fromkeys(record["method"] for record in limited)):
        stopped = [record for record in limited if record["method"] == method]
        steps = [record["max_steps"] for record in stopped]
        panels[0].plot(steps, [max(abs(record["eps"]), 1e-16) for record in stopped], label=method, **line_style(index))
        panels[1].plot(steps, [record["kept"] for record in stopped], label=method, **line_style(index))
    panels[0].set_yscale("log")
    panels[0].set_ylabel("|ε|, error of ⟨G, Ũ⟩ as nuclear norm")
    panels[1].set_ylabel("(1−ε)²/(1+δ)², share of the exact rate kept")
    panels[1].axhline(1.0, color=MUTED, linewidth=1.0, linestyle=(0, (1, 1.5)))
    for axes in panels:
        axes.set_xlabel("steps of the polar method")
    _legend(canvas, panels[0], 4)
    return Figure("oracles", "Error of each polar method by step count, and its cost in the rate", canvas)


def _plateau(records: Records) -> Figure:
    canvas, (axes,) = _panels("Matrix sign descent stalls at a level ∝ γ²")
    for index, record in enumerate(records):
        m, n = record["shape"]
        first, scale = record["steps"][0], record["bounds"][0]
        x = [gamma / first for gamma in record["steps"]]
        axes.plot(
            x,
            [level / scale for level in record["levels"]],
            label=f"{m}×{n}, κ {record['kappa']:.3g}",
            **line_style(index),
        )
    axes.plot([1e-3, 1.0], [1e-6, 1.0], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="bound")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("step γ over the largest")
    axes.set_ylabel("level over the bound at the largest step")
    _legend(canvas, axes, 4)
    return Figure("plateau", "Level at which sign descent stalls, against its step", canvas)


def _consistency(records: Records) -> Figure:
    canvas, (axes,) = _panels("Does the update vanish with the gradient?")
    shown = [record for name in _RESPONDING for record in records if record["optimizer"] == name]
    for index, record in enumerate(shown):
        largest = record["update_norms"][0]
        axes.plot(
            record["gradient_norms"],
            [norm / largest for norm in record["update_norms"]],
            label=record["optimizer"],
            **{**line_style(index), "markevery": (index % 3, 3)},
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("norm of the gradient")
    axes.set_ylabel("norm of the update, over its first")
    _legend(canvas, axes, 3)
    return Figure("consistency", "Update norm against gradient norm over twelve decades", canvas)


def _noise(records: Records, bias: Records) -> Figure:
    canvas, panels = _panels("PolarSGD's noise floor", 2)
    by_step = [record for record in records if record["against"] == "step"]
    for index, record in enumerate(by_step):
        label = f"{record['optimizer']}, {record['noise']} noise"
        panels[0].plot(record["steps"], record["levels"], label=label, **line_style(index))
    bounded = next(record for record in by_step if record["optimizer"] == "PolarSGD")
    panels[0].plot(
        bounded["steps"], bounded["bounds"], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="bound for PolarSGD"
    )
    panels[0].axhline(bias[0]["predicted"], color=MUTED, linewidth=1.0, linestyle=(0, (1, 1.5)))
    panels[0].set_xlabel("step γ, at σ² = 1")
    for index, record in enumerate(by_step):
        for same in records:
            if same["against"] == "variance" and (same["noise"], same["optimizer"]) == (
                record["noise"],
                record["optimizer"],
            ):
                panels[1].plot(same["variances"], same["levels"], **line_style(index))
    panels[1].set_xlabel("variance σ², at the largest step")
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylabel("mean gap in the long run")
    _legend(canvas, panels[0], 3)
    return Figure("noise", "Floor of PolarSGD against step and variance", canvas)
