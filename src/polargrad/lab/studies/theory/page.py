"""The page of the theory study, made from its records alone: sections with their tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polargrad.lab.report.figures import INK, LIGHT, MUTED, Figure, line_style, style, titled_canvas
from polargrad.lab.report.page import UNKNOWN, Section, Table
from polargrad.lab.studies.study import table_of
from polargrad.lab.studies.theory.levels import log_slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["figures", "of_kind", "ratios_of", "sections", "tightest"]

Records = Sequence[Mapping[str, Any]]

_SIGN = (
    "X ← X − γ U loses the nuclear norm, and with it the minimizer: for a constant step the gap stays below "
    "max(L²γ²r²/(8μ), Lγ²r/2) in the long run and in general above zero. The first term is the fixed point of the "
    "bound; alone it is wrong where r κ < 4, as the 1×1 row shows."
)
_NULL = (
    "The same gradient, scaled over 12 decades and repeated 20 times. “below eps” means that the update is constant "
    "until the gradient falls below the optimizer's eps, and only then follows it."
)
_NOISE = (
    "Gradient noise of variance σ². The bound is σ²(r/c² − 1)/(2μ) with c = 1 − γLr/2. It does not vanish with γ for "
    "r > 1, and cannot: the polar factor of a noisy gradient is biased when the noise is skewed."
)
# Optimizers whose lines the consistency figure shows: one for each behaviour that occurs.
_RESPONDING = (
    "gradient descent",
    "Adam",
    "Adam, eps 0",
    "torch Muon",
    "Muon",
    "PolarGrad, scale nuclear",
)


def of_kind(records: Records, kind: str, **equal: Any) -> list[Mapping[str, Any]]:
    """The records of a kind, with these values."""
    return [r for r in records if r["kind"] == kind and all(r[key] == value for key, value in equal.items())]


def ratios_of(record: Mapping[str, Any], bounds: str) -> list[float]:
    """The measured levels over the bounds of this name."""
    return [level / bound for level, bound in zip(record["levels"], record[bounds], strict=True)]


def sections(records: Records) -> list[Section]:
    """The sections of the page, from the records alone."""
    drawn = figures(records)
    return [
        Section(
            "Descent",
            (
                "f is L-smooth and μ-strongly convex, κ = L/μ. With G = U H, ν = ‖G‖ nuclear and r the rank of G, "
                "X ← X − ν U/(L r) brings the gap f − f* down by at least the factor 1 − 1/(r κ). With a factor Ũ for "
                "which ⟨G, Ũ⟩ ≥ (1−ε) ν and ‖Ũ‖² ≤ (1+δ)² r, it is 1 − (1−ε)²/((1+δ)² r κ).",
                "Compared until the gap reaches 10 eps m n L (‖X*‖² + ‖X₀‖²)/2, below which X − X* is rounding.",
            ),
            [_families(records)],
            [drawn["descent"], drawn["rates"]],
        ),
        Section(
            "Oracles",
            (
                "Convergence alone cannot tell a wrong factor from a right one: −γ⟨G, Ũ⟩ Ũ descends along any Ũ, and "
                "Ũ and −Ũ give the same step. So each step of PolarGrad is compared with −γ⟨G, Ũ⟩ Ũ, and each factor "
                "is held to what it claims: ŨᵀG symmetric and positive semidefinite to rounding, and for converged "
                "methods ε = 0.",
            ),
            [_oracle_table(records)],
            [drawn["oracles"]],
        ),
        Section("Sign descent", (_SIGN,), [_plateau_table(records)], [drawn["plateau"]]),
        Section("Null gradients", (_NULL,), [_consistency_table(records)], [drawn["consistency"]]),
        Section("Noise", (_NOISE,), [_noise_table(records)], [drawn["noise"]]),
    ]


def tightest(runs: Records) -> float:
    """The least decrease of any step in units of the guaranteed one."""
    return min((r["tightest_step"] for r in runs if r["tightest_step"] is not None), default=float("nan"))


def _gain(record: Mapping[str, Any]) -> float:
    guaranteed = record["guaranteed_rate"]
    return math.log(record["measured_rate"]) / math.log(guaranteed) if 0.0 < guaranteed < 1.0 else math.inf


def _families(records: Records) -> Table:
    rows = []
    for family in dict.fromkeys(r["family"] for r in of_kind(records, "descent")):
        for factor in ("exact", "inexact"):
            descents = of_kind(records, "descent", family=family)
            runs = [r for r in descents if (r["claim"] == "exact") == (factor == "exact")]
            kappas, ranks = [r["kappa"] for r in runs], [r["rank"] for r in runs]
            rows.append(
                {
                    "family": family,
                    "factor": factor,
                    "runs": len(runs),
                    "low": min(kappas),
                    "high": max(kappas),
                    "least": min(ranks),
                    "most": max(ranks),
                    "gain": sorted(_gain(r) for r in runs)[len(runs) // 2],
                    "slowest": tightest(runs),
                    **{key: sum(r[key] for r in runs) for key in ("comparisons", "violations")},
                }
            )
    columns = (
        ("family", "{family}"),
        ("factor", "{factor}"),
        ("runs", "{runs}"),
        ("κ", "{low:.3g} to {high:.3g}"),
        ("rank", "{least} to {most}"),
        ("median gain", "{gain:.2g}"),
        ("slowest step", "{slowest:.2f}"),
        ("comparisons", "{comparisons:,}"),
        ("violations", "{violations}"),
    )
    note = (
        "Gain: the measured rate in units of the guaranteed one, log(measured)/log(guaranteed). Slowest step: the "
        "least decrease of any step in units of the guaranteed one."
    )
    return table_of(rows, columns, note)


def _oracle_table(records: Records) -> Table:
    rows = [
        {**r, "steps": r["max_steps"] or "to convergence"}
        for r in of_kind(records, "oracle")
        if r["max_steps"] in (None, 1, 2, 3, 5, 8)
    ]
    columns = (
        ("method", "{method}"),
        ("steps", "{steps}"),
        ("ε", "{eps:.1e}"),
        ("δ", "{delta:+.1e}"),
        ("share of rate kept", "{kept:.3f}"),
        ("measured rate", "{measured_rate:.4f}"),
        ("guaranteed rate", "{guaranteed_rate:.4f}"),
        ("violations", "{violations}"),
    )
    note = "Medians over the steps of four quadratics; the records hold every step count from 1 to 8."
    return table_of(rows, columns, note)


def _plateau_table(records: Records) -> Table:
    rows = [
        {**r, "bound": max(ratios_of(r, "bounds")), "point": max(ratios_of(r, "fixed_points"))}
        for r in of_kind(records, "plateau")
    ]
    columns = (
        ("quadratic", "{family} {shape[0]}×{shape[1]}"),
        ("κ", "{kappa:.3g}"),
        ("slope", "{slope:.3f}"),
        ("level / bound", "{bound:.2g}"),
        ("level / (L²γ²r²/8μ)", "{point:.2g}"),
        ("violations", "{violations}"),
    )
    return table_of(rows, columns)


def _consistency_table(records: Records) -> Table:
    rows = [
        {**r, "low": min(r["local_slopes"]), "high": max(r["local_slopes"])} for r in of_kind(records, "consistency")
    ]
    columns = (
        ("optimizer", "{optimizer}"),
        ("slope", "{slope:.3f}"),
        ("slope within a decade", "{low:.3f} to {high:.3f}"),
        ("vanishes with the gradient", "{verdict}"),
    )
    return table_of(rows, columns)


def _noise_table(records: Records) -> Table:
    rows = []
    for r in of_kind(records, "noise"):
        x, bounded = r["steps"] if r["against"] == "step" else r["variances"], r["optimizer"] == "PolarSGD"
        slopes = {"slope": log_slope(x, r["levels"]), "last": log_slope(x[-3:], r["levels"][-3:])}
        bound = f"{max(ratios_of(r, 'bounds')):.3f}" if bounded else UNKNOWN
        rows.append({**r, **slopes, "bound": bound, "violations": r["violations"] if bounded else UNKNOWN})
    columns = (
        ("optimizer, noise", "{optimizer}, {noise}"),
        ("against", "{against}"),
        ("slope", "{slope:.2f}"),
        ("slope, last three", "{last:.2f}"),
        ("largest level / bound", "{bound}"),
        ("violations", "{violations}"),
    )
    return table_of(rows, columns)


def figures(records: Records) -> dict[str, Figure]:
    """Every figure by its key: descent, rates, oracles, plateau, consistency, noise."""
    with style():
        return {
            "descent": _descent(of_kind(records, "descent")),
            "rates": _rates(of_kind(records, "descent")),
            "oracles": _oracles(of_kind(records, "oracle")),
            "plateau": _plateau(of_kind(records, "plateau")),
            "consistency": _consistency(of_kind(records, "consistency")),
            "noise": _noise(of_kind(records, "noise"), of_kind(records, "bias")),
        }


def _panels(title: str, count: int = 1, width: float = 5.6) -> tuple[Canvas, list[Axes]]:
    canvas = titled_canvas(title, (width if count == 1 else 8.2, 3.9))
    return canvas, [canvas.add_subplot(1, count, i + 1) for i in range(count)]


def _log_log(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


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
    _log_log(axes, "guaranteed decrease per step, 1 − rate", "measured decrease per step")
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
    _log_log(axes, "step γ over the largest", "level over the bound at the largest step")
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
    _log_log(axes, "norm of the gradient", "norm of the update, over its first")
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
    for index, record in enumerate(by_step):
        for same in records:
            if same["against"] == "variance" and all(same[key] == record[key] for key in ("noise", "optimizer")):
                panels[1].plot(same["variances"], same["levels"], **line_style(index))
    for axes, xlabel in zip(panels, ("step γ, at σ² = 1", "variance σ², at the largest step"), strict=True):
        _log_log(axes, xlabel, "mean gap in the long run")
    _legend(canvas, panels[0], 3)
    return Figure("noise", "Floor of PolarSGD against step and variance", canvas)
