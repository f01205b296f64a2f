"""Tall matrices reduced to square ones: X = Y T with a well-conditioned Y (m, n) and a small T (n, n)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from polargrad.linalg.kernels import solve_with_gram

__all__ = ["TALL", "has_long_columns", "is_tall", "preconditioned_qr", "sketch"]

# From this ratio of rows to columns on, a reduction to n columns and a product back cost less than working on X.
TALL = 1.25
# From this ratio on sums over a column are not left to LAPACK or a product in single precision.
_LONG = 512
# Rows of a sketch per column, and rows of X that are mixed with each other.
_SKETCH_RATIO = 4
_MIXED_ROWS = 256


def has_long_columns(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether sums over the columns of matrices (*batch, m, n), m >= n, may round more than 4 n eps on a CPU.

    BLAS and LAPACK sum in the precision of the matrix there: for 1e6 rows of float32 Q^H Q is off by 1e-5 to 1e-3.
    """
    return torch.finfo(dtype).bits == 32 and device.type == "cpu" and shape[-2] >= _LONG * shape[-1]


def is_tall(X: Tensor) -> bool:
    """Whether X (k, m, n) has enough more rows than columns for a reduction to pay."""
    return X.shape[-2] >= TALL * X.shape[-1]


@functools.lru_cache(maxsize=4)
def _mixing(m: int, n: int) -> tuple[Tensor, Tensor]:
    """A permutation of m rows and the Gaussian matrix of each block of permuted rows; always the same."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    blocks = m // _MIXED_ROWS
    rows = -(-_SKETCH_RATIO * n // blocks)
    permutation = torch.randperm(m, generator=generator, device="cpu")[: blocks * _MIXED_ROWS]
    mixing = torch.randn(blocks, rows, _MIXED_ROWS, generator=generator, device="cpu", dtype=torch.float32)
    return permutation.view(blocks, _MIXED_ROWS), mixing / rows**0.5


def sketch(X: Tensor) -> Tensor:
    """About 4 n random combinations of the rows of X (1, m, n), m >> 4 n, whose triangular factor preconditions X.

    The rows are permuted and cut into blocks of 256, of which each gives as many Gaussian combinations as brings the
    total to 4 n. The singular values of X R^{-1} then lie in about [2/3, 2] unless a few rows that carry a direction
    are left without combinations enough; the second pass over X shows that. At most 255 rows are left out.

    Source: Balabanov (2022) and Higgins, Szyld, Boman, Yamazaki (2023), randomized Cholesky QR.
    """
    permutation, mixing = _mixing(X.shape[-2], X.shape[-1])
    mixing = mixing.to(X.dtype)
    Y = X.new_empty(*mixing.shape[:2], X.shape[-1])
    for start in range(0, len(permutation), 8):
        blocks = slice(start, start + 8)
        torch.bmm(mixing[blocks], X[0][permutation[blocks]], out=Y[blocks])
    return Y.view(1, -1, X.shape[-1])


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
