"""`polargrad run theory`: the theorems on strongly convex quadratics with known constants, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from polargrad.lab.report.page import Section, Table
from polargrad.lab.studies.study import StageProgress, StudyFolder, StudyResult, one_thread
from polargrad.lab.studies.theory import stages

__all__ = ["DESCRIPTION", "theory"]

DESCRIPTION = "The theorems, checked on random strongly convex quadratics with known constants."


def theory(
    out: str | Path,
    *,
    seed: int = 42,
    quadratics: int = 240,
    steps: int = 100,
    brief: bool = False,
    progress: StageProgress = lambda _stage, _share: None,
) -> StudyResult:
    """Check the theorems and write a folder with records, figures and a page.

    Args:
        out: the new folder.
        seed: of every random number.
        quadratics: how many random quadratics the convergence theorems are checked on, each with two oracles.
        steps: most steps of PolarGrad on each.
        brief: shorten the other stages to a first look, at which levels and floors have not settled.
        progress: told the name of each stage as it begins, and the share of the work before it.

    Returns:
        Where the page is, what was found in sentences, and whether every claim held.

    Raises:
        FileExistsError: `out` exists.
        ValueError: quadratics or steps below 1.
    """
    if quadratics < 1 or steps < 1:
        raise ValueError(f"quadratics and steps are {quadratics} and {steps}; give at least 1 of each")
    generator = torch.Generator().manual_seed(seed)
    tally = stages.Tally()
    begun = perf_counter()
    options = {"seed": seed, "quadratics": quadratics, "steps": steps, "brief": brief}
    with one_thread(), StudyFolder(out, "theory", options) as folder:
        progress(f"PolarGrad on {quadratics} quadratics", 0.0)
        stages.convergence(folder, tally, generator, quadratics=quadratics, steps=steps)
        progress("every polar method at every step count", 0.52)
        stages.oracles(folder, tally, generator, quadratics=1 if brief else 4, steps=4 if brief else 40)
        progress("sign descent", 0.62)
        stages.plateaus(folder, tally, generator, iterations=20 if brief else 800)
        progress("null gradients", 0.78)
        stages.consistency(folder, generator)
        progress("noise", 0.81)
        stages.noise_floors(folder, tally, generator, horizon=0.1 if brief else 5.0)
        lead = _lead(folder.records, tally, quadratics)
        summary = {
            "status": "finished",
            "quadratics": quadratics,
            "comparisons": tally.comparisons,
            "violations": tally.violations,
            "seconds": perf_counter() - begun,
        }
        page = folder.finish("The theorems of PolarGrad, run", lead, _sections(folder.records), summary)
    return StudyResult(page, lead, ok=tally.violations == 0)


def _of(records: Sequence[Mapping[str, Any]], kind: str, **equal: Any) -> list[Mapping[str, Any]]:
    return [r for r in records if r["kind"] == kind and all(r[key] == value for key, value in equal.items())]


def _lead(records: Sequence[Mapping[str, Any]], tally: stages.Tally, quadratics: int) -> list[str]:
    tightest = _tightest(_of(records, "descent", claim="exact"))
    slopes = [r["slope"] for r in _of(records, "plateau")]
    ratios = [
        level / bound for r in _of(records, "plateau") for level, bound in zip(r["levels"], r["bounds"], strict=True)
    ]
    vanishing = sum(r["verdict"] == "yes" for r in _of(records, "consistency"))
    skewed = _of(records, "noise", noise="skewed", optimizer="PolarSGD", against="step")[0]
    predicted = _of(records, "bias")[0]["predicted"]
    return [
        f"{tally.violations} violations in {tally.comparisons:,} comparisons over {quadratics} random quadratics, "
        "each with an exact and an inexact polar factor.",
        f"The slowest step with an exact factor brought {tightest:.2f} times the guaranteed decrease.",
        f"Sign descent stalls at a level ∝ γ^{min(slopes):.2f} to γ^{max(slopes):.2f} (theory: 2), "
        f"at {min(ratios):.1e} to {max(ratios):.2f} of its bound.",
        f"The update vanishes with the gradient over 12 decades for {vanishing} of {len(_of(records, 'consistency'))} "
        "optimizers.",
        f"Under skewed noise PolarSGD stops at {skewed['levels'][-1]:.2f} ± {skewed['errors'][-1]:.2f} however small "
        f"the step (predicted {predicted:.2f} in the limit); under Gaussian noise its floor falls with the step.",
    ]


def _sections(records: Sequence[Mapping[str, Any]]) -> list[Section]:
    from polargrad.lab.studies.theory.figures import figures

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
                "Ũ and −Ũ give the same step. So each answer is also held to what it claims: ŨᵀG symmetric and "
                "positive semidefinite to rounding, and for converged methods ε = 0.",
            ),
            [_oracle_table(records)],
            [drawn["oracles"]],
        ),
        Section("Sign descent", (_SIGN,), [_plateau_table(records)], [drawn["plateau"]]),
        Section("Null gradients", (_NULL,), [_consistency_table(records)], [drawn["consistency"]]),
        Section("Noise", (_NOISE,), [_noise_table(records)], [drawn["noise"]]),
    ]


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


def _families(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for family in dict.fromkeys(r["family"] for r in _of(records, "descent")):
        for exact in (True, False):
            runs = [r for r in _of(records, "descent", family=family) if (r["claim"] == "exact") == exact]
            kappas, ranks = [r["kappa"] for r in runs], [r["rank"] for r in runs]
            gains = sorted(_gain(r) for r in runs)
            rows.append(
                (
                    family,
                    "exact" if exact else "inexact",
                    str(len(runs)),
                    f"{min(kappas):.3g} to {max(kappas):.3g}",
                    f"{min(ranks)} to {max(ranks)}",
                    f"{gains[len(gains) // 2]:.2g}",
                    f"{_tightest(runs):.2f}",
                    f"{sum(r['comparisons'] for r in runs):,}",
                    str(sum(r["violations"] for r in runs)),
                )
            )
    columns = ("family", "factor", "runs", "κ", "rank", "median gain", "slowest step", "comparisons", "violations")
    note = (
        "Gain: the measured rate in units of the guaranteed one, log(measured)/log(guaranteed). Slowest step: the "
        "least decrease of any step in units of the guaranteed one."
    )
    return Table(columns, rows, note)


def _tightest(runs: Sequence[Mapping[str, Any]]) -> float:
    """The least decrease of any step in units of the guaranteed one."""
    return min((r["tightest_step"] for r in runs if r["tightest_step"] is not None), default=float("nan"))


def _gain(record: Mapping[str, Any]) -> float:
    guaranteed = record["guaranteed_rate"]
    return math.log(record["measured_rate"]) / math.log(guaranteed) if 0.0 < guaranteed < 1.0 else math.inf


def _oracle_table(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            r["method"],
            "to convergence" if r["max_steps"] is None else str(r["max_steps"]),
            f"{r['eps']:.1e}",
            f"{r['delta']:+.1e}",
            f"{r['kept']:.3f}",
            f"{r['measured_rate']:.4f}",
            f"{r['guaranteed_rate']:.4f}",
            str(r["violations"]),
        )
        for r in _of(records, "oracle")
        if r["max_steps"] in (None, 1, 2, 3, 5, 8)
    ]
    columns = ("method", "steps", "ε", "δ", "share of rate kept", "measured rate", "guaranteed rate", "violations")
    return Table(
        columns, rows, "Medians over the steps of four quadratics; the records hold every step count from 1 to 8."
    )


def _plateau_table(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            f"{r['family']} {r['shape'][0]}×{r['shape'][1]}",
            f"{r['kappa']:.3g}",
            f"{r['slope']:.3f}",
            f"{max(a / b for a, b in zip(r['levels'], r['bounds'], strict=True)):.2g}",
            f"{max(a / b for a, b in zip(r['levels'], r['fixed_points'], strict=True)):.2g}",
            str(r["violations"]),
        )
        for r in _of(records, "plateau")
    ]
    return Table(("quadratic", "κ", "slope", "level / bound", "level / (L²γ²r²/8μ)", "violations"), rows)


def _consistency_table(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            r["optimizer"],
            f"{r['slope']:.3f}",
            f"{min(r['local_slopes']):.3f} to {max(r['local_slopes']):.3f}",
            r["verdict"],
        )
        for r in _of(records, "consistency")
    ]
    return Table(("optimizer", "slope", "slope within a decade", "vanishes with the gradient"), rows)


def _noise_table(records: Sequence[Mapping[str, Any]]) -> Table:
    from polargrad.lab.studies.theory.sign_descent import log_slope

    rows = []
    for r in _of(records, "noise"):
        x = r["steps"] if r["against"] == "step" else r["variances"]
        bounds = [level / bound for level, bound in zip(r["levels"], r["bounds"], strict=True)]
        rows.append(
            (
                f"{r['optimizer']}, {r['noise']}",
                r["against"],
                f"{log_slope(x, r['levels']):.2f}",
                f"{log_slope(x[-3:], r['levels'][-3:]):.2f}",
                f"{max(bounds):.3f}" if r["optimizer"] == "PolarSGD" else "–",
                str(r["violations"]) if r["optimizer"] == "PolarSGD" else "–",
            )
        )
    return Table(
        ("optimizer, noise", "against", "slope", "slope, last three", "largest level / bound", "violations"), rows
    )
