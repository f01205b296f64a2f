"""The unitary factor from the singular value decomposition: the reference every other method is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.decomposition import on_host
from polargrad.linalg.method import IterationResult, PolarMethod, register
from polargrad.linalg.precision import double_precision

__all__ = ["SVD"]


@register
@dataclass(frozen=True)
class SVD(PolarMethod):
    """U = P Q^H from A = P diag(sigma) Q^H, over the singular values above the cut-off.

    Directions with sigma <= cutoff * sigma_max are left out, so that a rank-deficient A gives its partial isometry
    (and the zero matrix gives zero).

    Args:
        cutoff: relative to the largest singular value; None is n / 4 eps of the working dtype, at least 2 eps: LAPACK
            leaves up to n / 7 eps of a null direction. In single precision on a CPU matrices with a singular value
            below n eps are decomposed in double, and the cut-off is sqrt(n) / 2 eps, at most 4 eps: what rounding of
            the entries leaves of a null direction. Elsewhere it is at most 4 eps too.

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """

    name: ClassVar[str] = "svd"
    peak_memory: ClassVar[float] = 11.0
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 0.0 <= self.cutoff < 1.0:
            raise ValueError(f"cutoff must lie in [0, 1) or be None, got {self.cutoff}")

    def iterate(self, X: Tensor) -> IterationResult:
        n, eps = X.shape[-1], torch.finfo(X.dtype).eps
        double = double_precision(X.dtype)
        U, sigma = self._factor(X, self._cutoff(X.dtype, n))
        if self.cutoff is None and X.dtype != double and on_host(X):
            # LAPACK's own error hides how small these are; double precision tells.
            doubtful = sigma[:, -1] <= n * eps * sigma[:, 0]
            if bool(doubtful.any()):
                exact, _ = self._factor(X[doubtful].to(double), eps * min(4.0, n**0.5 / 2))
                U[doubtful] = exact.to(X.dtype)
        return IterationResult(U, steps=1)

    @staticmethod
    def _factor(X: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
        """(U, sigma) of X (k, m, n)."""
        # The default on a GPU, one-sided Jacobi, stops at errors of 1e-4 in float32.
        P, sigma, Qh = torch.linalg.svd(X, full_matrices=False, driver="gesvd" if X.is_cuda else None)
        kept = sigma > cutoff * sigma[..., :1]
        if not (on_host(X) and bool(kept.all())):
            P = P * kept.to(P.dtype).unsqueeze(-2)
        return P @ Qh, sigma

    def _cutoff(self, dtype: torch.dtype, n: int) -> float:
        if self.cutoff is not None:
            return self.cutoff
        multiple = max(2.0, n / 4)
        return torch.finfo(dtype).eps * (multiple if torch.finfo(dtype).bits == 64 else min(multiple, 4.0))

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """The decomposition, and the product of its factors."""
        return operations.svd(m, n) + operations.product(m, n)
