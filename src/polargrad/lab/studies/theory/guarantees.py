"""The convergence theorems as formulas. docs/theory.md derives each.

Throughout f is L-smooth and mu-strongly convex in the Frobenius norm, kappa = L / mu, Delta = f(X) - f*, G is the
gradient of rank r, nu = ||G||_nuc its nuclear norm.
"""

from __future__ import annotations

import math


def descent_factor(kappa: float, rank: float, *, eps: float = 0.0, delta: float = 0.0) -> float:
    """Bound on Delta_{k+1} / Delta_k for PolarGrad: 1 - (1 - eps)^2 / ((1 + delta)^2 r kappa).

    The oracle returns U~ with <G, U~> >= (1 - eps) nu and ||U~||_F^2 <= (1 + delta)^2 r, and the step is
    X - gamma <G, U~> U~ with gamma = 1 / (L r (1 + delta)^2). An exact oracle has eps = delta = 0.

    Example:
        >>> descent_factor(2.0, 4)
        0.875

    Source: Lau, Long, Su, arXiv 2505.21799 (exact oracle, later versions); docs/theory.md.
    """
    return 1.0 - max(1.0 - eps, 0.0) ** 2 / ((1.0 + delta) ** 2 * rank * kappa)


def sign_descent_plateau(smoothness: float, convexity: float, rank: float, step: float) -> float:
    """Bound on limsup Delta_k of matrix sign descent X - gamma U: max(L^2 gamma^2 r^2 / (8 mu), L gamma^2 r / 2).

    The first is the fixed point of Delta - gamma sqrt(2 mu Delta) + L gamma^2 r / 2. It bounds the limit superior only
    when r kappa >= 4; below that an iterate may jump from the minimizer to the second.

    Example:
        >>> sign_descent_plateau(4.0, 1.0, 2, 0.5)
        2.0
    """
    return max(smoothness**2 * step**2 * rank**2 / (8.0 * convexity), smoothness * step**2 * rank / 2.0)


def stochastic_rate(smoothness: float, convexity: float, rank: float, step: float) -> float:
    """Bound on the contraction of E Delta_k in PolarSGD: 1 - gamma mu c with c = 1 - gamma L r / 2.

    Raises:
        ValueError: gamma is not in (0, 2 / (L r)).
    """
    return 1.0 - step * convexity * _margin(smoothness, rank, step)


def noise_floor(smoothness: float, convexity: float, rank: float, step: float, variance: float) -> float:
    """Bound on limsup E Delta_k of PolarSGD: sigma^2 (r / c^2 - 1) / (2 mu) with c = 1 - gamma L r / 2.

    The gradient carries noise N with E N = 0 and E ||N||_F^2 = sigma^2. For r > 1 it does not vanish with gamma, and
    must not: polar factors are not linear, so that skewed noise leaves a bias. For r = 1 it is gamma L sigma^2 / (2 mu)
    times 1 + O(gamma), that of stochastic gradient descent.

    Raises:
        ValueError: gamma is not in (0, 2 / (L r)).

    Example:
        >>> noise_floor(1.0, 0.5, 1, 1.0, 1.0)
        3.0
    """
    return variance * (rank / _margin(smoothness, rank, step) ** 2 - 1.0) / (2.0 * convexity)


def _margin(smoothness: float, rank: float, step: float) -> float:
    limit = 2.0 / (smoothness * rank)
    if not (0.0 < step < limit and math.isfinite(step)):
        raise ValueError(f"step is {step}; the theorem holds for a step in (0, 2 / (L r)) = (0, {limit:.3g})")
    return 1.0 - step * smoothness * rank / 2.0
