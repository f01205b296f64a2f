"""Polar Express: a different minimax polynomial at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.coefficients import POLAR_EXPRESS, POLAR_EXPRESS_SAFETY, schedule_for
from polargrad.linalg.method import Iterate, PolarMethod, register
from polargrad.linalg.newton_schulz import iterate_polynomials, normalize_frobenius

__all__ = ["PolarExpress"]


@register
@dataclass(frozen=True)
class PolarExpress(PolarMethod):
    """Composition of minimax quintics for singular values in [1e-3, 1] relative to the Frobenius norm.

    Each polynomial but the last carries the safety factor 1.01: p(x) becomes p(x / 1.01), against rounding above 1.

    Args:
        max_steps: number of steps (5 for Muon-like accuracy, 8 for about 1e-3 in float32).
        dtype: "bfloat16", "float16", or None for the working dtype of the input.

    Source: Amsel, Persson, Musco, Gower, arXiv 2505.16932, Algorithm 1.
    """

    name: ClassVar[str] = "polar-express"
    max_steps: int = 8
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.dtype not in (None, "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'bfloat16', 'float16' or None, got {self.dtype!r}")

    def with_max_steps(self, max_steps: int) -> PolarExpress:
        return replace(self, max_steps=max_steps)

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if self.dtype is None or dtype.is_complex:
            return super().working_dtype(dtype)
        return getattr(torch, self.dtype)

    def iterate(self, X: Tensor) -> Iterate:
        s = POLAR_EXPRESS_SAFETY
        *rows, last = schedule_for(POLAR_EXPRESS, self.max_steps)
        schedule = (*((a / s, b / s**3, c / s**5) for a, b, c in rows), last)
        return Iterate(iterate_polynomials(normalize_frobenius(X), schedule), steps=self.max_steps)
