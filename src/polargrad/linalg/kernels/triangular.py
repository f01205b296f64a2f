"""Tall solves with a triangular matrix on the right, together with the Gram matrix of what comes out."""

from __future__ import annotations

import torch
from torch import Tensor

from polargrad.linalg.kernels.symmetric import add_lower_product, blocked, mirror, row_panels

__all__ = ["solve_with_gram", "solve_with_gram_plain"]

# Size of the diagonal blocks.
_BLOCK = 128
# Up to this Skeel condition number of the diagonal blocks no difference to back substitution was measured.
_SAFE_SKEEL = 500.0


def solve_with_gram_plain(X: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Y = X R^{-1} and Y^H Y: the definition that `solve_with_gram` is tested against."""
    Y = torch.linalg.solve_triangular(R, X, upper=True, left=False)
    return Y, Y.mH @ Y


def _inverted_blocks(R: Tensor) -> list[Tensor] | None:
    """The inverses of the diagonal blocks of R (n, n), or None where multiplying by them is not safe."""
    inverses = []
    for start in range(0, R.shape[0], _BLOCK):
        block = R[start : start + _BLOCK, start : start + _BLOCK]
        block = block.to(torch.complex128 if R.is_complex() else torch.float64)
        eye = torch.eye(block.shape[0], dtype=block.dtype, device=block.device)
        inverse = torch.linalg.solve_triangular(block, eye, upper=True)
        # || |R^{-1}| |R| ||_1 bounds what a product with the inverse loses beyond back substitution.
        if not bool((inverse.abs() @ block.abs()).sum(-2).max() <= _SAFE_SKEEL):
            return None
        inverses.append(inverse.to(R.dtype))
    return inverses


def _solve_panel(y: Tensor, x: Tensor, R: Tensor, inverses: list[Tensor] | None) -> None:
    """Write x R^{-1} into y: block substitution, or LAPACK's where the diagonal blocks have no safe inverses."""
    if inverses is None:
        y.copy_(torch.linalg.solve_triangular(R, x, upper=True, left=False))
        return
    for index, inverse in enumerate(inverses):
        start = index * _BLOCK
        block = slice(start, start + inverse.shape[0])
        rest = torch.addmm(x[:, block], y[:, :start], R[:start, block], alpha=-1) if start else x[:, block]
        torch.mm(rest, inverse, out=y[:, block])


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
        inverses = _inverted_blocks(r)
        for rows in row_panels(x.shape[0], x.shape[1], x.dtype.itemsize):
            _solve_panel(y[rows], x[rows], r, inverses)
            add_lower_product(g, y[rows].mH, y[rows], beta=0.0 if rows.start == 0 else 1.0)
        mirror(g)
    return Y, G
