"""QDWH: the dynamically weighted Halley iteration, by QR while the weight is large and then by Cholesky."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.coefficients import CUBIC
from polargrad.linalg.method import Iterate, PolarMethod, register
from polargrad.linalg.newton_schulz import iterate_polynomials

__all__ = ["QDWH", "halley_weights"]

# Above this weight c the Cholesky factor of I + c X^H X loses accuracy and the QR form is used (Nakatsukasa and Higham
# 2013, section 5.4).
_CHOLESKY_WEIGHT = 100.0


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


def _normalize(X: Tensor) -> Tensor:
    """X / sqrt(||X||_1 ||X||_inf), which bounds the largest singular value, for each matrix; zero stays zero."""
    size = X.abs()
    bound = (size.sum(-2).amax(-1) * size.sum(-1).amax(-1)).sqrt()[:, None, None]
    return X / torch.where(bound > 0, bound, torch.ones_like(bound)).to(X.dtype)


def _qr_step(X: Tensor, a: float, b: float, c: float) -> Tensor:
    """[sqrt(c) X; I] = [Q1; Q2] R;  X <- (b/c) X + (a - b/c) / sqrt(c) Q1 Q2^H."""
    k, m, n = X.shape
    eye = torch.eye(n, dtype=X.dtype, device=X.device).expand(k, n, n)
    Q, _ = torch.linalg.qr(torch.cat([math.sqrt(c) * X, eye], dim=-2))
    return (b / c) * X + ((a - b / c) / math.sqrt(c)) * (Q[..., :m, :] @ Q[..., m:, :].mH)


def _cholesky_step(X: Tensor, a: float, b: float, c: float) -> Tensor:
    """Z = I + c X^H X = W^H W;  X <- (b/c) X + (a - b/c) X W^{-1} W^{-H}."""
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    L, _ = torch.linalg.cholesky_ex(eye + c * (X.mH @ X))
    Y = torch.cholesky_solve(X.mH, L).mH
    return (b / c) * X + (a - b / c) * Y


@register
@dataclass(frozen=True)
class QDWH(PolarMethod):
    """QR-based dynamically weighted Halley iteration, cubic convergence, backward stable.

    X <- X (a I + b X^H X) (I + c X^H X)^{-1} with weights from a lower bound on the smallest singular value.

    Args:
        max_steps: None runs to convergence (5 steps in float32, 6 in float64); a number stops after so many. Two in
            float32 are the setting of the PolarGrad paper's matrix experiments, and leave the singular values in about
            [0.73, 1]. One cubic Newton-Schulz step polishes the last iterate either way.
        lower_bound: l0, lower bound on sigma_min / sqrt(||A||_1 ||A||_inf); None is eps of the working dtype. Singular
            values below it go to a value in [0, 1].

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
        weights = halley_weights(self.lower_bound or eps, 10 * eps)[: self.max_steps]
        X = _normalize(X)
        for a, b, c in weights:
            step = _qr_step if c > _CHOLESKY_WEIGHT else _cholesky_step
            X = step(X, a, b, c)
        return Iterate(iterate_polynomials(X, CUBIC), steps=len(weights))
