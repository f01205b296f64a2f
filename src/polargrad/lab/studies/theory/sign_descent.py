"""Matrix sign descent X <- X - gamma U: without the nuclear norm it stalls at a level set by the step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polargrad.geometry import Spectral
from polargrad.lab.studies.theory.guarantees import sign_descent_plateau
from polargrad.lab.studies.theory.quadratics import Quadratic

__all__ = ["Plateau", "log_slope", "plateau"]


@dataclass(frozen=True)
class Plateau:
    """Levels at which sign descent stalls, by step size.

    Args:
        steps: gamma.
        levels: the largest gap over the second half of the iterations at that gamma.
        bounds: of the theorem, max(L^2 gamma^2 r^2 / (8 mu), L gamma^2 r / 2).
    """

    steps: list[float]
    levels: list[float]
    bounds: list[float]

    @property
    def slope(self) -> float:
        """Exponent of the level as a power of the step; the theorem says 2."""
        return log_slope(self.steps, self.levels)

    @property
    def violations(self) -> int:
        """How many levels lie above their bound."""
        return sum(not level <= bound for level, bound in zip(self.levels, self.bounds, strict=True))


def log_slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope of log y against log x.

    Example:
        >>> round(log_slope([1.0, 10.0, 100.0], [2.0, 200.0, 20000.0]), 6)
        2.0
    """
    u = torch.tensor(x, dtype=torch.float64).log()
    v = torch.tensor(y, dtype=torch.float64).log()
    u, v = u - u.mean(), v - v.mean()
    return float((u * v).sum() / u.square().sum())


def plateau(quadratic: Quadratic, *, decades: int = 3, per_decade: int = 3, iterations: int = 800) -> Plateau:
    """Run sign descent at ever smaller steps, each from where the last one stalled.

    Args:
        quadratic: what is minimized.
        decades: how many powers of ten the step falls.
        per_decade: steps per power of ten.
        iterations: at each step size; the level is taken over the second half.
    """
    geometry = Spectral("svd")
    X: Tensor = quadratic.start
    largest = float(torch.linalg.matrix_norm(X - quadratic.minimizer, 2)) / 10.0
    result = Plateau([], [], [])
    for i in range(decades * per_decade + 1):
        gamma = largest * 10.0 ** (-i / per_decade)
        level = 0.0
        for k in range(iterations):
            X = X - gamma * geometry.lmo(quadratic.gradient(X))
            if k >= iterations // 2:
                level = max(level, float(quadratic.gap(X)))
        result.steps.append(gamma)
        result.levels.append(level)
        rank = min(X.shape)
        result.bounds.append(sign_descent_plateau(quadratic.smoothness, quadratic.convexity, rank, gamma))
    return result
