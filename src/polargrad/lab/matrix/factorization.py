"""Factorizations X Y^T of a matrix: what completion and nonnegative factorization share."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.lab.matrix.problem import Matrices, Problem, check_rank, check_shapes


class Factorization(Problem):
    """A problem in X (p, r) and Y (q, r) whose product X Y^T is to be near M (p, q); not convex.

    Args:
        M: (p, q).
        X: (p, r), the initial point.
        Y: (q, r), the initial point.
        exact: whether a fit without error exists, so that f* = 0; else f* counts as unknown.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, a rank above a dimension, NaN or infinity.
    """

    matrices: ClassVar[tuple[str, ...]] = ("X", "Y")

    def __init__(self, M: Tensor, X: Tensor, Y: Tensor, *, exact: bool) -> None:
        check_shapes(M=(M, "p q"), X=(X, "p r"), Y=(Y, "q r"))
        super().__init__({"X": X, "Y": Y})
        check_rank(X.shape[1], *M.shape)
        self.M = M
        self._minimum = 0.0 if exact else None

    def residual(self, point: Matrices) -> Tensor:
        """X Y^T - M, (p, q)."""
        return torch.addmm(self.M, point["X"], point["Y"].mT, beta=-1.0)

    @cached_property
    def minimum(self) -> float | None:
        """0 if a fit without error exists, else unknown."""
        return self._minimum
