"""Products whose result is Hermitian, formed by blocks on and below the diagonal: about 0.65 of the full product.

BLAS has routines for this (syrk, herk) that torch does not reach. Panels of rows, each as wide as its last row needs,
cover little more than half of the result. On a GPU a kernel does so in half precision (`tiled.py`). Elsewhere, and for
small matrices, where the calls cost more than the flops, the plain product is used.
"""

from __future__ import annotations

import itertools
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["by_blocks", "gram", "gram_plain", "hermitian_product", "product", "row_panels"]

# Blocks of this size and below are formed in full.
_BASE = 192
# Matrices with fewer columns are not worth splitting.
SMALLEST_BLOCKED = 256
# Converted panels have rows of this many entries more, since rows a power of two apart collide in the cache.
_PADDING = 16
# Rows are taken in panels of about this many bytes, which stay in the cache of a CPU while they are used.
_PANEL_BYTES = 8 * 2**20


def row_panels(m: int, n: int, itemsize: int) -> list[slice]:
    """Slices that cut m rows of n entries into panels that fit the cache; panels have at least 2 n rows."""
    rows = max(2 * n, _PANEL_BYTES // (n * itemsize))
    count = max(1, round(m / rows))
    edges = [m * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def blocked(X: Tensor) -> bool:
    """Whether the blocked products pay for the matrix or batch X."""
    return X.device.type == "cpu" and X.shape[-1] >= SMALLEST_BLOCKED and not torch.compiler.is_compiling()


def by_blocks(X: Tensor) -> bool:
    """Whether the Hermitian products of the batch X are formed by blocks, on a CPU or by the kernel of a GPU."""
    return blocked(X) or _tiled(X) is not None


def _tiled(*operands: Tensor) -> ModuleType | None:
    """The kernel, if it takes the batches; imported on a GPU alone, since Triton takes its time."""
    if not operands[0].is_cuda:
        return None
    from polargrad.linalg.kernels import tiled

    return tiled if tiled.can_tile(*operands) else None


def padded(m: int, n: int, dtype: torch.dtype) -> Tensor:
    """An uninitialized (m, n) matrix on the CPU whose rows do not collide in the cache."""
    return torch.empty(m, n + _PADDING, dtype=dtype, device="cpu")[:, :n]


def _lower_panels(n: int) -> list[slice]:
    """Slices of rows; a panel holds the columns up to its own last row, that is a part of the lower triangle."""
    return [slice(start, min(start + _BASE, n)) for start in range(0, n, _BASE)]


def add_lower_product(C: Tensor, A: Tensor, B: Tensor, beta: float) -> None:
    """The lower triangle of C <- beta C + A B by panels of rows; what is right of the diagonal blocks is left alone."""
    for rows in _lower_panels(C.shape[0]):
        C[rows, : rows.stop].addmm_(A[rows], B[:, : rows.stop], beta=beta)


def mirror(C: Tensor) -> Tensor:
    """Copy the blocks below the diagonal of C to those above it, in place."""
    for rows in _lower_panels(C.shape[0])[1:]:
        C[: rows.start, rows] = C[rows, : rows.start].mH
    return C


def gram_plain(X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """X^H X (..., n, n) formed in `dtype`: the definition that `gram` is tested against."""
    X = X.to(dtype or X.dtype)
    # The batched routines are up to a third slower for a batch of one.
    return (X[0].mH @ X[0])[None] if X.shape[0] == 1 else X.mH @ X


def gram(X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """G = X^H X, formed in `dtype`, without a copy of the whole of X in it.

    Args:
        X: (k, m, n), real or complex.
        dtype: of the product, at least as wide as that of X; None is X's own.

    Returns:
        (k, n, n), Hermitian to the last bit off the diagonal blocks.

    Example:
        >>> import torch
        >>> gram(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.float64).tolist()
        [[[10.0, 14.0], [14.0, 20.0]]]
    """
    dtype = dtype or X.dtype
    if not blocked(X):
        if dtype == X.dtype and (kernel := _tiled(X)) is not None:
            return kernel.symmetric_product(X.mT, X)
        return gram_plain(X, dtype)
    k, m, n = X.shape
    G = torch.empty(k, n, n, dtype=dtype, device=X.device)
    if dtype == X.dtype:
        for x, g in zip(X, G, strict=True):
            add_lower_product(g, x.mH, x, beta=0.0)
            mirror(g)
        return G
    panels = row_panels(m, n, dtype.itemsize)
    buffer = padded(max(rows.stop - rows.start for rows in panels), n, dtype)
    for x, g in zip(X, G, strict=True):
        for rows in panels:
            panel = buffer[: rows.stop - rows.start].copy_(x[rows])
            add_lower_product(g, panel.mH, panel, beta=0.0 if rows.start == 0 else 1.0)
        mirror(g)
    return G


def hermitian_product(
    A: Tensor, B: Tensor, addend: Tensor | None = None, *, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """The sum alpha A B + beta addend (k, n, n), for a product and an addend that are Hermitian.

    Such are the products of two functions of one Hermitian matrix. The sum costs no pass of its own.

    Example:
        >>> import torch
        >>> R = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
        >>> hermitian_product(R, R, R, beta=-1.0).tolist()
        [[[3.0, 3.0], [3.0, 3.0]]]
    """
    if not blocked(B):
        if (kernel := _tiled(B, A, *([] if addend is None else [addend]))) is not None:
            return kernel.symmetric_product(A, B, addend, beta=beta, alpha=alpha)
        if addend is not None:
            return torch.baddbmm(addend, A, B, beta=beta, alpha=alpha)
        return A @ B if alpha == 1.0 else alpha * (A @ B)
    C = torch.empty_like(B)
    for i, (a, b, c) in enumerate(zip(A, B, C, strict=True)):
        d, scale = (c, 0.0) if addend is None else (addend[i], beta)
        for rows in _lower_panels(b.shape[0]):
            block = (rows, slice(rows.stop))
            torch.addmm(d[block], a[rows], b[:, : rows.stop], beta=scale, alpha=alpha, out=c[block])
        mirror(c)
    return C


def _plain_product(X: Tensor, S: Tensor) -> Tensor:
    """X S; a single matrix takes the 2-D routine, which is faster than a batch of one."""
    return torch.mm(X[0], S[0])[None] if X.shape[0] == 1 else X @ S


def product(X: Tensor, S: Tensor) -> Tensor:
    """X S (k, m, p), formed in the dtype of S (k, n, p) by panels of rows and rounded to the dtype of X."""
    if X.dtype == S.dtype:
        if X.mT.is_contiguous() and not X.is_contiguous():
            # A transposed view stays one: whoever made it will turn the result back.
            return _plain_product(S.mT, X.mT).mT
        return _plain_product(X, S)
    if not blocked(X):
        return _plain_product(X.to(S.dtype), S).to(X.dtype)
    (k, m, n), p = X.shape, S.shape[-1]
    Y = torch.empty(k, m, p, dtype=X.dtype, device=X.device)
    for x, s, y in zip(X, S, Y, strict=True):
        for rows in row_panels(m, n, S.dtype.itemsize):
            y[rows] = x[rows].to(S.dtype) @ s
    return Y
