"""Bounds on the extreme singular values, from norms, from the Gram matrix and from its Cholesky factor.

`norm_bound` and `gram_norm_bound` hold for every matrix and may be n^(1/2) and n^(1/4) times too large. The estimates
come from power or inverse iteration and lie on the inner side: never above the largest, never below the smallest,
beyond rounding. They start from fixed vectors, so that there are matrices for which they are far off: whoever relies on
one leaves a margin and has it certified, by `is_positive_definite`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polargrad.linalg.compilation import compile_constant

__all__ = [
    "cholesky",
    "gram_norm_bound",
    "is_positive_definite",
    "largest_eigenvalue",
    "norm_bound",
    "smallest_eigenvalue",
    "spectral_norm",
]

# A product of a large matrix with one vector is bound by memory, and far faster than one with a few; solves are not.
_LARGE = 256
_PRODUCTS = 8
_SOLVES = 4
_VECTORS = 8
_SMALL = 128
# From this size on, rows a power of two apart are factored with so many more.
_COLLIDING = 512
_PADDING = 16


@compile_constant
def _start(n: int, vectors: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, vectors): random, so that no matrix is orthogonal to it by its structure, and always the same."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(n, vectors, generator=generator, dtype=torch.float64, device="cpu").to(dtype).to(device)


def _vectors(X: Tensor) -> int:
    return 1 if X.shape[-1] >= _LARGE else _VECTORS


def _unit_columns(V: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of V at length 1, and the largest of their lengths (k,)."""
    length = torch.linalg.vector_norm(V, dim=-2, keepdim=True)
    return V / torch.where(length > 0, length, 1.0), length.amax((-2, -1))


def norm_bound(X: Tensor) -> Tensor:
    """sqrt(||X||_1 ||X||_inf) >= ||X||_2 for each matrix of the batch X (k, m, n).

    Example:
        >>> norm_bound(torch.tensor([[[3.0, 0.0], [0.0, -2.0]]])).tolist()
        [3.0]

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 6.3.
    """
    size = X.abs()
    return (size.sum(-2).amax(-1) * size.sum(-1).amax(-1)).sqrt()


def gram_norm_bound(G: Tensor) -> Tensor:
    """||G||_F^(1/2) >= ||X||_2 for each G = X^H X of the batch (k, n, n); at most n^(1/4) times too large.

    Example:
        >>> round(gram_norm_bound(torch.diag(torch.tensor([9.0, 4.0]))[None]).item(), 4)
        3.1383
    """
    # No entry is larger than the largest on the diagonal; squares of it need not be in range.
    largest = G.diagonal(dim1=-2, dim2=-1).real.amax(-1)
    scaled = G / torch.where(largest > 0, largest, 1.0)[:, None, None]
    return (largest * torch.linalg.matrix_norm(scaled)).sqrt()


def is_positive_definite(M: Tensor) -> Tensor:
    """Whether each Hermitian matrix of the batch M (*batch, n, n) has a Cholesky factor: bool, of shape batch.

    Certain for eigenvalues beyond n eps ||M|| on either side of zero, and no number is read from a device. It certifies
    bounds: b I - G is positive definite where b is above the largest eigenvalue of G.

    Example:
        >>> is_positive_definite(torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]]])).tolist()
        [True, False]
    """
    return cholesky(M)[1] == 0


def cholesky(M: Tensor) -> tuple[Tensor, Tensor]:
    """(R, info) with R^H R = M for each matrix of the batch M (*batch, n, n); info is not 0 where that failed.

    LAPACK's routine takes up to five times as long on a CPU where rows a power of two apart collide in the cache, so a
    few rows and columns of the identity are added to a large matrix.

    Example:
        >>> cholesky(torch.tensor([[[4.0, 2.0], [2.0, 5.0]]]))[0].tolist()
        [[[2.0, 1.0], [0.0, 2.0]]]
    """
    n = M.shape[-1]
    if n < _COLLIDING or n % 128:
        return torch.linalg.cholesky_ex(M, upper=True)
    padded = M.new_zeros(*M.shape[:-2], n + _PADDING, n + _PADDING)
    padded[..., :n, :n] = M
    padded[..., n:, n:].diagonal(dim1=-2, dim2=-1).fill_(1.0)
    R, info = torch.linalg.cholesky_ex(padded, upper=True)
    return R[..., :n, :n].contiguous(), info


def largest_eigenvalue(G: Tensor) -> Tensor:
    """An estimate, from below, of max |lambda| for each Hermitian matrix of the batch G (k, n, n).

    Power iteration; 8 steps are within a few parts in ten of the truth where the spectrum is dense at
    its end, and far closer where it is not.

    Example:
        >>> round(largest_eigenvalue(torch.diag(torch.tensor([1.0, -4.0]))[None]).item(), 3)
        4.0
    """
    V, _ = _unit_columns(_start(G.shape[-1], _vectors(G), G.dtype, G.device).expand(G.shape[0], -1, -1))
    value = torch.zeros(G.shape[0], dtype=V.real.dtype, device=G.device)
    for _ in range(_PRODUCTS):
        V, value = _unit_columns(G @ V)
    return value


def spectral_norm(X: Tensor, steps: int = _PRODUCTS) -> Tensor:
    """An estimate, from below, of ||X||_2 for each matrix of the batch X (k, m, n), by power iteration on X^H X.

    Of 8 steps the estimate may be a few parts in ten too low, of 30 a part in a hundred.

    Example:
        >>> round(spectral_norm(torch.diag(torch.tensor([1.0, -4.0]))[None]).item(), 3)
        4.0
    """
    n = X.shape[-1]
    # One start in thirty has next to nothing of the largest singular vector where the second is 0.8 of it: float32 does
    # not notice what comes of that, float64 does; and for a small matrix more vectors cost nothing.
    vectors = _VECTORS if n <= _SMALL or torch.finfo(X.dtype).bits == 64 else 1
    V, _ = _unit_columns(_start(n, vectors, X.dtype, X.device).expand(X.shape[0], -1, -1))
    value = torch.zeros(X.shape[0], dtype=V.real.dtype, device=X.device)
    for _ in range(steps):
        W, value = _unit_columns(X @ V)
        V, _ = _unit_columns(X.mH @ W)
    return value


def smallest_eigenvalue(R: Tensor) -> Tensor:
    """An estimate, from above, of lambda_min(R^H R) for upper triangular R (k, n, n); 0 or NaN for a singular R.

    Inverse iteration.

    Example:
        >>> round(smallest_eigenvalue(torch.diag(torch.tensor([3.0, 0.5]))[None]).item(), 3)
        0.25
    """
    V, _ = _unit_columns(_start(R.shape[-1], _VECTORS, R.dtype, R.device).expand(R.shape[0], -1, -1))
    value = torch.zeros(R.shape[0], dtype=V.real.dtype, device=R.device)
    for _ in range(_SOLVES):
        W = torch.linalg.solve_triangular(R.mH, V, upper=False)
        V, value = _unit_columns(torch.linalg.solve_triangular(R, W, upper=True))
    return 1.0 / value
