"""The page of the theory study, made from its records alone: sections with their tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polargrad.lab.report.figures import INK, LIGHT, MUTED, Figure, line_style, style, titled_canvas
from polargrad.lab.report.page import UNKNOWN, Section, Table
from polargrad.lab.studies.study import table_of
from polargrad.lab.studies.theory.levels import log_slope

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
_RESPONDING = ("gradient descent", "Adam", "Adam, eps 0", "torch Muon", "Muon", "PolarGrad, scale nuclear")


def of_kind(records: Records, kind: str, **equal: Any) -> list[Mapping[str, Any]]:
    """The records of a kind, with these values."""
    return [r for r in records if r["kind"] == kind and all(r[key] == value for key, value in equal.items())]


def ratios_of(record: Mapping[str, Any], bounds: str) -> list[float]:
    """Ratios of the measured levels to the bounds that a record holds under this name."""
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


_BOUND: dict[str, Any] = {"color": INK, "linewidth": 1.0, "linestyle": (0, (4, 2))}
_LEVEL: dict[str, Any] = {"color": MUTED, "linewidth": 1.0, "linestyle": (0, (1, 1.5))}

# x, y, label in the legend, and look.
_Line = tuple[Sequence[float], Sequence[float], str | None, Mapping[str, Any]]


class _Panel(NamedTuple):
    """Lines over one pair of axes, both logarithmic unless `scales` says otherwise; `level` is a dotted line across."""

    xlabel: str
    ylabel: str
    lines: Sequence[_Line]
    scales: tuple[str, str] = ("log", "log")
    level: float | None = None


def _figure(key: str, title: str, heading: str, panels: Sequence[_Panel], columns: int) -> Figure:
    """Panels side by side, with the legend of the first below them."""
    canvas = titled_canvas(heading, (5.6 if len(panels) == 1 else 8.2, 3.9))
    for number, panel in enumerate(panels, start=1):
        axes = canvas.add_subplot(1, len(panels), number)
        for x, y, label, look in panel.lines:
            axes.plot(x, y, label=label, **look)
        if panel.level is not None:
            axes.axhline(panel.level, **_LEVEL)
        axes.set(xscale=panel.scales[0], yscale=panel.scales[1], xlabel=panel.xlabel, ylabel=panel.ylabel)
    handles = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(*handles, loc="outside lower left", ncols=columns, fontsize=8)
    return Figure(key, title, canvas)


def _descent(records: Records) -> Figure:
    whole = [record for record in records if "gaps" in record and len(record["gaps"]) > 10]
    lines: list[_Line] = []
    for index, record in enumerate(sorted(whole, key=lambda record: record["kappa"])[:5]):
        (m, n), gaps, bounds = record["shape"], record["gaps"], record["bounds"]
        label = f"{record['family']} {m}×{n}, κ {record['kappa']:.3g}"
        look = {**line_style(index), "linestyle": "-", "markevery": max(len(gaps) // 8, 1)}
        lines.append((range(len(gaps)), [max(gap, 1e-18) for gap in gaps], label, look))
        lines.append((range(len(bounds)), bounds, None, {**_LEVEL, "color": LIGHT[index % len(LIGHT)]}))
    heading = "PolarGrad with step 1/(L r): the gap (solid) and its bound (dotted)"
    panel = _Panel("steps", "gap over first gap", lines, scales=("linear", "log"))
    figure = _figure("descent", "Gap of PolarGrad against its bound on five quadratics", heading, [panel], 2)
    figure.canvas.axes[0].set_ylim(1e-14, 3.0)
    return figure


def _rates(records: Records) -> Figure:
    lines: list[_Line] = []
    measured = [record for record in records if record["measured_rate"] is not None]
    for label, exact, marker, color in (
        ("exact factor", True, "o", LIGHT[0]),
        ("inexact factor", False, "^", LIGHT[1]),
    ):
        shown = [record for record in measured if (record["claim"] == "exact") == exact]
        x = [1.0 - record["guaranteed_rate"] for record in shown]
        y = [1.0 - record["measured_rate"] for record in shown]
        look = {"linestyle": "none", "marker": marker, "color": color, "alpha": 0.6, "markersize": 4}
        lines += [(x, y, label, look)] if shown else []
    panel = _Panel("guaranteed decrease per step, 1 − rate", "measured decrease per step", lines)
    heading = "Measured against guaranteed: every quadratic above the line"
    figure = _figure("rates", "Measured against guaranteed decrease per step of every quadratic", heading, [panel], 2)
    (axes,) = figure.canvas.axes
    axes.axline((1e-4, 1e-4), (1e-2, 1e-2), **_BOUND)
    axes.annotate("bound", (2.4e-3, 1.6e-3), color=INK, fontsize=8, va="top", ha="left")
    return figure


def _oracles(records: Records) -> Figure:
    errors: list[_Line] = []
    kept: list[_Line] = []
    limited = [record for record in records if record["max_steps"] is not None]
    for index, method in enumerate(dict.fromkeys(record["method"] for record in limited)):
        stopped = [record for record in limited if record["method"] == method]
        steps = [record["max_steps"] for record in stopped]
        errors.append((steps, [max(abs(record["eps"]), 1e-16) for record in stopped], method, line_style(index)))
        kept.append((steps, [record["kept"] for record in stopped], method, line_style(index)))
    xlabel, share = "steps of the polar method", "(1−ε)²/(1+δ)², share of the exact rate kept"
    panels = [
        _Panel(xlabel, "|ε|, error of ⟨G, Ũ⟩ as nuclear norm", errors, ("linear", "log")),
        _Panel(xlabel, share, kept, ("linear", "linear"), level=1.0),
    ]
    heading = "Stopped early: the error of each polar method, and the rate it leaves"
    return _figure("oracles", "Error of each polar method by step count, and its cost in the rate", heading, panels, 4)


def _plateau(records: Records) -> Figure:
    lines: list[_Line] = []
    for index, record in enumerate(records):
        m, n = record["shape"]
        x = [gamma / record["steps"][0] for gamma in record["steps"]]
        y = [level / record["bounds"][0] for level in record["levels"]]
        lines.append((x, y, f"{m}×{n}, κ {record['kappa']:.3g}", line_style(index)))
    lines.append(([1e-3, 1.0], [1e-6, 1.0], "bound", _BOUND))
    panel = _Panel("step γ over the largest", "level over the bound at the largest step", lines)
    heading = "Matrix sign descent stalls at a level ∝ γ²"
    return _figure("plateau", "Level at which sign descent stalls, against its step", heading, [panel], 4)


def _consistency(records: Records) -> Figure:
    shown = [record for name in _RESPONDING for record in records if record["optimizer"] == name]
    lines: list[_Line] = []
    for index, record in enumerate(shown):
        y = [norm / record["update_norms"][0] for norm in record["update_norms"]]
        look = {**line_style(index), "markevery": (index % 3, 3)}
        lines.append((record["gradient_norms"], y, record["optimizer"], look))
    panel = _Panel("norm of the gradient", "norm of the update, over its first", lines)
    heading = "Does the update vanish with the gradient?"
    return _figure("consistency", "Update norm against gradient norm over twelve decades", heading, [panel], 3)


def _noise(records: Records, bias: Records) -> Figure:
    by_step = [record for record in records if record["against"] == "step"]
    against_step: list[_Line] = []
    against_variance: list[_Line] = []
    for index, record in enumerate(by_step):
        label, look = f"{record['optimizer']}, {record['noise']} noise", line_style(index)
        against_step.append((record["steps"], record["levels"], label, look))
        same = {key: record[key] for key in ("noise", "optimizer")}
        for other in of_kind(records, "noise", against="variance", **same):
            against_variance.append((other["variances"], other["levels"], None, look))
    bounded = next(record for record in by_step if record["optimizer"] == "PolarSGD")
    against_step.append((bounded["steps"], bounded["bounds"], "bound for PolarSGD", _BOUND))
    ylabel = "mean gap in the long run"
    panels = [
        _Panel("step γ, at σ² = 1", ylabel, against_step, level=bias[0]["predicted"]),
        _Panel("variance σ², at the largest step", ylabel, against_variance),
    ]
    return _figure("noise", "Floor of PolarSGD against step and variance", "PolarSGD's noise floor", panels, 3)
