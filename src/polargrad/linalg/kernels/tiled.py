"""Products in half precision whose result is symmetric, by the tiles on and below the diagonal, with Triton on a GPU.

A tile is computed once and written twice, so that about half of the multiplications are left. `symmetric.py` has the
plain twin, and asks `can_tile`.
"""

# pyright: reportOptionalMemberAccess=false, reportIndexIssue=false, reportInvalidTypeForm=false
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:  # as in a CPU build of torch
    triton = tl = None

__all__ = ["LEAST_COLUMNS", "LEAST_TILES", "LEAST_WORK", "can_tile", "symmetric_product"]

# The least number of multiplications, of columns, which are four tiles, and of tiles, about two for every
# multiprocessor of the largest GPUs. Below, the plain product is as fast, and cheaper to launch.
LEAST_WORK, LEAST_COLUMNS, LEAST_TILES = 10**10, 512, 264
# CUDA's bound on the second axis of a grid.
_MOST_MATRICES = 65_535


class Tiling(NamedTuple):
    """How the work is cut: tiles of `size` squared, `depth` of the inner dimension at a time."""

    size: int
    depth: int
    warps: int
    stages: int


TILING = Tiling(128, 64, 8, 4)  # no other was faster on an H100


if triton is not None:

    @triton.jit
    def _product(
        A, B, D, C, n, inner, alpha, beta,
        a_batch, a_row, a_inner, b_batch, b_inner, b_column, d_batch, d_row, d_column,
        ADD: tl.constexpr, WHOLE: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr,
    ):  # fmt: skip
        """The tile (i, j), j <= i, of C = alpha A B + beta D, and its transpose in the tile (j, i)."""
        t, p = tl.program_id(0), tl.program_id(1).to(tl.int64)
        i = ((tl.sqrt(8.0 * t + 1.0) - 1.0) * 0.5).to(tl.int32)
        i = tl.where(i * (i + 1) // 2 > t, i - 1, i)
        i = tl.where((i + 1) * (i + 2) // 2 <= t, i + 1, i)
        j = t - i * (i + 1) // 2
        rows, columns, steps = i * SIZE + tl.arange(0, SIZE), j * SIZE + tl.arange(0, SIZE), tl.arange(0, DEPTH)
        a = A + p * a_batch + (rows % n).to(tl.int64)[:, None] * a_row + steps[None, :] * a_inner
        b = B + p * b_batch + (columns % n).to(tl.int64)[None, :] * b_column + steps[:, None] * b_inner
        total = tl.zeros((SIZE, SIZE), dtype=tl.float32)
        for start in range(0, inner, DEPTH):
            if WHOLE:
                total = tl.dot(tl.load(a), tl.load(b), total)
            else:
                left = steps < inner - start
                total = tl.dot(
                    tl.load(a, mask=left[None, :], other=0.0), tl.load(b, mask=left[:, None], other=0.0), total
                )
            a += DEPTH * a_inner
            b += DEPTH * b_inner
        total = total * alpha
        inside = (rows < n)[:, None] & (columns < n)[None, :]
        if ADD:
            d = D + p * d_batch + rows.to(tl.int64)[:, None] * d_row + columns.to(tl.int64)[None, :] * d_column
            total += beta * tl.load(d, mask=inside, other=0.0).to(tl.float32)
        result = total.to(C.dtype.element_ty)
        C += p * n * n
        tl.store(C + rows.to(tl.int64)[:, None] * n + columns[None, :], result, mask=inside)
        if i != j:
            mirrored = (columns < n)[:, None] & (rows < n)[None, :]
            tl.store(C + columns.to(tl.int64)[:, None] * n + rows[None, :], tl.trans(result), mask=mirrored)


def can_tile(X: Tensor, *others: Tensor) -> bool:
    """Whether the kernel takes X^T X of X (k, m, n), or a product of X and others.

    Large ones in half precision on a GPU with Triton, of tensors that torch neither traces nor differentiates.
    """
    if triton is None or torch.version.hip is not None or X.dtype not in (torch.bfloat16, torch.float16):
        return False
    k, m, n = X.shape
    if k > _MOST_MATRICES or n < LEAST_COLUMNS or k * m * n * n < LEAST_WORK:
        return False
    if k * tiles(n, TILING.size) < LEAST_TILES:
        return False
    return not torch.compiler.is_compiling() and all(_is_plain(one, X) for one in (X, *others))


def _is_plain(X: Tensor, first: Tensor) -> bool:
    alike = type(X) is Tensor and X.device == first.device and X.dtype == first.dtype
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(X)  # pyright: ignore[reportAttributeAccessIssue]
    return alike and X.is_cuda and not X.requires_grad and not wrapped


def tiles(n: int, size: int) -> int:
    """The number of tiles on and below the diagonal."""
    across = -(-n // size)
    return across * (across + 1) // 2


def symmetric_product(
    A: Tensor, B: Tensor, addend: Tensor | None = None, *, beta: float = 1.0, alpha: float = 1.0,
    tiling: Tiling = TILING,
) -> Tensor:  # fmt: skip
    """The sum alpha A B + beta addend (k, n, n) where product and addend are symmetric, in half precision.

    Args:
        A: (k, n, m), with any strides, as the next.
        B: (k, m, n).
        addend: (k, n, n), or None.
        beta: its factor.
        alpha: the factor of the product.
        tiling: how the work is cut.
    """
    k, n, inner = A.shape
    C = torch.empty(k, n, n, dtype=A.dtype, device=A.device)
    D = C if addend is None else addend
    with torch.cuda.device_of(C):
        _product[(tiles(n, tiling.size), k)](
            A, B, D, C, n, inner, alpha, beta, *A.stride(), *B.stride(), *D.stride(),
            ADD=addend is not None, WHOLE=inner % tiling.depth == 0, SIZE=tiling.size, DEPTH=tiling.depth,
            num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
    return C
