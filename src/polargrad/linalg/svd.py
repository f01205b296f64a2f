"""The unitary factor from the singular value decomposition: the reference every other method is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.method import IterationResult, PolarMethod, register
from polargrad.linalg.precision import double_precision
from polargrad.linalg.tall import has_long_columns

__all__ = ["SVD"]


@register
@dataclass(frozen=True)
class SVD(PolarMethod):
    """U = P Q^H from A = P diag(sigma) Q^H, over the singular values above the cut-off.

    Directions with sigma <= cutoff * sigma_max are left out, so that a rank-deficient A gives its partial isometry
    (and the zero matrix gives zero).

    Args:
        cutoff: relative to the largest singular value; None is n / 4 eps of the working dtype, at least 2 eps and in
            single precision at most 4 eps: LAPACK leaves up to n / 7 eps of a null direction, and of three columns,
            where that is less than eps, no rotation is to be lost.

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """

    name: ClassVar[str] = "svd"
    peak_memory: ClassVar[float] = 6.0
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 0.0 <= self.cutoff < 1.0:
            raise ValueError(f"cutoff must lie in [0, 1) or be None, got {self.cutoff}")

    def iterate(self, X: Tensor) -> IterationResult:
        long = has_long_columns(X)
        # The default on a GPU, one-sided Jacobi, stops at errors of 1e-4 in float32.
        driver = "gesvd" if X.is_cuda else None
        P, sigma, Qh = torch.linalg.svd(
            X.to(double_precision(X.dtype)) if long else X, full_matrices=False, driver=driver
        )
        kept = sigma > self._cutoff(X.dtype, X.shape[-1]) * sigma[..., :1]
        return IterationResult(((P * kept.to(P.dtype).unsqueeze(-2)) @ Qh).to(X.dtype), steps=1)

    def _cutoff(self, dtype: torch.dtype, n: int) -> float:
        if self.cutoff is not None:
            return self.cutoff
        multiple = max(2.0, n / 4)
        return torch.finfo(dtype).eps * (multiple if torch.finfo(dtype).bits == 64 else min(multiple, 4.0))

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """The decomposition, and the product of its factors."""
        return operations.svd(m, n) + operations.product(m, n)
