"""The levels at which descent with a constant step stalls: matrix sign descent, and PolarSGD under noise.

Without the nuclear norm, X <- X - gamma U, the step alone sets the level; with it, the noise of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polargrad.lab.studies.theory.guarantees import noise_floor, sign_descent_plateau
from polargrad.lab.studies.theory.quadratics import Quadratic
from polargrad.optim import PolarGrad

NOISES = ("gaussian", "skewed")


@dataclass
class Levels:
    """Gaps in the long run at each step size, beside the theorem's bounds.

    Args:
        steps: gamma.
        levels: of sign descent the largest gap over the second half of the iterations; under noise the mean of
            f(X_k) - f* over replicas and over that half.
        bounds: of docs/theory.md; infinite for SGD, which is there for comparison.
        variances: sigma^2 = E ||N||_F^2 of the gradient's noise.
        errors: standard error of the mean over replicas.
    """

    steps: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, step: float, level: float, bound: float, variance: float = 0.0, error: float = 0.0) -> None:
        """Add what one more step size led to."""
        for column, value in zip(vars(self).values(), (step, level, bound, variance, error), strict=True):
            column.append(value)

    @property
    def slope(self) -> float:
        """Exponent of the level as a power of the step; for sign descent the theorem says 2."""
        return log_slope(self.steps, self.levels)

    @property
    def violations(self) -> int:
        """How many levels lie above their bound by more than four standard errors."""
        rows = zip(self.levels, self.errors, self.bounds, strict=True)
        return sum(not level - 4.0 * error <= bound for level, error, bound in rows)


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


def plateau(quadratic: Quadratic, *, decades: int = 3, per_decade: int = 3, iterations: int = 800) -> Levels:
    """Run sign descent, PolarGrad without the nuclear norm, at ever smaller steps, each from where the last one ended.

    Args:
        quadratic: what is minimized.
        decades: how many powers of ten the step falls.
        per_decade: steps per power of ten.
        iterations: at each step size; the level is taken over the second half.
    """
    X = torch.nn.Parameter(quadratic.start.clone())
    optimizer = PolarGrad([X], momentum=0.0, scale="none", method="svd")
    largest = float(torch.linalg.matrix_norm(quadratic.start - quadratic.minimizer, 2)) / 10.0
    result = Levels()
    for i in range(decades * per_decade + 1):
        gamma = optimizer.param_groups[0]["lr"] = largest * 10.0 ** (-i / per_decade)
        level = 0.0
        for k in range(iterations):
            X.grad = quadratic.gradient(X.detach())
            optimizer.step()
            if k >= iterations // 2:
                level = max(level, float(quadratic.gap(X.detach())))
        bound = sign_descent_plateau(quadratic.smoothness, quadratic.convexity, min(X.shape), gamma)
        result.add(gamma, level, bound)
    return result


def _sampler(noise: str, shape: tuple[int, int], generator: torch.Generator) -> Callable[[int, float], Tensor]:
    """(replicas, sigma) -> (replicas, m, n) of mean zero and mean squared Frobenius norm sigma^2.

    "skewed" lives on the entries (1, 1) and (2, 2), which take (2, 0), (-1, 1), (-1, -1) with equal chances. Its mean
    is zero, but nu U is (2, 0), (-2, 2), (-2, -2), whose mean is (-2/3, 0).
    """
    m, n = shape

    def gaussian(replicas: int, sigma: float) -> Tensor:
        return sigma / math.sqrt(m * n) * torch.randn(replicas, m, n, dtype=torch.float64, generator=generator)

    if noise == "gaussian":
        return gaussian
    if min(m, n) < 2:
        raise ValueError(f"skewed noise lives on two rows and two columns; a {m} x {n} matrix has not as many")
    points = torch.zeros(3, m, n, dtype=torch.float64)
    points[:, 0, 0] = torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64)
    points[:, 1, 1] = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)

    def skewed(replicas: int, sigma: float) -> Tensor:
        drawn = torch.randint(3, (replicas,), generator=generator)
        return sigma * math.sqrt(3.0 / 8.0) * points[drawn]

    return skewed


def skewed_bias_gap(quadratic: Quadratic, sigma: float) -> float:
    """The gap that skewed noise leaves for gamma -> 0 on a Hessian that keeps entry (1, 1) apart: G = (2/3) s there.

    With G = x s e_11 the mean of nu U is ((2 + x) - 2 (2 - x)) / 3 s e_11, zero at x = 2/3, where s^2 = 3 sigma^2 / 8.
    """
    E = torch.zeros_like(quadratic.minimizer)
    E[0, 0] = 1.0
    curvature = float(quadratic.gradient(quadratic.minimizer + E)[0, 0])
    return (2.0 / 3.0) ** 2 * (3.0 / 8.0) * sigma**2 / (2.0 * curvature)


def floors(
    quadratic: Quadratic,
    noise: str,
    steps_and_variances: list[tuple[float, float]],
    generator: torch.Generator,
    *,
    optimizer: str = "PolarSGD",
    replicas: int = 16,
    horizon: float = 5.0,
) -> Levels:
    """Run PolarSGD, X <- X - gamma nu U with polar factors of noisy gradients, to stationarity.

    It runs at each (gamma, sigma^2) in turn, and starts where the last one ended.

    Args:
        quadratic: what is minimized.
        noise: one of `NOISES`.
        steps_and_variances: gamma in (0, 2 / (L r)) and sigma^2.
        generator: source of the noise.
        optimizer: "PolarSGD", or "SGD" for comparison.
        replicas: independent runs, averaged: a batch of matrices to the optimizer.
        horizon: iterations at each setting in units of the longest time scale 1 / (gamma mu).

    Raises:
        ValueError: unknown noise or optimizer, a step outside its range, or skewed noise without two rows and columns.
    """
    if noise not in NOISES or optimizer not in ("PolarSGD", "SGD"):
        raise ValueError(f"noise is {noise!r} and optimizer {optimizer!r}; give one of {NOISES} and PolarSGD or SGD")
    m, n = quadratic.minimizer.shape
    sample = _sampler(noise, (m, n), generator)
    X = torch.nn.Parameter(quadratic.minimizer.expand(replicas, m, n).clone())
    bounded = optimizer == "PolarSGD"
    stepper = PolarGrad([X], momentum=0.0, method="svd") if bounded else torch.optim.SGD([X])
    result = Levels()
    for gamma, variance in steps_and_variances:
        bound = noise_floor(quadratic.smoothness, quadratic.convexity, min(m, n), gamma, variance)
        stepper.param_groups[0]["lr"] = gamma
        iterations = math.ceil(max(horizon, 0.1) / (gamma * quadratic.convexity)) + 20
        total = torch.zeros(replicas, dtype=torch.float64)
        for k in range(iterations):
            X.grad = quadratic.gradient(X.detach()) + sample(replicas, variance**0.5)
            stepper.step()
            if k >= iterations // 2:
                total += quadratic.gap(X.detach())
        means = total / (iterations - iterations // 2)
        error = float(means.std() / replicas**0.5)
        result.add(gamma, float(means.mean()), bound if bounded else math.inf, variance, error)
    return result
