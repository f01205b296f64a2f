"""Run each optimizer of the unifying view on a regression with a known Hessian and measure what it conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from polargrad.geometry import inner
from polargrad.geometry.preconditioners import Kronecker, curvature_condition_number, gradient_condition_number, newton
from polargrad.lab.matrix.quadratic import MatrixQuadratic
from polargrad.lab.studies.preconditioning.best_step import best_descent
from polargrad.lab.studies.preconditioning.views import VIEWS


def regression(seed: int = 42, *, p: int = 100, m: int = 50, n: int = 10, q: int = 25) -> MatrixQuadratic:
    """The paper's matrix quadratic regression in float64, by default at a tenth of its size.

    A (p, m), B (n, q), C (p, q) are Gaussian, the start (m, n) is uniform on (-1, 1).

    Raises:
        ValueError: p < m or q < n, for which the Hessian is singular, or a size below 1.
    """
    if not (p >= m >= 1 and q >= n >= 1):
        raise ValueError(f"p, m, n, q are {p}, {m}, {n}, {q}; the Hessian is regular for p >= m >= 1 and q >= n >= 1")
    generator = torch.Generator().manual_seed(seed)
    A, B, C = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in ((p, m), (n, q), (p, q)))
    return MatrixQuadratic(A, B, C, 2.0 * torch.rand(m, n, dtype=torch.float64, generator=generator) - 1.0)


def hessian(problem: MatrixQuadratic) -> Kronecker:
    """H: X -> A^T A X B B^T."""
    return newton(problem.A.mT @ problem.A, problem.B @ problem.B.mT)


@dataclass(frozen=True)
class Measurement:
    """One optimizer at one iterate of its run with exact line search.

    Args:
        optimizer: a key of `VIEWS`.
        step: iterations before.
        gap: f(X) - f*.
        hessian_kappa: kappa(H).
        preconditioned_kappa: kappa(P^{-1/2} H P^{-1/2}); infinite where P is singular, NaN where none is known.
        gradient_kappa: sigma_1 / sigma_r of the gradient.
        direction_kappa: the same of the direction.
        descent: f(X) - f(X - t D) with the best t.
        share: descent / gap.
        efficiency: descent over the largest descent of any step that is no longer in the optimizer's norm.
    """

    optimizer: str
    step: int
    gap: float
    hessian_kappa: float
    preconditioned_kappa: float
    gradient_kappa: float
    direction_kappa: float
    descent: float
    share: float
    efficiency: float


@dataclass
class Course:
    """One optimizer's run with exact line search.

    Args:
        optimizer: a key of `VIEWS`.
        measurements: at the chosen iterates.
        gaps: f(X_k) - f* for every k.
    """

    optimizer: str
    measurements: list[Measurement] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def steps_to(self, fraction: float) -> int | None:
        """The first k with gap at most `fraction` of the first gap; None if the run has no such k."""
        return next((k for k, gap in enumerate(self.gaps) if gap <= fraction * self.gaps[0]), None)


def measure(problem: MatrixQuadratic, optimizer: str, at: Sequence[int]) -> Course:
    """Run one optimizer along its own directions with exact line search, and measure at the given iterates.

    The line search takes the learning rate out of the comparison: t = <G, D> / <D, H D> makes the most of a direction.

    Args:
        problem: the regression, in float64.
        optimizer: a key of `VIEWS`.
        at: iterates to measure at, from 0; the run ends at the last, or when nothing is left to gain.

    Raises:
        ValueError: an unknown optimizer.
    """
    if optimizer not in VIEWS:
        raise ValueError(f"optimizer is {optimizer!r}; the unifying view knows {', '.join(VIEWS)}")
    memory = VIEWS[optimizer].make()
    H, X = hessian(problem), problem.start["X"]
    course = Course(optimizer)
    for k in range(max(at) + 1):
        gap = problem.gap({"X": X})
        course.gaps.append(gap)
        if gap <= 1e-24 * course.gaps[0]:
            break
        G = problem.gradient(X)
        direction, operator, ball = memory(G, problem, X)
        slope, curvature = float(inner(G, direction)), float(inner(direction, H.apply(direction)))
        t = max(slope, 0.0) / curvature
        descent = max(slope, 0.0) ** 2 / (2.0 * curvature)
        if k in at:
            best = best_descent(H, G, ball, ball.norm(t * direction)) if descent > 0.0 else math.inf
            assert problem.condition_number is not None
            course.measurements.append(
                Measurement(
                    optimizer=optimizer,
                    step=k,
                    gap=gap,
                    hessian_kappa=problem.condition_number,
                    preconditioned_kappa=math.nan if operator is None else curvature_condition_number(H, operator),
                    gradient_kappa=gradient_condition_number(G),
                    direction_kappa=gradient_condition_number(direction),
                    descent=descent,
                    share=descent / gap,
                    efficiency=descent / best,
                )
            )
        X = X - t * direction
    return course
