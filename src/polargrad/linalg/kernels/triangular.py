"""Tall solves with a triangular matrix on the right, together with the Gram matrix of what comes out."""

from __future__ import annotations

import torch
from torch import Tensor

from polargrad.linalg.kernels.symmetric import add_lower_product, blocked, mirror, row_panels

__all__ = ["solve_with_gram", "solve_with_gram_plain"]


def solve_with_gram_plain(X: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Y = X R^{-1} and Y^H Y: the definition that `solve_with_gram` is tested against."""
    Y = torch.linalg.solve_triangular(R, X, upper=True, left=False)
    return Y, Y.mH @ Y


def solve_with_gram(X: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Y = X R^{-1} (k, m, n) and Y^H Y (k, n, n) for upper triangular R (k, n, n).

    On a CPU it goes by panels of rows, so that the second product finds its panels in the cache. Y is row-wise
    backward stable: every row y solves y (R + E) = x with |E| <= n eps |R|, at any condition number of R.

    Example:
        >>> import torch
        >>> Y, G = solve_with_gram(torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[2.0]]]))
        >>> Y.flatten().tolist(), G.item()
        ([1.0, 2.0], 5.0)

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), theorem 8.5.
    """
    if not blocked(X):
        return solve_with_gram_plain(X, R)
    Y = torch.empty(X.shape, dtype=X.dtype, device=X.device)
    G = torch.empty_like(R)
    for x, r, y, g in zip(X, R, Y, G, strict=True):
        for rows in row_panels(x.shape[0], x.shape[1], x.dtype.itemsize):
            y[rows] = torch.linalg.solve_triangular(r, x[rows], upper=True, left=False)
            add_lower_product(g, y[rows].mH, y[rows], beta=0.0 if rows.start == 0 else 1.0)
        mirror(g)
    return Y, G
