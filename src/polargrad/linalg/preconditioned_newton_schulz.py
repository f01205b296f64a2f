"""Preconditioned Newton-Schulz: grow the small singular values first, then converge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from polargrad.linalg.coefficients import CUBIC, Coefficients, map_interval
from polargrad.linalg.method import check_lower_bound, register
from polargrad.linalg.newton_schulz import PolynomialMethod

__all__ = ["PreconditionedNewtonSchulz", "growth_polynomial"]


def growth_polynomial(threshold: float) -> Coefficients:
    """g(x) = a x - (4/27) a^3 x^3 with a = (3/2) sqrt(3) - threshold: steep at zero, and at most 1 on [0, 1].

    The maximum is 1 whatever a is, at x = 3 / (2 a); at a = (3/2) sqrt(3) the value at 1 would be zero, with the
    threshold it is about twice the threshold, so that no singular value falls back below it.

    Example:
        >>> a, b, _ = growth_polynomial(0.1)
        >>> round(a, 4), round(a + b, 4)
        (2.4981, 0.1886)

    Source: Lewis et al., PNAS 119 (2022), supporting information on the polar decomposition.
    """
    a = 1.5 * math.sqrt(3.0) - threshold
    return (a, -(4.0 / 27.0) * a**3, 0.0)


@register
@dataclass(frozen=True)
class PreconditionedNewtonSchulz(PolynomialMethod):
    """X <- g(X) until the singular values are above `threshold`, then the cubic X <- 1.5 X - 0.5 X X^H X.

    The growth phase multiplies small singular values by 2.5 a step, where the cubic makes 1.5 of them; both phases are
    products alone and keep every singular value at most 1. Both lengths follow from `lower_bound` before the run.

    Args:
        max_steps: None runs to convergence (25 steps in float32, 48 in float64, at the default bound); a number stops
            after so many.
        lower_bound: lower bound on sigma_min / ||A||_F, in (0, 1); None is eps of the working dtype. Singular values
            below it end in [0, 1].
        threshold: where the cubic takes over, in [0.01, 0.3].
        dtype: "bfloat16", "float16", or None for the working dtype of the input.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> import torch
        >>> U = PreconditionedNewtonSchulz().iterate(torch.diag(torch.tensor([1.0, -1e-4]))[None]).unitary
        >>> U[0].round(decimals=5).tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: Lewis, Beall, Ganahl, Hauru, Mallick, Vidal, Large-scale distributed linear algebra with tensor processing
        units, PNAS 119 (2022).
    """

    name: ClassVar[str] = "precond-newton-schulz"
    max_steps: int | None = None
    lower_bound: float | None = None
    threshold: float = 0.1
    dtype: str | None = None

    def __post_init__(self) -> None:
        self._check_steps_and_dtype(self.max_steps)
        if self.lower_bound is not None:
            check_lower_bound(self.lower_bound)
        if not 0.01 <= self.threshold <= 0.3:
            raise ValueError(f"threshold must lie in [0.01, 0.3], got {self.threshold!r}")

    def sigma_floor(self, dtype: torch.dtype) -> float:
        return self.lower_bound or torch.finfo(dtype).eps

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        return map_interval(self.schedule(dtype), self.sigma_floor(dtype))

    def schedule(self, dtype: torch.dtype) -> tuple[Coefficients, ...]:
        low, eps = self.sigma_floor(dtype), torch.finfo(dtype).eps
        growth = growth_polynomial(self.threshold)
        rows: list[Coefficients] = []
        while 1.0 - low > eps / 2 and len(rows) != self.max_steps:
            row = growth if low < self.threshold else CUBIC[0]
            rows.append(row)
            low, _ = map_interval((row,), low)
        return tuple(rows)
