"""Multi-response ridge regression: strongly convex, with a condition number of one's choice."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from polargrad.lab.matrix.configurations import tuned
from polargrad.lab.matrix.problem import (
    Matrices,
    Problem,
    check_shapes,
    check_sizes,
    generator,
    normal_smoothness,
    register,
    uniform,
)
from polargrad.lab.options import check_value


@register
class MultiResponseRegression(Problem):
    """f(X) = 1/(2N) ||A X - Y||_F^2 + ridge/2 ||X||_F^2.

    grad f = A^T (A X - Y) / N + ridge X;  L and mu are the extreme eigenvalues of A^T A / N + ridge I.

    Args:
        A: (N, m), one row for each observation.
        Y: (N, q), its responses.
        X: (m, q), the initial point.
        ridge: at least 0.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, NaN or infinity, a negative ridge.

    Example:
        >>> problem = MultiResponseRegression(torch.eye(2), torch.ones(2, 1), torch.zeros(2, 1), ridge=0.5)
        >>> problem.smoothness, problem.strong_convexity, problem.minimum
        (1.0, 1.0, 0.25)
    """

    kind: ClassVar[str] = "regression"
    small: ClassVar = {"rows": 80, "features": 20, "responses": 8}
    experiment: ClassVar = tuned(
        "Multi-response regression",
        "f(X) = ‖A X − Y‖² / 2N",
        500,
        {
            "polargrad": 2.5,
            "polargradm": 20.0,
            "muon-ns": 0.1,
            "muon-ns-decay": (0.8, 0.7),
            "adam": 0.08,
            "adam-decay": (0.4, 0.9),
            "gd": 1.28,
            "newton": 0.25,
        },
    )

    def __init__(self, A: Tensor, Y: Tensor, X: Tensor, *, ridge: float = 0.0) -> None:
        check_shapes(A=(A, "N m"), Y=(Y, "N q"), X=(X, "m q"))
        super().__init__({"X": X})
        check_value("ridge", ridge, float, {"least": 0})
        self.A, self.Y, self.ridge = A, Y, ridge

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        rows: int = 1000,
        features: int = 200,
        responses: int = 50,
        condition: float = 100.0,
        noise: float = 0.1,
        ridge: float = 0.0,
    ) -> Self:
        """Normal features whose columns are scaled from 1 down to condition^(-1/2), normal weights, normal noise.

        Raises:
            ValueError: sizes below 1, a condition below 1, negative noise or ridge.
        """
        check_sizes(rows=rows, features=features, responses=responses)
        check_value("condition", condition, float, {"least": 1})
        check_value("noise", noise, float, {"least": 0})
        data = generator(seed)
        A = torch.randn(rows, features, generator=data) * torch.logspace(0.0, -0.5 * math.log10(condition), features)
        W = torch.randn(features, responses, generator=data)
        Y = A @ W + noise * torch.randn(rows, responses, generator=data)
        return cls(A, Y, uniform(features, responses, draw=generator(seed)), ridge=ridge)

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L = lambda_max(A^T A / N) + ridge; the columns that are scaled near 1 count."""
        effective = sum(sizes.condition ** (-j / sizes.features) for j in range(sizes.features))
        L = normal_smoothness(max(1, round(effective)), sizes.rows) + sizes.ridge
        return L, min(sizes.features, sizes.responses)

    def value(self, point: Matrices) -> Tensor:
        """1/(2N) ||A X - Y||_F^2 + ridge/2 ||X||_F^2."""
        fit = 0.5 * self.residual(point).square().sum() / self.A.shape[0]
        return fit + 0.5 * self.ridge * point["X"].square().sum() if self.ridge else fit

    def residual(self, point: Matrices) -> Tensor:
        """A X - Y, (N, q)."""
        return torch.addmm(self.Y, self.A, point["X"], beta=-1.0)

    @cached_property
    def hessian(self) -> Tensor:
        """A^T A / N + ridge I, (m, m), float64: the Hessian of each column of X."""
        A = self.A.double()
        H = A.mT @ A / A.shape[0]
        H.diagonal().add_(self.ridge)
        return H

    @cached_property
    def solution(self) -> Tensor:
        """X*, the minimizer (of least norm, if there are several), float64 (m, q)."""
        A, Y = self.A.double(), self.Y.double()
        if not self.ridge:
            return torch.linalg.pinv(A) @ Y
        return torch.linalg.solve(self.hessian, A.mT @ Y / A.shape[0])

    @cached_property
    def minimum(self) -> float:
        """f(X*)."""
        return float(self.float64.value({"X": self.solution}))

    def gap(self, point: Matrices) -> float:
        """f(X) - f* = 1/2 <D, H D> with D = X - X*, free of cancellation."""
        D = point["X"].detach().double() - self.solution
        return 0.5 * float((D * (self.hessian @ D)).sum())

    @cached_property
    def _spectrum(self) -> Tensor:
        """Eigenvalues of the Hessian, ascending."""
        return torch.linalg.eigvalsh(self.hessian)

    @cached_property
    def smoothness(self) -> float:
        """The Hessian's largest eigenvalue."""
        return float(self._spectrum[-1])

    @cached_property
    def strong_convexity(self) -> float:
        """The Hessian's smallest eigenvalue; 0 with fewer rows than features and no ridge."""
        if not self.ridge and self.A.shape[0] < self.A.shape[1]:
            return 0.0
        return max(0.0, float(self._spectrum[0]))

    def newton_direction(self, name: str, G: Tensor, point: Matrices) -> Tensor:
        """H^{-1} G."""
        if not self.strong_convexity:
            raise ValueError(
                "Newton's direction needs a Hessian of full rank; give a ridge, or more rows than features"
            )
        return torch.linalg.solve(self.hessian, G.double()).to(G.dtype)
