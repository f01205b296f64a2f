"""QDWH: the dynamically weighted Halley iteration, by QR while the weight is large and then by Cholesky."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.bounds import largest_eigenvalue, norm_bound, spectral_norm
from polargrad.linalg.coefficients import CUBIC, QUINTIC
from polargrad.linalg.kernels import gram, hermitian_product, product
from polargrad.linalg.method import Iterate, PolarMethod, register
from polargrad.linalg.newton_schulz import iterate_polynomials
from polargrad.linalg.tall import is_tall

__all__ = ["QDWH", "double_precision", "halley_weights", "orthonormalize"]

# Up to this weight c the Cholesky factor of I + c X^H X, in the precision of X, is accurate enough. In float64 QR
# takes over above it (Nakatsukasa and Higham 2013, section 5.4, who use 100); in float32 Cholesky in float64 does.
_CHOLESKY_WEIGHT = 100.0
# Between the two weights it is enough to form and factor I + c X^H X in float64 and to solve in float32, whose error
# is sqrt(c) eps in directions that hardly count for the backward error: measured 0.8e-6 at c = 315.
_DOUBLE_SOLVE_WEIGHT = 1000.0
# Times the estimate of the norm.
_NORM_MARGIN = 1.1
# Weights up to this one keep c eps below 1e-4 in float64: I + c X^H X is then safely positive definite.
_DOUBLE_CHOLESKY_WEIGHT = 1e11


def double_precision(dtype: torch.dtype) -> torch.dtype:
    """The 64-bit dtype that is real or complex as `dtype` is."""
    return torch.complex128 if dtype.is_complex else torch.float64


def halley_weights(lower: float, tolerance: float) -> list[tuple[float, float, float]]:
    """The weights (a, b, c) of x (a + b x^2) / (1 + c x^2) for singular values in [lower, 1], step by step.

    Stops once the lower bound has reached 1 - tolerance. Pure host arithmetic: the number of steps
    depends on `lower` alone, so no device synchronization is needed.

    Source: Nakatsukasa, Bai, Gygi (2010), eq. (3.10).

    Example:
        >>> len(halley_weights(1e-16, 1e-15))
        6
    """
    weights = []
    while 1.0 - lower > tolerance:
        d = (4.0 * (1.0 - lower**2) / lower**4) ** (1.0 / 3.0)
        root = math.sqrt(1.0 + d)
        a = root + 0.5 * math.sqrt(8.0 - 4.0 * d + 8.0 * (2.0 - lower**2) / (lower**2 * root))
        b = (a - 1.0) ** 2 / 4.0
        c = a + b - 1.0
        weights.append((a, b, c))
        lower = min(lower * (a + b * lower**2) / (1.0 + c * lower**2), 1.0)
    return weights


def _scale(X: Tensor, bound: Tensor) -> Tensor:
    """X / bound for each matrix; zero stays zero."""
    return X / torch.where(bound > 0, bound, 1.0)[:, None, None].to(X.dtype)


def _qr_step(X: Tensor, a: float, b: float, c: float) -> Tensor:
    """[sqrt(c) X; I] = [Q1; Q2] R;  X <- (b/c) X + (a - b/c) / sqrt(c) Q1 Q2^H."""
    k, m, n = X.shape
    eye = torch.eye(n, dtype=X.dtype, device=X.device).expand(k, n, n)
    Q, _ = torch.linalg.qr(torch.cat([math.sqrt(c) * X, eye], dim=-2))
    return (b / c) * X + ((a - b / c) / math.sqrt(c)) * (Q[..., :m, :] @ Q[..., m:, :].mH)


def _cholesky_step(X: Tensor, a: float, b: float, c: float, G: Tensor) -> Tensor:
    """I + c G = R^H R with G = X^H X;  X <- (b/c) X + (a - b/c) X R^{-1} R^{-H}, factored in the precision of G."""
    Z = c * G
    Z.diagonal(dim1=-2, dim2=-1).add_(1.0)
    R, _ = torch.linalg.cholesky_ex(Z, upper=True)
    R = R.to(X.dtype) if c <= _DOUBLE_SOLVE_WEIGHT else R
    Y = torch.linalg.solve_triangular(R, X.to(R.dtype), upper=True, left=False)
    Y = torch.linalg.solve_triangular(R.mH, Y, upper=False, left=False)
    return Y.mul_(a - b / c).add_(X, alpha=b / c).to(X.dtype)


def _halley_step(X: Tensor, a: float, b: float, c: float, G: Tensor | None = None) -> Tensor:
    """One step in the arithmetic that its weight c asks for; G is X^H X in float64 where that is known."""
    double = double_precision(X.dtype)
    if c <= _CHOLESKY_WEIGHT:
        return _cholesky_step(X, a, b, c, gram(X) if G is None else G.to(X.dtype))
    if X.dtype == double or c > _DOUBLE_CHOLESKY_WEIGHT:
        return _qr_step(X, a, b, c)
    return _cholesky_step(X, a, b, c, gram(X, double) if G is None else G)


def _quintic_step(X: Tensor, G: Tensor) -> Tensor:
    """X (15 I - 10 G + 3 G^2) / 8 with G = X^H X: leaves 5/2 e^3 of a deviation e = |sigma - 1|."""
    a, b, c = QUINTIC[0]
    P = hermitian_product(G, G).mul_(c).add_(G, alpha=b)
    P.diagonal(dim1=-2, dim2=-1).add_(a)
    return product(X, P)


def orthonormalize(X: Tensor, lower: float, G: Tensor | None = None, *, extra_steps: int = 0) -> tuple[Tensor, int]:
    """The unitary factor of X (k, m, n) with singular values in about [lower, 1], and the number of steps.

    Halley steps until the quintic Newton-Schulz step reaches full accuracy, which is the last one and polishes.
    Singular values a little above 1 do no harm.

    Args:
        X: (k, m, n) in single or double precision.
        lower: lower bound on the singular values, in (0, 1).
        G: X^H X (k, n, n) in double precision, if known. It has to be that of X as it is: a rounded X will not do.
        extra_steps: for a `lower` that is an estimate: how many further quintic steps may follow as long as the
            singular values of an iterate turn out to be too far from 1. Reads a number back from the device.

    Source: Nakatsukasa, Bai, Gygi (2010), eq. (3.10); Higham (2008), problem 8.20 for the quintic.
    """
    eps = torch.finfo(X.dtype).eps
    near = (0.6 * eps) ** (1 / 3)
    weights = halley_weights(lower, near)
    for index, (a, b, c) in enumerate(weights):
        X = _halley_step(X, a, b, c, G if index == 0 else None)
    steps = len(weights)
    while True:
        G = gram(X)
        X = _quintic_step(X, G)
        steps += 1
        if steps > len(weights) + extra_steps:
            return X, steps
        G.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        if bool((largest_eigenvalue(G) <= 3.0 * near).all()):
            return X, steps


@register
@dataclass(frozen=True)
class QDWH(PolarMethod):
    """QR-based dynamically weighted Halley iteration, cubic convergence, backward stable.

    X <- X (a I + b X^H X) (I + c X^H X)^{-1} with weights from a lower bound on the smallest singular value. A tall
    matrix is reduced to a square one by a Householder QR factorization first, which makes every matrix with QR steps
    safe against graded rows. Steps of large weight go by QR for float64 input, and for float32 input by Cholesky in
    float64, which is as accurate and several times as fast.

    Args:
        max_steps: None runs to convergence (4 steps in float32, 6 in float64), the last a quintic Newton-Schulz step.
            A number stops after so many Halley steps and polishes by one cubic Newton-Schulz step, converged or not.
            Two in float32 are the setting of the PolarGrad paper's matrix experiments, and leave the singular values
            in about [0.73, 1].
        lower_bound: l0, lower bound on sigma_min / ||A||_2, where ||A||_2 is estimated when run to convergence and
            bounded by sqrt(||A||_1 ||A||_inf) with `max_steps`; None is eps of the working dtype. Singular values
            below it go to a value in [0, 1].

    Source: Nakatsukasa, Bai, Gygi, SIAM J. Matrix Anal. Appl. 31 (2010), eq. (3.10); Nakatsukasa and Higham (2013).
    """

    name: ClassVar[str] = "qdwh"
    max_steps: int | None = None
    lower_bound: float | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1 or None, got {self.max_steps}")
        if self.lower_bound is not None and not 0.0 < self.lower_bound < 1.0:
            raise ValueError(f"lower_bound must lie in (0, 1) or be None, got {self.lower_bound}")

    def with_max_steps(self, max_steps: int) -> QDWH:
        return replace(self, max_steps=max_steps)

    def iterate(self, X: Tensor) -> Iterate:
        eps = torch.finfo(X.dtype).eps
        lower = self.lower_bound or eps
        bound = norm_bound(X)
        Q = None
        if is_tall(X) or X.dtype == double_precision(X.dtype):
            # X = Q R has the factor Q times that of R. The rows of R are graded, for which Householder QR of
            # [sqrt(c) R; I] without row sorting is unstable (skewness 1e-12 for Hilbert matrices); columns are not.
            Q, R = torch.linalg.qr(X)
            X = R.mH
        if self.max_steps is None:
            # The bound can be n^(1/2) times the norm. An estimate from below with a margin keeps more of the small
            # singular values above `lower`; large ones may end a little above 1, where the iteration is harmless.
            bound = torch.minimum(bound, _NORM_MARGIN * spectral_norm(X))
            X, steps = orthonormalize(_scale(X, bound), lower)
        else:
            X = _scale(X, bound)
            weights = halley_weights(lower, 10 * eps)[: self.max_steps]
            for a, b, c in weights:
                X = _halley_step(X, a, b, c)
            X, steps = iterate_polynomials(X, CUBIC), len(weights)
        return Iterate(X if Q is None else product(Q, X.mH), steps)
