"""Newton-Schulz: odd matrix polynomials, nothing but matrix products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.coefficients import CUBIC, MUON_QUINTIC, Coefficients, schedule_for
from polargrad.linalg.method import Iterate, PolarMethod, register

__all__ = ["NewtonSchulz", "iterate_polynomials", "normalize_frobenius"]


def normalize_frobenius(X: Tensor) -> Tensor:
    """X / ||X||_F for each matrix of the batch (every singular value then lies in [0, 1]); zero stays zero."""
    norm = torch.linalg.matrix_norm(X, keepdim=True)
    return X / torch.where(norm > 0, norm, torch.ones_like(norm)).to(X.dtype)


def iterate_polynomials(X: Tensor, schedule: tuple[Coefficients, ...]) -> Tensor:
    """Apply p_k(X) = a_k X + X (b_k G + c_k G^2) with G = X^H X, for each row of the schedule.

    X is (k, m, n) with m >= n, singular values at most 1. Tall input keeps G small (n x n).
    """
    for a, b, c in schedule:
        G = X.mH @ X
        P = torch.baddbmm(G, G, G, beta=b, alpha=c) if c else b * G
        X = torch.baddbmm(X, X, P, beta=a)
    return X


@register
@dataclass(frozen=True)
class NewtonSchulz(PolarMethod):
    """Fixed-step polynomial iteration X <- a X + b X (X^H X) + c X (X^H X)^2 from X / ||X||_F.

    The default is Muon's: 5 quintic steps in bfloat16, which leave the singular values in about [0.7, 1.2].
    `NewtonSchulz.cubic()` is the classical convergent one.

    Args:
        coefficients: rows (a, b, c), one per step; the last row repeats.
        max_steps: number of steps.
        dtype: "bfloat16" (Muon), "float16", or None for the working dtype of the input.

    Source: Jordan et al., Muon (2024); Higham, Functions of Matrices, section 8.3.
    """

    name: ClassVar[str] = "newton-schulz"
    coefficients: tuple[Coefficients, ...] = MUON_QUINTIC
    max_steps: int = 5
    dtype: str | None = "bfloat16"

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.dtype not in (None, "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'bfloat16', 'float16' or None, got {self.dtype!r}")
        if not self.coefficients or any(len(row) != 3 for row in self.coefficients):
            raise ValueError("coefficients must be a non-empty tuple of rows (a, b, c)")

    @classmethod
    def cubic(cls, max_steps: int = 30) -> NewtonSchulz:
        """The cubic (1.5, -0.5), in the working dtype: slow from small singular values, quadratic near 1."""
        return cls(coefficients=CUBIC, max_steps=max_steps, dtype=None)

    def with_max_steps(self, max_steps: int) -> NewtonSchulz:
        return replace(self, max_steps=max_steps)

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if self.dtype is None or dtype.is_complex:
            return super().working_dtype(dtype)
        return getattr(torch, self.dtype)

    def iterate(self, X: Tensor) -> Iterate:
        schedule = schedule_for(self.coefficients, self.max_steps)
        return Iterate(iterate_polynomials(normalize_frobenius(X), schedule), steps=self.max_steps)
