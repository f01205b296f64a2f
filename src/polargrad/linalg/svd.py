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

_FEW = 256  # numbers


@register
@dataclass(frozen=True)
class SVD(PolarMethod):
    """U = P Q^H from A = P diag(sigma) Q^H, over the singular values above the cut-off.

    Directions with sigma <= cutoff * sigma_max are left out, so that a rank-deficient A gives its partial isometry
    (and the zero matrix gives zero).

    Args:
        cutoff: relative to the largest singular value; None is n / 4 eps of the working dtype, in double precision at
            least 4 eps: LAPACK leaves up to n / 7 eps of a null direction, rounding of a small matrix's entries 2 eps.
            In single precision on a CPU matrices with a singular value below n eps are decomposed in double, and the
            cut-off is sqrt(n) / 2 eps, at most 4 eps: what rounding of the entries leaves of a null direction.
            Elsewhere it lies between 2 and 4 eps.

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """

    name: ClassVar[str] = "svd"
    peak_memory: ClassVar[float] = 11.0
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 0.0 <= self.cutoff < 1.0:
            raise ValueError(f"cutoff must lie in [0, 1) or be None, got {self.cutoff}")

    def iterate(self, X: Tensor) -> IterationResult:
        n, eps, looked = X.shape[-1], torch.finfo(X.dtype).eps, on_host(X)
        cutoff, double = self._cutoff(X.dtype, n), double_precision(X.dtype)
        # LAPACK's own error hides how small such singular values are; double precision tells.
        doubtful = n * eps if looked and self.cutoff is None and X.dtype != double else 0.0
        P, sigma, Qh = self._svd(X)
        if looked and _are_above(max(cutoff, doubtful), sigma):
            return IterationResult(torch.bmm(P, Qh), steps=1)
        U = torch.bmm(_kept(P, sigma, cutoff), Qh)
        if doubtful:
            again = sigma[:, -1] <= doubtful * sigma[:, 0]
            P, sigma, Qh = self._svd(X[again].to(double))
            U[again] = torch.bmm(_kept(P, sigma, eps * min(4.0, n**0.5 / 2)), Qh).to(X.dtype)
        return IterationResult(U, steps=1)

    @staticmethod
    def _svd(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The default on a GPU, one-sided Jacobi, stops at errors of 1e-4 in float32.
        return torch.linalg.svd(X, full_matrices=False, driver="gesvd" if X.is_cuda else None)

    def _cutoff(self, dtype: torch.dtype, n: int) -> float:
        if self.cutoff is not None:
            return self.cutoff
        multiple = max(4.0, n / 4) if torch.finfo(dtype).bits == 64 else min(max(2.0, n / 4), 4.0)
        return torch.finfo(dtype).eps * multiple

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """The decomposition, and the product of its factors."""
        return operations.svd(m, n) + operations.product(m, n)


def _are_above(cutoff: float, sigma: Tensor) -> bool:
    """Whether every singular value (k, n), falling in each row, is above `cutoff` times the largest of its row."""
    if sigma.numel() <= _FEW:  # one read of all costs less than operations on a few
        return all(row[-1] > cutoff * row[0] for row in sigma.tolist())
    return bool((sigma[:, -1] > cutoff * sigma[:, 0]).all())


def _kept(P: Tensor, sigma: Tensor, cutoff: float) -> Tensor:
    return P * (sigma > cutoff * sigma[:, :1]).to(P.dtype).unsqueeze(-2)
