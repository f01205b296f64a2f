"""Bounds on the extreme singular values from the Gram matrix and its Cholesky factor, for a few products with a vector.

The rigorous bound (`norm_bound`) may be far off. The estimates come from power or inverse iteration
and lie on the inner side: never above the largest, never below the smallest, beyond rounding. Their users leave a
margin, and check what came of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polargrad.linalg.compilation import compile_constant

__all__ = ["largest_eigenvalue", "norm_bound", "smallest_eigenvalue", "spectral_norm"]

# A product of a large matrix with one vector is bound by memory, and far faster than one with a few; solves are not.
_LARGE = 256
_PRODUCTS = 8
_SOLVES = 4
_VECTORS = 8
_SMALL = 128


@compile_constant
def _start(n: int, vectors: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, vectors): random, so that no matrix is orthogonal to it by its structure, and always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, vectors, generator=generator, dtype=torch.float64).to(dtype).to(device)


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


def spectral_norm(X: Tensor) -> Tensor:
    """An estimate, from below, of ||X||_2 for each matrix of the batch X (k, m, n), by power iteration on X^H X.

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
    for _ in range(_PRODUCTS):
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
