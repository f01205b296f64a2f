"""`polargrad run theory`: the theorems on strongly convex quadratics with known constants, in float64.

Each stage runs something, checks it and hands its records to the folder; the page is made from the records.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from polargrad.lab.run.environment import torch_threads
from polargrad.lab.studies.study import StageProgress, StudyFolder, StudyResult
from polargrad.lab.studies.theory.consistency import OPTIMIZERS, response
from polargrad.lab.studies.theory.descent import Check, Descent, check, descend, exact_oracle, oracle_of
from polargrad.lab.studies.theory.levels import NOISES, Levels, floors, plateau, skewed_bias_gap
from polargrad.lab.studies.theory.page import of_kind, ratios_of, sections, tightest
from polargrad.lab.studies.theory.quadratics import FAMILIES, SPECTRA, Quadratic, random_quadratic
from polargrad.linalg import NewtonSchulz, PolarMethod, available_methods, resolve_method

# Runs whose whole course is recorded, for the figure.
SHOWN = 24
MOST_STEPS = 8
# The inexact oracles of the sweep, in turn: methods and step counts.
_INEXACT: tuple[tuple[str | PolarMethod, int | None], ...] = (
    ("newton-schulz", None),
    (NewtonSchulz.cubic(4), None),
    *(("qdwh", steps) for steps in (1, 2, 3, None)),
    *(("polar-express", steps) for steps in (3, 5, 8)),
)


@dataclass
class Tally:
    """Comparisons made and failed."""

    comparisons: int = 0
    violations: int = 0

    def add(self, folder: StudyFolder, checked: Check, **where: Any) -> None:
        """Count a check and record each of its violations."""
        self.comparisons += checked.comparisons
        self.violations += len(checked.violations)
        for violation in checked.violations:
            folder.record("violation", **where, **violation._asdict())

    def add_levels(self, levels: Levels) -> None:
        """Count the comparisons of levels with their bounds."""
        self.comparisons += len(levels.levels)
        self.violations += levels.violations


def step_counts(method: str) -> list[int | None]:
    """The step limits to try a method with: None for convergence, and 1 to 8 where it can be stopped."""
    try:
        resolve_method(method, 1)
    except ValueError:
        return [None]
    return [*range(1, MOST_STEPS + 1), None]


def draw_quadratic(index: int, generator: torch.Generator) -> tuple[Quadratic, dict[str, Any]]:
    """Quadratic number `index` of the sweep: family and spectrum in turn, shape, condition and rank at random."""

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    family = FAMILIES[index % len(FAMILIES)]
    spectrum = SPECTRA[(index // len(FAMILIES)) % len(SPECTRA)]
    most = 12 if family == "dense" else 24
    m, n = between(1, most), between(1, most)
    kappa = 10.0 ** (4.0 * torch.rand((), generator=generator).item())
    rank = between(1, min(m, n))
    quadratic = random_quadratic(family, m, n, kappa, generator, rank=rank, spectrum=spectrum)
    return quadratic, {
        "quadratic": index,
        "family": family,
        "spectrum": spectrum,
        "shape": [m, n],
        "kappa": quadratic.kappa,
    }


def convergence(folder: StudyFolder, tally: Tally, generator: torch.Generator, *, quadratics: int, steps: int) -> None:
    """Each quadratic with the exact oracle against the exact bound, with an inexact one against the inexact bound."""
    for index in range(quadratics):
        quadratic, where = draw_quadratic(index, generator)
        for oracle in (exact_oracle(quadratic.rank_tolerance), oracle_of(*_INEXACT[index % len(_INEXACT)])):
            run = descend(quadratic, oracle, steps)
            checked = check(run)
            tally.add(folder, checked, **where, oracle=oracle.name)
            course = _course(run) if oracle.claim == "exact" and index < SHOWN else {}
            folder.record("descent", **where, **_summary(run, checked), **course)


def _summary(run: Descent, checked: Check) -> dict[str, Any]:
    slowest = [
        (1.0 - after / step.gap) / (1.0 - step.factor)
        for step, after in zip(run.steps, run.gaps[1:], strict=True)
        if after > run.quadratic.floor and step.factor < 1.0
    ]
    return {
        "oracle": run.oracle.name,
        "claim": run.oracle.claim,
        "steps": len(run.steps),
        "rank": max(step.rank for step in run.steps),
        "eps": statistics.median(step.eps for step in run.steps),
        "delta": statistics.median(step.delta for step in run.steps),
        "measured_rate": run.measured_rate,
        "guaranteed_rate": run.guaranteed_rate,
        "tightest_step": min(slowest, default=None),
        "comparisons": checked.comparisons,
        "violations": len(checked.violations),
    }


def _course(run: Descent) -> dict[str, list[float]]:
    product, bounds = 1.0, [1.0]
    for step in run.steps:
        product *= step.factor
        bounds.append(product)
    return {"gaps": [gap / run.gaps[0] for gap in run.gaps], "bounds": bounds}


def oracles(folder: StudyFolder, tally: Tally, generator: torch.Generator, *, quadratics: int, steps: int) -> None:
    """Every polar method at every step count on the same few quadratics."""
    problems = [
        random_quadratic(("regression", "dense")[i % 2], 12 - i % 3, 8 + i % 4, (10.0, 100.0)[i % 2], generator)
        for i in range(quadratics)
    ]
    for method in available_methods():
        for limit in step_counts(method):
            runs = [descend(quadratic, oracle_of(method, limit), steps) for quadratic in problems]
            checks = [check(run) for run in runs]
            for index, checked in enumerate(checks):
                tally.add(folder, checked, method=method, max_steps=limit, problem=index)
            every = [step for run in runs for step in run.steps]
            folder.record(
                "oracle",
                method=method,
                max_steps=limit,
                eps=statistics.median(step.eps for step in every),
                eps_max=max(step.eps for step in every),
                delta=statistics.median(step.delta for step in every),
                kept=statistics.median((1.0 - step.eps) ** 2 / (1.0 + step.delta) ** 2 for step in every),
                measured_rate=statistics.geometric_mean(run.measured_rate for run in runs),
                guaranteed_rate=statistics.geometric_mean(run.guaranteed_rate for run in runs),
                violations=sum(len(checked.violations) for checked in checks),
            )


def plateaus(folder: StudyFolder, tally: Tally, generator: torch.Generator, *, iterations: int) -> None:
    """Sign descent on a few quadratics, small kappa r among them, where the paper's level is no bound."""
    chosen = [
        ("regression", 12, 8, 10.0),
        ("regression", 8, 8, 300.0),
        ("dense", 6, 4, 30.0),
        ("regression", 1, 6, 4.0),
        ("adverse", 4, 4, 3.0),
        ("dense", 1, 1, 1.0),
    ]
    for index, (family, m, n, kappa) in enumerate(chosen):
        quadratic = random_quadratic(family, m, n, kappa, generator)
        stalled = plateau(quadratic, iterations=iterations)
        tally.add_levels(stalled)
        L, mu, r = quadratic.smoothness, quadratic.convexity, min(m, n)
        folder.record(
            "plateau",
            quadratic=index,
            family=family,
            shape=[m, n],
            kappa=quadratic.kappa,
            slope=stalled.slope,
            steps=stalled.steps,
            levels=stalled.levels,
            bounds=stalled.bounds,
            fixed_points=[L**2 * gamma**2 * r**2 / (8.0 * mu) for gamma in stalled.steps],
            violations=stalled.violations,
        )


def responses(folder: StudyFolder, generator: torch.Generator) -> None:
    """Update against gradient over 12 decades for every optimizer; each sees the same gradient."""
    seed = int(torch.randint(2**31, (), generator=generator))
    for name in OPTIMIZERS:
        measured = response(name, torch.Generator().manual_seed(seed))
        folder.record(
            "consistency",
            slope=measured.slope,
            local_slopes=measured.local_slopes,
            verdict=measured.verdict,
            **dataclasses.asdict(measured),
        )


def noise_floors(folder: StudyFolder, tally: Tally, generator: torch.Generator, *, horizon: float) -> None:
    """PolarSGD and SGD under symmetric and skewed noise: floors against step at one variance, then against variance."""
    quadratic = random_quadratic("adverse", 6, 4, 4.0, generator)
    unit = 1.0 / (quadratic.smoothness * min(quadratic.minimizer.shape))
    # largest step and variance first: every setting starts from where the last one ended
    by_step = [(unit * 2.0**-i, 1.0) for i in range(6)]
    by_variance = [(unit, 100.0**-i) for i in range(5)]
    settings = [("step", optimizer, by_step) for optimizer in ("PolarSGD", "SGD")]
    for noise in NOISES:
        for against, optimizer, pairs in (*settings, ("variance", "PolarSGD", by_variance)):
            stopped = floors(quadratic, noise, pairs, generator, optimizer=optimizer, horizon=horizon)
            if optimizer == "PolarSGD":  # SGD is there for comparison
                tally.add_levels(stopped)
            folder.record(
                "noise",
                against=against,
                noise=noise,
                optimizer=optimizer,
                **dataclasses.asdict(stopped),
                violations=stopped.violations,
            )
    folder.record("bias", predicted=skewed_bias_gap(quadratic, 1.0), convexity=quadratic.convexity)


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
        progress: called with the name of each stage as it begins, and the share of the work before it.

    Returns:
        The page's path, the findings in sentences, and whether every claim held.

    Raises:
        FileExistsError: `out` exists.
        ValueError: quadratics or steps below 1.
    """
    if quadratics < 1 or steps < 1:
        raise ValueError(f"quadratics and steps are {quadratics} and {steps}; give at least 1 of each")
    generator = torch.Generator().manual_seed(seed)
    tally = Tally()
    begun = perf_counter()
    options = {"seed": seed, "quadratics": quadratics, "steps": steps, "brief": brief}
    # one thread: small matrices lose more by sharing work than they gain
    with torch_threads(1), StudyFolder(out, "theory", options) as folder:
        progress(f"PolarGrad on {quadratics} quadratics", 0.0)
        convergence(folder, tally, generator, quadratics=quadratics, steps=steps)
        progress("every polar method at every step count", 0.52)
        oracles(folder, tally, generator, quadratics=1 if brief else 4, steps=4 if brief else 40)
        progress("sign descent", 0.62)
        plateaus(folder, tally, generator, iterations=20 if brief else 800)
        progress("null gradients", 0.78)
        responses(folder, generator)
        progress("noise", 0.81)
        noise_floors(folder, tally, generator, horizon=0.1 if brief else 5.0)
        lead = _lead(folder.records, tally, quadratics)
        summary = {
            "status": "finished",
            "quadratics": quadratics,
            "comparisons": tally.comparisons,
            "violations": tally.violations,
            "seconds": perf_counter() - begun,
        }
        page = folder.finish("The theorems of PolarGrad, run", lead, sections(folder.records), summary)
    return StudyResult(page, lead, ok=tally.violations == 0)


def _lead(records: Sequence[Mapping[str, Any]], tally: Tally, quadratics: int) -> list[str]:
    slowest = tightest(of_kind(records, "descent", claim="exact"))
    slopes = [r["slope"] for r in of_kind(records, "plateau")]
    ratios = [ratio for r in of_kind(records, "plateau") for ratio in ratios_of(r, "bounds")]
    verdicts = [r["verdict"] for r in of_kind(records, "consistency")]
    skewed = of_kind(records, "noise", noise="skewed", optimizer="PolarSGD", against="step")[0]
    predicted = of_kind(records, "bias")[0]["predicted"]
    return [
        f"{tally.violations} violations in {tally.comparisons:,} comparisons over {quadratics} random quadratics, "
        "each with an exact and an inexact polar factor.",
        f"The slowest step with an exact factor brought {slowest:.2f} times the guaranteed decrease.",
        f"Sign descent stalls at a level ∝ γ^{min(slopes):.2f} to γ^{max(slopes):.2f} (theory: 2), "
        f"at {min(ratios):.1e} to {max(ratios):.2f} of its bound.",
        f"The update vanishes with the gradient over 12 decades for {verdicts.count('yes')} of {len(verdicts)} "
        "optimizers.",
        f"Under skewed noise PolarSGD stops at {skewed['levels'][-1]:.2f} ± {skewed['errors'][-1]:.2f} however small "
        f"the step (predicted {predicted:.2f} in the limit); under Gaussian noise its floor falls with the step.",
    ]
