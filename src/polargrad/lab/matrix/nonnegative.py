"""Nonnegative matrix factorization, by projection or by a softplus."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from polargrad.lab.matrix.configurations import tuned
from polargrad.lab.matrix.factorization import Factorization
from polargrad.lab.matrix.problem import Matrices, check_rank, check_sizes, generator, register


@register
class NonnegativeFactorization(Factorization):
    """f(X, Y) = ||X Y^T - M||_F^2 / (p q) with X, Y >= 0, not convex; `project` clamps X and Y at 0 after each step.

    Args:
        M: (p, q), nonnegative.
        X: (p, r), the initial parameters, nonnegative.
        Y: (q, r), the initial parameters, nonnegative.
        exact: whether a fit without error exists, so that f* = 0; else f* counts as unknown.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, negative entries, NaN or infinity.

    Example:
        >>> problem = NonnegativeFactorization.draw(0, rows=6, columns=5, rank=2)
        >>> bool((problem.factors(problem.start)["X"] >= 0).all())
        True
    """

    kind: ClassVar[str] = "nonnegative"
    metric_label: ClassVar[str] = "mean squared error"
    constrained: ClassVar[bool] = True
    small: ClassVar = {"rows": 30, "columns": 20, "rank": 3}
    experiment: ClassVar = tuned(
        "Nonnegative matrix factorization, projected",
        "f(X, Y) = ‖X Yᵀ − M‖² / pq, X, Y ≥ 0",
        1000,
        {
            "polargrad": 1.5,
            "polargradm": 6.0,
            "muon-ns": 0.1,
            "muon-ns-decay": (0.2, 0.7),
            "adam": 0.16,
            "adam-decay": (0.2, 0.9),
            "projected-gd": 1.5,
            "multiplicative": 1.0,
        },
    )

    def __init__(self, M: Tensor, X: Tensor, Y: Tensor, *, exact: bool = False) -> None:
        super().__init__(M, X, Y, exact=exact)
        for name, value in {"M": M, **(self.start if self.constrained else {})}.items():
            if bool((value < 0).any()):
                raise ValueError(f"{name} has negative entries, so that no nonnegative factors fit it; remove them")

    @classmethod
    def draw(cls, seed: int, *, rows: int = 200, columns: int = 100, rank: int = 10) -> Self:
        """M = U V^T with U, V uniform on (0, 1), from factors uniform on (0, 1) (softplus: on (-1, 1))."""
        check_sizes(rows=rows, columns=columns)
        check_rank(rank, rows, columns)
        data = generator(seed)
        U, V = torch.rand(rows, rank, generator=data), torch.rand(columns, rank, generator=data)
        X, Y = torch.rand(rows, rank, generator=data), torch.rand(columns, rank, generator=data)
        if not cls.constrained:
            X, Y = 2.0 * X - 1.0, 2.0 * Y - 1.0
        return cls(U @ V.mT, X, Y, exact=True)

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L = 2 sigma_1(M) / (p q), with sigma_1 about r sqrt(p q) / 4 for uniform factors."""
        return sizes.rank / (2.0 * math.sqrt(sizes.rows * sizes.columns)), sizes.rank

    def factors(self, point: Matrices) -> Matrices:
        """The nonnegative X and Y that the parameters stand for."""
        return point

    def value(self, point: Matrices) -> Tensor:
        """The mean squared error."""
        return self.residual(point).square().mean()

    def residual(self, point: Matrices) -> Tensor:
        """X Y^T - M, (p, q), of the nonnegative factors."""
        return super().residual(self.factors(point))

    def multiplicative_direction(self, name: str, G: Tensor, point: Matrices) -> Tensor:
        """The gradient G entry by entry times X / P, with P = 2/(p q) X Y^T Y its nonnegative part; Y alike."""
        if not self.constrained:
            return super().multiplicative_direction(name, G, point)
        this = point[name].detach()
        other = point["Y" if name == "X" else "X"].detach()
        P = (2.0 / self.M.numel()) * (this @ (other.mT @ other))
        return this / P.clamp_min(torch.finfo(P.dtype).tiny) * G

    def project(self, parameters: Matrices) -> None:
        """Clamp at 0."""
        with torch.no_grad():
            for value in parameters.values():
                value.clamp_(min=0.0)


@register
class SoftplusFactorization(NonnegativeFactorization):
    """f(X, Y) = ||X Y^T - M||_F^2 / (p q) with X and Y the softplus of free parameters, so that nothing is projected.

    Args:
        M: (p, q), nonnegative.
        X: (p, r), the initial parameters.
        Y: (q, r), the initial parameters.
        exact: whether a fit without error exists, so that f* = 0; else f* counts as unknown.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, negative entries in M, NaN or infinity.
    """

    kind: ClassVar[str] = "nonnegative-softplus"
    constrained: ClassVar[bool] = False
    experiment: ClassVar = tuned(
        "Nonnegative matrix factorization, softplus",
        "f(X, Y) = ‖softplus(X) softplus(Y)ᵀ − M‖² / pq",
        1000,
        {
            "polargrad": 3.0,
            "polargradm": 3.0,
            "muon-ns": 0.1,
            "muon-ns-decay": (0.4, 0.9),
            "adam": 0.64,
            "adam-decay": (0.4, 0.9),
            "gd": 6.0,
        },
    )

    def factors(self, point: Matrices) -> Matrices:
        """The softplus of the parameters."""
        return {key: F.softplus(value) for key, value in point.items()}

    def project(self, parameters: Matrices) -> None:
        """Do nothing: the parameters are free."""
