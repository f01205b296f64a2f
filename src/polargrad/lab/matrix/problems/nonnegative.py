"""Nonnegative matrix factorization, by projection or by a softplus."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from polargrad.lab.matrix.problems.base import (
    Point,
    Problem,
    check_matrix,
    check_product,
    check_rank,
    check_sizes,
    generator,
)

CONSTRAINTS = ("projected", "softplus")


class NonnegativeFactorization(Problem):
    """f(X, Y) = ||X Y^T - M||_F^2 / (p q) with X, Y >= 0, not convex.

    "projected": X and Y are the parameters, and `project` clamps them at 0 after each step. "softplus": the parameters
    are free, and X = softplus of them.

    Args:
        M: (p, q), nonnegative.
        X: (p, r), the initial parameters; nonnegative if projected.
        Y: (q, r), the initial parameters; nonnegative if projected.
        constraint: "projected" or "softplus".
        exact: whether a fit without error exists, so that f* = 0; else f* counts as unknown.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, negative entries, NaN or infinity, another constraint.

    Example:
        >>> problem = NonnegativeFactorization.draw(0, rows=6, columns=5, rank=2)
        >>> bool((problem.factors(problem.start)["X"] >= 0).all())
        True
    """

    name: ClassVar[str] = "nonnegative"

    def __init__(self, M: Tensor, X: Tensor, Y: Tensor, *, constraint: str = "projected", exact: bool = False) -> None:
        check_matrix("M", M)
        super().__init__({"X": X, "Y": Y})
        check_rank(X.shape[1], *M.shape)
        check_product(X=(X, (M.shape[0], None)), Y=(Y, (M.shape[1], X.shape[1])))
        if constraint not in CONSTRAINTS:
            raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got {constraint!r}")
        for name, value in {"M": M, **(self.start if constraint == "projected" else {})}.items():
            if bool((value < 0).any()):
                raise ValueError(f"{name} has negative entries, so that no nonnegative factors fit it; remove them")
        self.M, self.constraint = M, constraint
        self.constrained = constraint == "projected"
        self._minimum = 0.0 if exact else None

    @classmethod
    def draw(
        cls, seed: int, *, rows: int = 200, columns: int = 100, rank: int = 10, constraint: str = "projected"
    ) -> Self:
        """M = U V^T with U, V uniform on (0, 1), from factors uniform on (0, 1) (softplus: on (-1, 1))."""
        check_sizes(rows=rows, columns=columns)
        check_rank(rank, rows, columns)
        data = generator(seed)
        U, V = torch.rand(rows, rank, generator=data), torch.rand(columns, rank, generator=data)
        X, Y = torch.rand(rows, rank, generator=data), torch.rand(columns, rank, generator=data)
        if constraint == "softplus":
            X, Y = 2.0 * X - 1.0, 2.0 * Y - 1.0
        return cls(U @ V.mT, X, Y, constraint=constraint, exact=True)

    def factors(self, point: Point) -> dict[str, Tensor]:
        """The nonnegative X and Y that the parameters stand for."""
        return {key: F.softplus(value) if self.constraint == "softplus" else value for key, value in point.items()}

    def value(self, point: Point) -> Tensor:
        """The mean squared error."""
        return self.residual(point).square().mean()

    def residual(self, point: Point) -> Tensor:
        """X Y^T - M, (p, q)."""
        factors = self.factors(point)
        return torch.addmm(self.M, factors["X"], factors["Y"].mT, beta=-1.0)

    def multiplicative_direction(self, name: str, G: Tensor, point: Point) -> Tensor:
        """The gradient G entry by entry times X / P, with P = 2/(p q) X Y^T Y its nonnegative part; Y alike."""
        mine = point[name].detach()
        other = point["Y" if name == "X" else "X"].detach()
        P = (2.0 / self.M.numel()) * (mine @ (other.mT @ other))
        return mine / P.clamp_min(torch.finfo(P.dtype).tiny) * G

    @cached_property
    def minimum(self) -> float | None:
        """0 if a fit without error exists, else unknown."""
        return self._minimum

    def project(self, parameters: Point) -> None:
        """Clamp at 0, if that is the constraint."""
        if self.constraint == "projected":
            with torch.no_grad():
                for value in parameters.values():
                    value.clamp_(min=0.0)
