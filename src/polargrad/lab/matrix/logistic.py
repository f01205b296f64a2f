"""Matrix logistic regression, section 6.2 of the paper: convex, not strongly, with stochastic gradients."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from polargrad.lab.matrix.configurations import Experiment, configurations
from polargrad.lab.matrix.problem import (
    Matrices,
    Problem,
    check_shapes,
    check_sizes,
    generator,
    normal_curvature,
    normal_matrices,
    register,
    uniform,
)

_RATES = {
    "polarsgd": 1.5e-7,
    "polarsgd-decay": 2.5e-7,
    "muon-ns": 0.1,
    "muon-qdwh": 0.1,
    "muon-qdwh-decay": 0.2,
    "adam": 0.005,
    "adam-decay": 0.01,
    "polar-first": 2.5e-7,
    "polar-first-decay": 2.5e-7,
    "momentum-first": 2.5e-7,
    "momentum-first-decay": 2.5e-7,
}


@register
class MatrixLogistic(Problem):
    """f(X) = sum_ij softplus(-C_ij (A X B)_ij), labels C = +-1; a step sees a batch of rows, drawn with replacement.

    grad f = A^T (-C * sigmoid(-C * (A X B))) B^T, summed over the rows of the batch.

    Args:
        A: (N, m).
        B: (n, q).
        C: (N, q), each entry -1 or 1.
        X: (m, n), the initial point.
        batch: rows in a step; None takes all.
        seed: of the batches. They continue the stream that drew an initial point of X's size.

    Raises:
        TypeError: a matrix that is not real floating point.
        ValueError: shapes that do not fit together, NaN or infinity, labels other than -1 and 1.

    Example:
        >>> A, B, C = torch.eye(2), torch.eye(2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> problem = MatrixLogistic(A, B, C, torch.zeros(2, 2), batch=None)
        >>> round(float(problem.value(problem.start)), 4)
        2.7726

    Source: Lau, Long, Su, arXiv 2505.21799, section 6.2.
    """

    kind: ClassVar[str] = "logistic"
    unit: ClassVar[str] = "sample"
    metric_unit: ClassVar[str] = "mean over all entries, float64"
    small: ClassVar = {"rows": 400, "m": 30, "n": 8, "columns": 20, "batch": 50}
    experiment: ClassVar = Experiment(
        title="Matrix logistic regression",
        formula="f(X) = Σ softplus(−C ∘ (A X B)), batches of rows",
        steps=1500,
        eval_every=50,
        presets={"paper": configurations(_RATES, max_steps=2, decay=0.95), "exact": configurations(_RATES, decay=0.95)},
        notes={
            "paper": ("QDWH is stopped after 2 steps in float32, as in the authors' experiments.",),
            "exact": (
                "QDWH runs to convergence. With exact factors the paper's step sizes do not diverge, but have a noise "
                "floor that is up to half as high again.",
            ),
        },
    )

    def __init__(self, A: Tensor, B: Tensor, C: Tensor, X: Tensor, *, batch: int | None = 1000, seed: int = 0) -> None:
        check_shapes(A=(A, "N m"), B=(B, "n q"), C=(C, "N q"), X=(X, "m n"))
        super().__init__({"X": X})
        if not bool((C.abs() == 1.0).all()):
            raise ValueError("C must hold the labels -1 and 1; map yours to them, for example 2 * C - 1 for 0 and 1")
        if batch is not None:
            check_sizes(batch=batch)
        self.A, self.B, self.C = A, B, C
        self.batch = batch
        self.units_per_step = A.shape[0] if batch is None else batch
        self._batches = _Batches(seed, X.shape, A.shape[0], self.units_per_step)

    @classmethod
    def draw(
        cls, seed: int, *, rows: int = 10000, m: int = 1000, n: int = 100, columns: int = 400, batch: int | None = 1000
    ) -> Self:
        """The data of `normal_matrices`, with C (rows, columns) 1 where the normal draw exceeds 0.5, else -1."""
        A, B, C, X = normal_matrices(seed, rows=rows, m=m, n=n, columns=columns)
        return cls(A, B, (C > 0.5).to(A.dtype) * 2.0 - 1.0, X, batch=batch, seed=seed)

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L and r expected of normal A and B, for the sum over a batch; four times the bound of softplus."""
        return normal_curvature(sizes.batch, sizes)

    def value(self, point: Matrices) -> Tensor:
        """The sum over all entries; `gap` divides by their number."""
        return F.softplus(-self.C * ((self.A @ point["X"]) @ self.B)).sum()

    def step_value(self, point: Matrices, step: int) -> Tensor:
        """The sum over the entries of the step's rows."""
        if self.batch is None:
            return self.value(point)
        rows = self._batches(step).to(self.A.device)
        return F.softplus(-self.C[rows] * ((self.A[rows] @ point["X"]) @ self.B)).sum()

    def residual(self, point: Matrices) -> Tensor:
        """sigmoid(A X B) - (C + 1) / 2, (N, q): predicted probability minus label."""
        return torch.sigmoid((self.A @ point["X"]) @ self.B) - (self.C + 1.0) / 2.0

    def gap(self, point: Matrices) -> float:
        """The mean of softplus over all entries minus its optimum, in float64."""
        wide = {key: value.detach().double() for key, value in point.items()}
        with torch.no_grad():
            return float(self.float64.value(wide)) / self.C.numel() - self.minimum

    @cached_property
    def minimum(self) -> float:
        """The optimum of the mean loss, to about 1e-12.

        The curvature of softplus is at most 1/4, so X - 4 (A^T A)^{-1} G (B B^T)^{-1} minimizes a quadratic that lies
        above f: the value falls with every step, and fast where the logits stay small.

        Raises:
            ValueError: separable or rank-deficient data, for which there is no minimizer to find.
        """
        f, A, B = self.float64, self.A.double(), self.B.double()
        left, left_info = torch.linalg.cholesky_ex(A.mT @ A)
        right, right_info = torch.linalg.cholesky_ex(B @ B.mT)
        if left_info or right_info:
            raise ValueError(
                "the optimum needs A of full column rank and B of full row rank; give more rows or columns"
            )
        X = torch.zeros_like(self.start["X"], dtype=torch.float64)
        best = float(f.value({"X": X}))
        for _ in range(500):
            G = torch.cholesky_solve(f.gradients({"X": X})["X"], left)
            X = X - 4.0 * torch.cholesky_solve(G.mT, right).mT
            now = float(f.value({"X": X}))
            if best - now <= 1e-13 * best:
                return min(best, now) / self.C.numel()
            best = now
        raise ValueError(
            "the optimum is not reached in 500 steps: the labels are separable or nearly so; give more rows"
        )

    @cached_property
    def smoothness(self) -> float:
        """L <= sigma_max(A)^2 sigma_max(B)^2 / 4, of the sum over all rows."""
        spectral = [float(torch.linalg.matrix_norm(M.double(), 2)) for M in (self.A, self.B)]
        return (spectral[0] * spectral[1]) ** 2 / 4.0


class _Batches:
    """The rows of each step, drawn in order from one stream and kept, so that any step can be repeated."""

    def __init__(self, seed: int, start: torch.Size, rows: int, batch: int) -> None:
        self._draw = generator(seed)
        uniform(*start, draw=self._draw)
        self._rows, self._batch = rows, batch
        self._drawn: list[Tensor] = []

    def __call__(self, step: int) -> Tensor:
        while len(self._drawn) <= step:
            self._drawn.append(torch.randint(0, self._rows, (self._batch,), generator=self._draw))
        return self._drawn[step]
