"""The stages of the theory study: each runs something, checks it and hands its records to the folder."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from polargrad.lab.studies.study import StudyFolder
from polargrad.lab.studies.theory.consistency import OPTIMIZERS, response
from polargrad.lab.studies.theory.descent import Check, Descent, Oracle, check, descend, exact_oracle, oracle_of
from polargrad.lab.studies.theory.noise import NOISES, Floors, floors, skewed_bias_gap
from polargrad.lab.studies.theory.quadratics import FAMILIES, SPECTRA, Quadratic, random_quadratic
from polargrad.lab.studies.theory.sign_descent import plateau
from polargrad.linalg import NewtonSchulz, available_methods, resolve_method

__all__ = ["Tally", "consistency", "convergence", "noise_floors", "oracles", "plateaus", "step_counts"]

# Runs whose whole course is recorded, for the figure.
SHOWN = 24
MOST_STEPS = 8


@dataclass
class Tally:
    """Comparisons made and failed."""

    comparisons: int = 0
    violations: int = 0

    def add(self, folder: StudyFolder, found: Check, **where: Any) -> None:
        """Count a check and record each of its violations."""
        self.comparisons += found.comparisons
        self.violations += len(found.violations)
        for violation in found.violations:
            folder.record("violation", **where, **violation._asdict())


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


def _inexact(index: int, quadratic: Quadratic) -> Oracle:
    """The inexact oracle of quadratic number `index`: methods and step counts in turn."""
    pool: list[Callable[[], Oracle]] = [
        lambda: oracle_of("newton-schulz"),
        lambda: oracle_of(NewtonSchulz.cubic(4)),
        *(lambda s=s: oracle_of("qdwh", s) for s in (1, 2, 3, None)),
        *(lambda s=s: oracle_of("polar-express", s) for s in (3, 5, 8)),
    ]
    return pool[index % len(pool)]()


def convergence(folder: StudyFolder, tally: Tally, generator: torch.Generator, *, quadratics: int, steps: int) -> None:
    """Each quadratic with the exact oracle against the exact bound, with an inexact one against the inexact bound."""
    for index in range(quadratics):
        quadratic, where = draw_quadratic(index, generator)
        for oracle in (exact_oracle(quadratic.rank_tolerance), _inexact(index, quadratic)):
            run = descend(quadratic, oracle, steps)
            found = check(run)
            tally.add(folder, found, **where, oracle=oracle.name)
            course = _course(run) if oracle.claim == "exact" and index < SHOWN else {}
            folder.record("descent", **where, **_summary(run, found), **course)


def _summary(run: Descent, found: Check) -> dict[str, Any]:
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
        "comparisons": found.comparisons,
        "violations": len(found.violations),
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
            found = [check(run) for run in runs]
            for index, one in enumerate(found):
                tally.add(folder, one, method=method, max_steps=limit, problem=index)
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
                violations=sum(len(one.violations) for one in found),
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
        found = plateau(quadratic, iterations=iterations)
        tally.comparisons += len(found.steps)
        tally.violations += found.violations
        L, mu, r = quadratic.smoothness, quadratic.convexity, min(m, n)
        folder.record(
            "plateau",
            quadratic=index,
            family=family,
            shape=[m, n],
            kappa=quadratic.kappa,
            slope=found.slope,
            steps=found.steps,
            levels=found.levels,
            bounds=found.bounds,
            fixed_points=[L**2 * gamma**2 * r**2 / (8.0 * mu) for gamma in found.steps],
            violations=found.violations,
        )


def consistency(folder: StudyFolder, generator: torch.Generator) -> None:
    """Update against gradient over 12 decades for every optimizer; each sees the same gradient."""
    seed = int(torch.randint(2**31, (), generator=generator))
    for name in OPTIMIZERS:
        found = response(name, torch.Generator().manual_seed(seed))
        folder.record(
            "consistency",
            optimizer=name,
            slope=found.slope,
            local_slopes=found.local_slopes,
            verdict=found.verdict,
            gradient_norms=found.gradient_norms,
            update_norms=found.update_norms,
        )


def noise_floors(folder: StudyFolder, tally: Tally, generator: torch.Generator, *, horizon: float) -> None:
    """PolarSGD and SGD under symmetric and skewed noise: floors against step at one variance, then against variance."""
    quadratic = random_quadratic("adverse", 6, 4, 4.0, generator)
    unit = 1.0 / (quadratic.smoothness * min(quadratic.minimizer.shape))
    # largest step and variance first: every setting starts from where the last one ended
    by_step = [(unit * 2.0**-i, 1.0) for i in range(6)]
    by_variance = [(unit, 100.0**-i) for i in range(5)]
    for noise in NOISES:
        for optimizer in ("PolarSGD", "SGD"):
            found = floors(quadratic, noise, by_step, generator, optimizer=optimizer, horizon=horizon)
            _record_floors(folder, tally, "step", found)
        found = floors(quadratic, noise, by_variance, generator, horizon=horizon)
        _record_floors(folder, tally, "variance", found)
    folder.record("bias", predicted=skewed_bias_gap(quadratic, 1.0), convexity=quadratic.convexity)


def _record_floors(folder: StudyFolder, tally: Tally, against: str, found: Floors) -> None:
    if found.optimizer == "PolarSGD":
        tally.comparisons += len(found.levels)
        tally.violations += found.violations
    folder.record(
        "noise",
        against=against,
        noise=found.noise,
        optimizer=found.optimizer,
        steps=found.steps,
        variances=found.variances,
        levels=found.levels,
        errors=found.errors,
        bounds=found.bounds,
        violations=found.violations if found.optimizer == "PolarSGD" else 0,
    )
