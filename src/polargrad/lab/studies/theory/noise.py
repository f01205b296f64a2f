"""PolarSGD X <- X - gamma nu U with polar factors of noisy gradients: where it stops, against step and variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polargrad.geometry import Frobenius, Geometry, Spectral
from polargrad.lab.studies.theory.guarantees import noise_floor
from polargrad.lab.studies.theory.quadratics import Quadratic

__all__ = ["NOISES", "Floors", "floors", "skewed_bias_gap"]

NOISES = ("gaussian", "skewed")


@dataclass(frozen=True)
class Floors:
    """Mean gaps in the long run.

    Args:
        noise: one of `NOISES`.
        optimizer: "PolarSGD" or "SGD".
        steps: gamma.
        variances: sigma^2 = E ||N||_F^2.
        levels: mean of f(X_k) - f* over replicas and over the second half of the iterations.
        errors: standard error of that mean over replicas.
        bounds: of docs/theory.md for PolarSGD; infinite for SGD, which is there for comparison.
    """

    noise: str
    optimizer: str
    steps: list[float]
    variances: list[float]
    levels: list[float]
    errors: list[float]
    bounds: list[float]

    @property
    def violations(self) -> int:
        """How many levels lie above their bound by more than four standard errors."""
        rows = zip(self.levels, self.errors, self.bounds, strict=True)
        return sum(not level - 4.0 * error <= bound for level, error, bound in rows)


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
) -> Floors:
    """Run to stationarity at each (gamma, sigma^2), each from where the last one ended.

    Args:
        quadratic: what is minimized.
        noise: one of `NOISES`.
        steps_and_variances: gamma in (0, 2 / (L r)) and sigma^2.
        generator: source of the noise.
        optimizer: "PolarSGD", or "SGD" for comparison.
        replicas: independent runs, averaged.
        horizon: iterations at each setting in units of the longest time scale 1 / (gamma mu).

    Raises:
        ValueError: unknown noise or optimizer, a step outside its range, or skewed noise without two rows and columns.
    """
    if noise not in NOISES or optimizer not in ("PolarSGD", "SGD"):
        raise ValueError(f"noise is {noise!r} and optimizer {optimizer!r}; give one of {NOISES} and PolarSGD or SGD")
    geometry: Geometry = Spectral("svd") if optimizer == "PolarSGD" else Frobenius()
    shape = tuple(quadratic.minimizer.shape)
    rank = min(shape)
    sample = _sampler(noise, (shape[0], shape[1]), generator)
    X = quadratic.minimizer.expand(replicas, *shape).clone()
    result = Floors(noise, optimizer, [], [], [], [], [])
    for gamma, variance in steps_and_variances:
        bound = noise_floor(quadratic.smoothness, quadratic.convexity, rank, gamma, variance)
        iterations = math.ceil(max(horizon, 0.1) / (gamma * quadratic.convexity)) + 20
        total = torch.zeros(replicas, dtype=torch.float64)
        for k in range(iterations):
            G = torch.func.vmap(quadratic.gradient)(X) + sample(replicas, variance**0.5)
            X = X - gamma * geometry.sharp(G)
            if k >= iterations // 2:
                total += torch.func.vmap(quadratic.gap)(X)
        means = total / (iterations - iterations // 2)
        result.steps.append(gamma)
        result.variances.append(variance)
        result.levels.append(float(means.mean()))
        result.errors.append(float(means.std() / replicas**0.5))
        result.bounds.append(bound if optimizer == "PolarSGD" else math.inf)
    return result
