"""Orthogonal Procrustes: the problem that a polar factor solves."""

from __future__ import annotations

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
)


@register
class OrthogonalProcrustes(Problem):
    """f(X) = 1/2 ||A X - B||_F^2 over orthogonal X: X* is the polar factor of A^T B.

    f* = (||A||_F^2 + ||B||_F^2) / 2 - ||A^T B||_nuc. `project` takes the polar factor after each step.

    Args:
        A: (p, n).
        B: (p, n).
        X: (n, n), the initial point, orthogonal.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, NaN or infinity, an X that is not orthogonal.

    Example:
        >>> problem = OrthogonalProcrustes(torch.eye(2), torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        >>> round(problem.gap(problem.start), 6)
        2.0

    Source: Higham, Functions of Matrices (2008), section 8.6 and theorem 8.4.
    """

    kind: ClassVar[str] = "procrustes"
    constrained: ClassVar[bool] = True
    small: ClassVar = {"rows": 30, "n": 6}
    experiment: ClassVar = tuned(
        "Orthogonal Procrustes",
        "f(X) = ½ ‖A X − B‖², XᵀX = I by projection",
        500,
        {
            "polargrad": 1.6,
            "polargradm": 3.2,
            "muon-ns": 0.1,
            "muon-ns-decay": (0.4, 0.7),
            "adam": 0.04,
            "adam-decay": (1.6, 0.8),
            "projected-gd": 0.96,
        },
        notes=(
            "The minimum is one polar factor away, that of AᵀB. Projected steps along a polar factor or along signs "
            "have fixed points that are not minima: U may be normal to the orthogonal matrices where G is not.",
        ),
    )

    def __init__(self, A: Tensor, B: Tensor, X: Tensor) -> None:
        check_shapes(A=(A, "p n"), B=(B, "p n"), X=(X, "n n"))
        super().__init__({"X": X})
        n = A.shape[1]
        defect = float((X.mT @ X - torch.eye(n, dtype=X.dtype)).abs().max())
        if defect > 100.0 * n * torch.finfo(X.dtype).eps:
            raise ValueError(f"X is not orthogonal, X^T X differs from I by {defect:.2g}; take its polar factor")
        self.A, self.B = A, B

    @classmethod
    def draw(cls, seed: int, *, rows: int = 200, n: int = 50, noise: float = 0.1) -> Self:
        """A normal, B = A Q + noise with a random orthogonal Q; X a random orthogonal matrix in Q's component."""
        check_sizes(rows=rows, n=n)
        data = generator(seed)
        A = torch.randn(rows, n, generator=data)
        Q, X = (torch.linalg.qr(torch.randn(n, n, generator=data).double()).Q for _ in range(2))
        if torch.linalg.det(Q) * torch.linalg.det(X) < 0:
            X[:, 0] *= -1.0  # rotations cannot reach a reflection by small steps
        B = A @ Q.float() + noise * torch.randn(rows, n, generator=data)
        return cls(A, B, X.float())

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L = sigma_max(A)^2."""
        return sizes.rows * normal_smoothness(sizes.n, sizes.rows), sizes.n

    def value(self, point: Matrices) -> Tensor:
        """1/2 ||A X - B||_F^2."""
        return 0.5 * self.residual(point).square().sum()

    def residual(self, point: Matrices) -> Tensor:
        """A X - B, (p, n)."""
        return torch.addmm(self.B, self.A, point["X"], beta=-1.0)

    @cached_property
    def minimum(self) -> float:
        """(||A||_F^2 + ||B||_F^2) / 2 - ||A^T B||_nuc, over orthogonal X."""
        A, B = self.A.double(), self.B.double()
        nuclear = torch.linalg.svdvals(A.mT @ B).sum()
        return float(0.5 * (A.square().sum() + B.square().sum()) - nuclear)

    @cached_property
    def solution(self) -> Tensor:
        """X*, the polar factor of A^T B, float64 (n, n)."""
        return _nearest_orthogonal(self.A.double().mT @ self.B.double())

    @cached_property
    def smoothness(self) -> float:
        """sigma_max(A)^2, of f over all matrices."""
        return float(torch.linalg.matrix_norm(self.A.double(), 2)) ** 2

    def project(self, parameters: Matrices) -> None:
        """The nearest orthogonal matrix."""
        with torch.no_grad():
            parameters["X"].copy_(_nearest_orthogonal(parameters["X"]))


def _nearest_orthogonal(M: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(M)
    return U @ Vh
