"""Scaled Newton iteration: the average of X and its inverse adjoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.bounds import norm_bound
from polargrad.linalg.coefficients import QUINTIC
from polargrad.linalg.decomposition import on_host
from polargrad.linalg.method import IterationResult, PolarMethod, check_count, register
from polargrad.linalg.newton_schulz import iterate_polynomials
from polargrad.linalg.scaling import largest_entry, power_of_two_scale

__all__ = ["Newton", "newton_ranges"]

# Where the singular values lie in [1, 1 + this] the quintic Newton-Schulz step takes over: it leaves 2.5 e^3 of a
# deviation e for three products, which cost less than an inverse.
_HAND_OVER = 3e-3
# Between the unit roundoffs of double and single precision.
_SINGLE_EPS = 1e-8


def newton_ranges(lower: float, deviation: float) -> list[float]:
    """h_1, h_2, ...: after step i the singular values that start in [lower, 1] lie in [1, h_i].

    h_1 = (sqrt(1 / lower) + sqrt(lower)) / 2 and h_{i+1} = (sqrt(h_i) + 1 / sqrt(h_i)) / 2, up to 1 + deviation.

    Example:
        >>> [round(h, 4) for h in newton_ranges(1e-4, 1e-2)]
        [50.005, 3.6064, 1.2128, 1.0047]

    Source: Byers and Xu, SIAM J. Matrix Anal. Appl. 30 (2008), section 3: the suboptimal scaling.
    """
    ranges = [_average(math.sqrt(1.0 / lower))]
    while ranges[-1] - 1.0 > deviation:
        ranges.append(_average(math.sqrt(ranges[-1])))
    return ranges


def _average(x: float) -> float:
    return (x + 1.0 / x) / 2.0


def _root_of_norm_bound(X: Tensor) -> Tensor:
    """The square root of a bound on ||X||_2 for each matrix (k, 1, 1), whose square need not be in range."""
    scale = power_of_two_scale(largest_entry(X))
    bound = torch.minimum(norm_bound(X * scale), torch.linalg.matrix_norm(X * scale))[:, None, None]
    return bound.sqrt() * scale.rsqrt()


@register
@dataclass(frozen=True)
class Newton(PolarMethod):
    """X <- (zeta X + X^{-H} / zeta) / 2, scaled so that any condition number takes at most 9 steps.

    zeta_1 = (alpha beta)^(-1/2) with bounds alpha >= sigma_max from the norms of X and beta <= sigma_min from those of
    its inverse; the singular values then lie in [1, h] with a known h, and zeta = h^(-1/2) from there on. The last
    digits come from quintic Newton-Schulz steps.

    For nonsingular matrices. A = Q R is reduced to its triangular factor, since the factor of A is Q times that of R:
    so tall matrices become square, and the first inverse, the only ill-conditioned one, is that of a triangular
    matrix, which back substitution computes far more accurately than elimination does. A matrix that is singular but
    for rounding is treated as the regular matrix that rounding made of it; a zero matrix gives zero. On a CPU the
    number of steps follows from the condition number; elsewhere, where looking at it would stop the queue, the steps
    of a condition number of eps^-2 are made. Where an inverse does not exist, or these steps do not suffice, the factor
    is NaN and the status is breakdown.

    Args:
        max_steps: None runs to convergence (1 to 7 steps) and finishes with Newton-Schulz steps; a number stops after
            at most so many steps, without a finish if that comes too early.

    Raises:
        ValueError: max_steps out of its range.

    Example:
        >>> import torch
        >>> U = Newton().iterate(torch.tensor([[[0.0, -1.0], [1e-3, 0.0]]])).unitary
        >>> (U[0].round(decimals=5) + 0.0).tolist()
        [[0.0, -1.0], [1.0, 0.0]]

    Source: Higham, Functions of Matrices (2008), section 8.6; Byers and Xu (2008); Higham and Schreiber (1990) for
        the change to Newton-Schulz.
    """

    name: ClassVar[str] = "newton"
    peak_memory: ClassVar[float] = 9.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps)

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        ranges = newton_ranges(torch.finfo(dtype).eps, _HAND_OVER)
        return 1.0, (1.0 if self.max_steps is None or self.max_steps >= len(ranges) else ranges[self.max_steps - 1])

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """For a condition number of 1 / eps: a QR factorization, a triangular inverse, general inverses, and a finish.

        Fewer inverses for a better conditioned matrix on a CPU.
        """
        eps = torch.finfo(self.working_dtype(dtype)).eps
        ranges = newton_ranges(eps, _HAND_OVER)
        steps = min(self.max_steps or len(ranges), len(ranges))
        polish = (1 if eps > _SINGLE_EPS else 2) if steps == len(ranges) else 0
        total = operations.qr(m, n) + operations.triangular_inverse(n) + (steps - 1) * operations.inverse(n)
        return total + polish * operations.polynomial(n, n) + operations.product(m, n)

    def iterate(self, X: Tensor) -> IterationResult:
        zero = (X == 0).all(-1).all(-1)
        eps = torch.finfo(X.dtype).eps
        Q, X = torch.linalg.qr(X)
        # Computed inverses can be larger than 1 / eps; the square of that is more than a usual matrix has. Where the
        # host looks, singular values may be as small as the dtype holds.
        look = on_host(X)
        worst = len(newton_ranges(torch.finfo(X.dtype).tiny if look else eps**2, _HAND_OVER))
        limit = min(self.max_steps or worst, worst)
        eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
        failed = torch.zeros_like(zero)
        h = torch.ones_like(zero, dtype=eye.real.dtype)[:, None, None]
        steps, finish = 0, limit == worst
        for steps in range(1, limit + 1):
            if steps == 1:
                Y = torch.linalg.solve_triangular(X, eye.expand_as(X), upper=True)
            else:
                Y, _ = torch.linalg.inv_ex(X)
            singular = ~torch.isfinite(Y).all(-1).all(-1)
            failed = failed | singular
            X, Y = (torch.where(singular[:, None, None], eye, Z) for Z in (X, Y))
            if steps == 1:
                # 1 / zeta^2 = alpha beta and h = average of sqrt(alpha / beta), with 1 / beta a bound on ||X^{-1}||.
                alpha, inverse_beta = (_root_of_norm_bound(Z) for Z in (X, Y))
                zeta, spread = inverse_beta / alpha, inverse_beta * alpha
            else:
                zeta, spread = h.rsqrt(), h.sqrt()
            X = (zeta / 2) * X + Y.mH / (2 * zeta)
            h = (spread + 1 / spread) / 2
            if look and (finish := bool((h <= 1 + _HAND_OVER).all())):
                break
        if finish:
            failed = failed | (h > 1 + _HAND_OVER).flatten()
            # 2.5 (3e-3)^3 = 7e-8 is below the rounding of float32, and its cube below that of float64.
            X = iterate_polynomials(X, QUINTIC if eps > _SINGLE_EPS else QUINTIC * 2)
        X = Q @ X
        X = torch.where(zero[:, None, None], 0.0, torch.where(failed[:, None, None], math.nan, X))
        return IterationResult(X, steps=steps, breakdown=failed & ~zero)
