"""The unitary factor from the singular value decomposition: the reference every other method is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.method import IterationResult, PolarMethod, register

__all__ = ["SVD"]


@register
@dataclass(frozen=True)
class SVD(PolarMethod):
    """U = P Q^H from A = P diag(sigma) Q^H, over the singular values above the cut-off.

    Directions with sigma <= cutoff * sigma_max are left out, so that a rank-deficient A gives its partial isometry
    (and the zero matrix gives zero).

    Args:
        cutoff: relative to the largest singular value; None is 4 eps of the working dtype.

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """

    name: ClassVar[str] = "svd"
    peak_memory: ClassVar[float] = 6.0
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 0.0 <= self.cutoff < 1.0:
            raise ValueError(f"cutoff must lie in [0, 1) or be None, got {self.cutoff}")

    def iterate(self, X: Tensor) -> IterationResult:
        # The default on a GPU, one-sided Jacobi, stops at errors of 1e-4 in float32.
        P, sigma, Qh = torch.linalg.svd(X, full_matrices=False, driver="gesvd" if X.is_cuda else None)
        cutoff = 4 * torch.finfo(X.dtype).eps if self.cutoff is None else self.cutoff
        kept = sigma > cutoff * sigma[..., :1]
        return IterationResult((P * kept.to(P.dtype).unsqueeze(-2)) @ Qh, steps=1)

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """The decomposition, and the product of its factors."""
        return operations.svd(m, n) + operations.product(m, n)
