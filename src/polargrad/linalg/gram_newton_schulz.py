"""Gram Newton-Schulz: the polynomials are iterated on the small Gram matrix, and A is touched a few times only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.coefficients import MUON_QUINTIC, Coefficients, check_coefficients, schedule_for
from polargrad.linalg.kernels import gram, hermitian_product, product
from polargrad.linalg.method import IterationResult, register
from polargrad.linalg.minimax import composition, with_safety
from polargrad.linalg.newton_schulz import PolynomialMethod

__all__ = ["GramNewtonSchulz"]

# Steps between restarts, in half precision and otherwise. Rounding can turn the small eigenvalues of R negative, and
# the later steps then multiply them by the squares of the slopes at zero. These spans keep the singular values of
# every matrix of our gallery within 0.02 of those of plain Newton-Schulz.
_SPAN_HALF, _SPAN = 2, 3


def _axpy_product(a: float, A: Tensor, Z: Tensor) -> Tensor:
    """The Hermitian a A + A Z for commuting Hermitian A and Z."""
    return hermitian_product(A, Z, A, beta=a)


def _segment(X: Tensor, rows: tuple[Coefficients, ...]) -> Tensor:
    """X Q with Q = p_1(R) p_2(R_2) ..., R = X^H X, where p_i(R) = a I + Z, Z = b R + c R^2 and R_{i+1} = p_i R_i p_i.

    a is kept apart from Z, which is small beside it where that matters: in half precision their sum would lose Z.
    """
    R, Q = gram(X), None
    for i, (a, b, c) in enumerate(rows):
        Z = hermitian_product(R, R, R, beta=b, alpha=c) if c else b * R
        if Q is None:
            Q = Z.clone()
            Q.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            Q = _axpy_product(a, Q, Z)
        if i + 1 < len(rows):
            R = _axpy_product(a, _axpy_product(a, R, Z), Z)
    return X if Q is None else product(X, Q)


@register
@dataclass(frozen=True)
class GramNewtonSchulz(PolynomialMethod):
    """The polynomials of Newton-Schulz applied through R = X^H X: U = X p_1(R_1) p_2(R_2) ..., R_{i+1} = p_i R_i p_i.

    In exact arithmetic the same factor as `NewtonSchulz` with the same rows. A step costs products of n x n matrices
    alone, half the work at m = 4 n. Since rounding in R is blown up by the later steps, X Q replaces X and R is formed
    anew at every restart. A matrix with m < 1.5 n gains nothing.

    Args:
        coefficients: rows (a, b, c), one per step; the last row repeats.
        max_steps: number of steps.
        restarts: after which steps to restart, ascending; None is after every second in half precision and after every
            third otherwise. () is none, which in half precision fails for all but well-conditioned matrices.
        dtype: "fast" (bfloat16 where the device multiplies that fast, else float32), "bfloat16", "float16", or None for
            the working dtype of the input.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> import torch
        >>> method = GramNewtonSchulz.polar_express(max_steps=8)
        >>> U = method.iterate(torch.tensor([[[3.0, 0.0], [0.0, -2.0], [0.0, 0.0], [0.0, 0.0]]])).unitary
        >>> (U[0, :2].round(decimals=4) + 0.0).tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: the Gram form of Newton-Schulz, Dao AI Lab (2026); Higham, Functions of Matrices (2008), section 8.3, for
        the coupled iteration behind it.
    """

    name: ClassVar[str] = "gram-newton-schulz"
    peak_memory: ClassVar[float] = 7.0
    coefficients: tuple[Coefficients, ...] = MUON_QUINTIC
    max_steps: int = 5
    restarts: tuple[int, ...] | None = None
    dtype: str | None = "fast"

    def __post_init__(self) -> None:
        self._check_steps_and_dtype(self.max_steps)
        check_coefficients(self.coefficients)
        ends = (0, *(self.restarts or ()))
        if not all(isinstance(end, int) and previous < end for previous, end in pairwise(ends)):
            raise ValueError(
                f"restarts must be ascending step numbers from 1 on, such as (3,), or None; got {self.restarts!r}"
            )

    @classmethod
    def polar_express(
        cls, lower_bound: float = 1e-3, max_steps: int = 8, *, safety: float = 1.01, dtype: str | None = None
    ) -> GramNewtonSchulz:
        """The Polar Express schedule for singular values in [lower_bound, 1], in the working dtype of the input.

        Its polynomials diverge soon above their interval, and rounding of a bfloat16 Gram matrix overshoots it by more
        than the safety: float16 or wider.
        """
        return cls(with_safety(composition(lower_bound, max_steps), safety), max_steps, dtype=dtype)

    def schedule(self, dtype: torch.dtype) -> tuple[Coefficients, ...]:
        return schedule_for(self.coefficients, self.max_steps)

    def apply_schedule(self, X: Tensor) -> IterationResult:
        rows, cuts = self.schedule(X.dtype), self._cuts(X.dtype)
        for start, end in pairwise(cuts):
            X = _segment(X, rows[start:end])
        return IterationResult(X, steps=self.max_steps)

    def _cuts(self, dtype: torch.dtype) -> list[int]:
        """The steps at which the segments start, and the number of steps."""
        span = _SPAN_HALF if torch.finfo(dtype).bits == 16 else _SPAN
        restarts = range(span, self.max_steps, span) if self.restarts is None else self.restarts
        return [0, *(step for step in restarts if step < self.max_steps), self.max_steps]

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Two products with X for every segment, and up to four of n x n matrices for every step."""
        work = self.working_dtype(dtype)
        rows, small = self.schedule(work), 0
        for start, end in pairwise(cuts := self._cuts(work)):
            small += sum(1 for _, _, c in rows[start:end] if c) + 3 * (end - start - 1)
        return (len(cuts) - 1) * operations.polynomial(m, n, quintic=False) + small * operations.product(n, n)
