"""Tall matrices reduced to square ones: X = Y T with a well-conditioned Y (m, n) and a small T (n, n)."""

from __future__ import annotations

import torch
from torch import Tensor

from polargrad.linalg.kernels import solve_with_gram

__all__ = ["is_tall", "preconditioned_qr"]

# From this ratio of rows to columns on, a reduction to n columns and a product back cost less than working on X.
_TALL = 1.25


def is_tall(X: Tensor) -> bool:
    """Whether X (k, m, n) has enough more rows than columns for a reduction to pay."""
    return X.shape[-2] >= _TALL * X.shape[-1]


def preconditioned_qr(X: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """The second pass of Cholesky QR: X = (Y S^{-1}) (S R) with orthonormal Y S^{-1}.

    R is the Cholesky factor of X^H X in a higher precision. Then Y = X R^{-1}, solved in the precision of X, is
    orthonormal up to eps cond(X), its Gram matrix needs no higher precision, and S is the Cholesky factor of that.
    The residual Y R - X is small at any condition number, since the solve is row-wise backward stable. The product
    Y S^{-1} is left to the caller, who can join it with the one that he needs.

    Args:
        X: (k, m, n) with eps cond(X) well below 1.
        R: (k, n, n), upper triangular, in double precision.

    Returns:
        Y (k, m, n) and S (k, n, n), both in the precision of X.

    Example:
        >>> X = torch.tensor([[[3.0], [4.0]]])
        >>> Y, S = preconditioned_qr(X, torch.tensor([[[10.0]]], dtype=torch.float64))
        >>> round(S.item(), 6)
        0.5

    Source: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya (2015), CholeskyQR2; Yamazaki, Tomov, Dongarra (2015) for the
        first pass in double precision.
    """
    Y, C = solve_with_gram(X, R.to(X.dtype))
    S, _ = torch.linalg.cholesky_ex(C, upper=True)
    return Y, S
