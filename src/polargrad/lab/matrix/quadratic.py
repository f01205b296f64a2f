"""Matrix quadratic regression, section 6.1 of the paper: strongly convex, with a Hessian that is known."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polargrad.lab.matrix.configurations import STOPPED_EARLY, Experiment, configurations
from polargrad.lab.matrix.problem import Matrices, Problem, check_shapes, normal_curvature, normal_matrices, register

_PAPER = {
    "polargrad": 4e-8,
    "polargrad-decay": 4.75e-8,
    "polargrad-zolo": 3e-8,
    "muon-ns": 0.1,
    "muon-qdwh": 0.1,
    "muon-qdwh-decay": 0.05,
    "muon-zolo": 0.1,
    "adam": 0.05,
    "adam-decay": 0.05,
    "newton": 0.25,
    "polar-first": 4e-7,
    "polar-first-decay": 5e-7,
    "momentum-first": 2e-7,
    "momentum-first-decay": 2.5e-7,
}
_EXACT = {
    **_PAPER,
    "polargrad": 3e-8,
    "polargrad-decay": 3.25e-8,
    "polar-first": 3e-7,
    "polar-first-decay": 3.75e-7,
    "momentum-first": 1.5e-7,
    "momentum-first-decay": 1.9e-7,
}


@register
class MatrixQuadratic(Problem):
    """f(X) = 1/2 ||A X B - C||_F^2.

    grad f = A^T (A X B - C) B^T;  Hessian (B B^T) kron (A^T A);  kappa_H = kappa(A)^2 kappa(B)^2.

    Args:
        A: (p, m).
        B: (n, q).
        C: (p, q).
        X: (m, n), the initial point.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, NaN or infinity.

    Example:
        >>> problem = MatrixQuadratic(torch.eye(2), torch.eye(2), torch.ones(2, 2), torch.zeros(2, 2))
        >>> problem.gap(problem.start), problem.minimum, problem.condition_number
        (2.0, 0.0, 1.0)

    Source: Lau, Long, Su, arXiv 2505.21799, section 6.1.
    """

    kind: ClassVar[str] = "quadratic"
    small: ClassVar = {"rows": 60, "m": 30, "n": 8, "columns": 20}
    experiment: ClassVar = Experiment(
        title="Matrix quadratic regression",
        formula="f(X) = ½ ‖A X B − C‖²",
        steps=4000,
        eval_every=10,
        presets={"paper": configurations(_PAPER, max_steps=2, decay=0.99), "exact": configurations(_EXACT, decay=0.99)},
        notes={
            "paper": (f"{STOPPED_EARLY} With exact factors PolarGrad diverges at 4e-8.",),
            "exact": (
                "QDWH runs to convergence. PolarGrad's step sizes are smaller than the paper's, which diverge with "
                "exact factors.",
            ),
        },
    )

    def __init__(self, A: Tensor, B: Tensor, C: Tensor, X: Tensor) -> None:
        check_shapes(A=(A, "p m"), B=(B, "n q"), C=(C, "p q"), X=(X, "m n"))
        super().__init__({"X": X})
        self.A, self.B, self.C = A, B, C

    @classmethod
    def draw(cls, seed: int, *, rows: int = 1000, m: int = 500, n: int = 100, columns: int = 250) -> Self:
        """A (rows, m), B (n, columns), C (rows, columns) standard normal, and X (m, n) uniform on (-1, 1)."""
        return cls(*normal_matrices(seed, rows=rows, m=m, n=n, columns=columns))

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L and r expected of normal A and B."""
        return normal_curvature(sizes.rows, sizes)

    def value(self, point: Matrices) -> Tensor:
        """1/2 ||A X B - C||_F^2."""
        return 0.5 * self.residual(point).square().sum()

    def step_value(self, point: Matrices, step: int) -> Tensor:
        """The same f as 1/2 <Z, A^T A Z> - <Z, A^T C Q> + 1/2 ||C||_F^2 with Z = X L and B^T = Q L^T, Q orthonormal.

        Value and gradient are those of `value` up to rounding, at a quarter of the work where A is tall and B wide.
        Only A's condition is squared, so that float32 still reaches a gap that differs little from the direct one.
        """
        gram, L, K, constant = self._reduced
        return _QuadraticForm.apply(point["X"] @ L, gram, K) + constant

    def residual(self, point: Matrices) -> Tensor:
        """A X B - C, (p, q)."""
        return torch.addmm(self.C, self.A @ point["X"], self.B, beta=-1.0)

    def gradient(self, X: Tensor) -> Tensor:
        """A^T (A X B - C) B^T of matrices X (*batch, m, n), without autograd."""
        return self.A.mT @ (self.A @ X @ self.B - self.C) @ self.B.mT

    def excess(self, D: Tensor) -> Tensor:
        """1/2 ||A D B||_F^2 = f(X* + D) - f* of differences D (*batch, m, n)."""
        return 0.5 * (self.A @ D @ self.B).square().sum((-2, -1))

    @cached_property
    def solution(self) -> Tensor:
        """X* = A^+ C B^+, the minimizer of least norm, float64 (m, n)."""
        A, B, C = self.A.double(), self.B.double(), self.C.double()
        return torch.linalg.pinv(A) @ C @ torch.linalg.pinv(B)

    @cached_property
    def minimum(self) -> float:
        """f(X*)."""
        return float(self.float64.value({"X": self.solution}))

    def gap(self, point: Matrices) -> float:
        """f(X) - f* = 1/2 ||A (X - X*) B||_F^2, free of the cancellation in the difference of two values."""
        R_A, R_B = self._factors
        return 0.5 * float((R_A @ (point["X"].detach().double() - self.solution) @ R_B.mT).square().sum())

    @cached_property
    def _decompositions(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Q and R of A and of B^T, float64."""
        A, B = self.A.double(), self.B.double()
        return tuple(torch.linalg.qr(A)), tuple(torch.linalg.qr(B.mT))

    @property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """R of A = Q R and of B^T = Q R, which have the norms of A and B at a fraction of the size."""
        (_, R_A), (_, R_B) = self._decompositions
        return R_A, R_B

    @cached_property
    def _reduced(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """A^T A, L = R_B^T and A^T C Q_B in the problem's dtype, and the constant ||C||_F^2 / 2."""
        _, (Q_B, R_B) = self._decompositions
        A, C = self.A.double(), self.C.double()
        dtype = self.C.dtype
        gram, L, K = A.mT @ A, R_B.mT.contiguous(), A.mT @ C @ Q_B
        return gram.to(dtype), L.to(dtype), K.to(dtype), 0.5 * float(C.square().sum())

    @cached_property
    def _curvature(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of A^T A (m,) and B B^T (n,), float64, ascending; 0 where a rank is missing."""
        spectra = []
        for factor in self._factors:
            s = torch.linalg.svdvals(factor).square().flip(0)
            spectra.append(torch.cat([s.new_zeros(factor.shape[1] - len(s)), s]))
        return spectra[0], spectra[1]

    @cached_property
    def smoothness(self) -> float:
        """L = sigma_max(A)^2 sigma_max(B)^2."""
        a, b = self._curvature
        return float(a[-1] * b[-1])

    @cached_property
    def strong_convexity(self) -> float:
        """The product mu = sigma_min(A)^2 sigma_min(B)^2; 0 if A is wide or B is tall."""
        a, b = self._curvature
        return float(a[0] * b[0])

    def newton_direction(self, name: str, G: Tensor, point: Matrices) -> Tensor:
        """(A^T A)^{-1} G (B B^T)^{-1}, the Hessian's inverse applied to G (m, n).

        Raises:
            ValueError: a singular Hessian.
        """
        R_A, R_B = self._newton_factors
        left = torch.cholesky_solve(G, R_A, upper=True)
        return torch.cholesky_solve(left.mT, R_B, upper=True).mT

    @cached_property
    def _newton_factors(self) -> tuple[Tensor, Tensor]:
        a, b = self._curvature
        if not (a[0] > 0.0 and b[0] > 0.0):
            raise ValueError(
                f"Newton's direction needs a Hessian of full rank, and A {tuple(self.A.shape)} or "
                f"B {tuple(self.B.shape)} is rank-deficient; give A at least as many rows as columns and B at least as "
                "many columns as rows"
            )
        R_A, R_B = self._factors
        return R_A.to(self.A.dtype), R_B.to(self.B.dtype)


class _QuadraticForm(torch.autograd.Function):
    """q(Z) = 1/2 <Z, H Z> - <Z, K> with symmetric H: the product H Z serves the value and the gradient H Z - K."""

    @staticmethod
    def forward(ctx: Any, Z: Tensor, H: Tensor, K: Tensor) -> Tensor:
        gradient = torch.addmm(K, H, Z, beta=-1.0)
        ctx.save_for_backward(gradient)
        return 0.5 * torch.dot(Z.flatten(), (gradient - K).flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None
