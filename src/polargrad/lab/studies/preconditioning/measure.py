"""Run each optimizer of the unifying view on a regression with a known Hessian and measure what it conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from polargrad.geometry import inner
from polargrad.geometry.preconditioners import Kronecker, curvature_condition_number, gradient_condition_number, newton
from polargrad.lab.studies.preconditioning.best_step import best_descent
from polargrad.lab.studies.preconditioning.views import VIEWS, Surroundings

__all__ = ["Course", "Measurement", "Regression", "measure"]


@dataclass(frozen=True)
class Regression:
    """f(X) = 1/2 ||A X B - C||_F^2, the paper's matrix quadratic regression, in float64.

    Hessian (A^T A) kron (B B^T) on rows of X one after another, kappa_H = kappa(A)^2 kappa(B)^2.

    Args:
        A: (p, m).
        B: (n, q).
        C: (p, q).
        start: X_0 (m, n).
    """

    A: Tensor
    B: Tensor
    C: Tensor
    start: Tensor

    @classmethod
    def draw(cls, seed: int = 42, *, p: int = 100, m: int = 50, n: int = 10, q: int = 25) -> Regression:
        """Gaussian A, B, C and X_0 uniform on (-1, 1): the paper's problem, by default at a tenth of its size.

        Raises:
            ValueError: p < m or q < n, for which the Hessian is singular, or a size below 1.
        """
        if not (p >= m >= 1 and q >= n >= 1):
            raise ValueError(
                f"p, m, n, q are {p}, {m}, {n}, {q}; the Hessian is regular for p >= m >= 1 and q >= n >= 1"
            )
        generator = torch.Generator().manual_seed(seed)
        A, B, C = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in ((p, m), (n, q), (p, q)))
        start = 2.0 * torch.rand(m, n, dtype=torch.float64, generator=generator) - 1.0
        return cls(A, B, C, start)

    @cached_property
    def hessian(self) -> Kronecker:
        """H: X -> A^T A X B B^T."""
        return newton(self.A.mT @ self.A, self.B @ self.B.mT)

    @cached_property
    def minimizer(self) -> Tensor:
        """X* = A^+ C B^+."""
        return torch.linalg.pinv(self.A) @ self.C @ torch.linalg.pinv(self.B)

    @property
    def kappa(self) -> float:
        """Condition number of the Hessian, the product of the squares of those of A and B."""
        return float((torch.linalg.cond(self.A) * torch.linalg.cond(self.B)) ** 2)

    def residual(self, X: Tensor) -> Tensor:
        """A X B - C."""
        return self.A @ X @ self.B - self.C

    def gap(self, X: Tensor) -> float:
        """f(X) - f* = ||A (X - X*) B||_F^2 / 2."""
        return float((self.A @ (X - self.minimizer) @ self.B).square().sum() / 2.0)


@dataclass(frozen=True)
class Measurement:
    """One optimizer at one iterate of its own run with exact line search.

    Args:
        optimizer: a key of `VIEWS`.
        step: iterations before.
        gap: f(X) - f*.
        hessian_kappa: kappa(H).
        preconditioned_kappa: kappa(P^{-1/2} H P^{-1/2}); infinite where P is singular.
        gradient_kappa: sigma_1 / sigma_r of the gradient.
        direction_kappa: the same of the direction.
        descent: f(X) - f(X - t D) with the best t.
        share: descent / gap.
        efficiency: descent over the most that any step no longer in the optimizer's own norm would give.
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
        measurements: at the iterates asked for.
        gaps: f(X_k) - f* for every k.
    """

    optimizer: str
    measurements: list[Measurement] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def steps_to(self, fraction: float) -> int | None:
        """The first k with gap at most `fraction` of the first gap; None if there is none."""
        return next((k for k, gap in enumerate(self.gaps) if gap <= fraction * self.gaps[0]), None)


def measure(problem: Regression, optimizer: str, at: Sequence[int]) -> Course:
    """Run one optimizer along its own directions with exact line search, and measure at the given iterates.

    The line search takes the learning rate out of the comparison: t = <G, D> / <D, H D> makes the most of a direction.

    Args:
        problem: the regression.
        optimizer: a key of `VIEWS`.
        at: iterates to measure at, from 0; the run ends at the last, or when nothing is left to gain.

    Raises:
        ValueError: an unknown optimizer.
    """
    if optimizer not in VIEWS:
        raise ValueError(f"optimizer is {optimizer!r}; the unifying view knows {', '.join(VIEWS)}")
    memory = VIEWS[optimizer].make()
    H, X = problem.hessian, problem.start
    course = Course(optimizer)
    for k in range(max(at) + 1):
        gap = problem.gap(X)
        course.gaps.append(gap)
        if gap <= 1e-24 * course.gaps[0]:
            break
        residual = problem.residual(X)
        G = problem.A.mT @ residual @ problem.B.mT
        direction, operator, ball = memory(G, Surroundings(problem.A, problem.B, residual))
        slope, curvature = float(inner(G, direction)), float(inner(direction, H.apply(direction)))
        t = max(slope, 0.0) / curvature
        descent = max(slope, 0.0) ** 2 / (2.0 * curvature)
        if k in at:
            best = best_descent(H, G, ball, ball.norm(t * direction)) if descent > 0.0 else math.inf
            course.measurements.append(
                Measurement(
                    optimizer=optimizer,
                    step=k,
                    gap=gap,
                    hessian_kappa=problem.kappa,
                    preconditioned_kappa=curvature_condition_number(H, operator),
                    gradient_kappa=gradient_condition_number(G),
                    direction_kappa=gradient_condition_number(direction),
                    descent=descent,
                    share=descent / gap,
                    efficiency=descent / best,
                )
            )
        X = X - t * direction
    return course
