"""The shared gallery: matrices that break polar algorithms, each by name, made in double precision and then rounded."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["GALLERY", "SPECTRA", "make", "random_orthonormal", "singular_values", "with_singular_values"]


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(m: int, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(m, n, dtype=_wide_dtype(dtype), generator=_generator(seed))


def random_orthonormal(m: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Haar-distributed orthonormal columns (m >= n)."""
    Q, R = torch.linalg.qr(gaussian(m, n, dtype, seed))
    return Q * R.diagonal().sgn()


# Singular values of k dimensions, largest first. Zeros make the rank deficient.
SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "log-1e3": lambda k: torch.logspace(0, -3, k, dtype=torch.float64),
    "log-1e6": lambda k: torch.logspace(0, -6, k, dtype=torch.float64),
    "log-1e12": lambda k: torch.logspace(0, -12, k, dtype=torch.float64),
    "clustered": lambda k: (
        torch.where(torch.arange(k) < (k + 1) // 2, 1.0, 1e-3).double() * (1 + 1e-9 * torch.arange(k))
    ),
    "duplicates": lambda k: 1.0 / (1 + torch.arange(k) // 2).double(),
    "powers-of-two": lambda k: 2.0 ** -torch.arange(k).double(),
    "arithmetic": lambda k: 1.0 - torch.arange(k).double() / (k + 1),
    "rank-deficient": lambda k: torch.where(torch.arange(k) < (k + 1) // 2, 1.0, 0.0).double(),
    "rank-deficient-graded": lambda k: torch.where(
        torch.arange(k) < (k + 1) // 2, torch.logspace(0, -2, k, dtype=torch.float64), 0.0
    ),
    "one-dominant": lambda k: torch.where(torch.arange(k) < 1, 1.0, 1e-4).double(),
    "one-small": lambda k: torch.where(torch.arange(k) < k - 1, 1.0, 1e-5 if k > 1 else 1.0).double(),
    "equal": lambda k: torch.full((k,), 0.3, dtype=torch.float64),
}


def singular_values(spectrum: str, k: int) -> Tensor:
    return SPECTRA[spectrum](k)


def with_singular_values(m: int, n: int, sigma: Tensor, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """P diag(sigma) Q^H with Haar P and Q, in double precision."""
    k = min(m, n)
    P = random_orthonormal(m, k, dtype, seed)
    Q = random_orthonormal(n, k, dtype, seed + 1)
    return (P * sigma.to(P.dtype)) @ Q.mH


def _hilbert(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    i, j = torch.arange(m, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    return (1.0 / (i + j + 1)).to(_wide_dtype(dtype))


def _kahan(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Upper trapezoidal diag(s^i) (I - c (strictly upper)): triangular, badly ranked by its diagonal."""
    c, s = math.cos(1.2), math.sin(1.2)
    upper = torch.eye(m, n, dtype=torch.float64) - c * torch.ones(m, n, dtype=torch.float64).triu(1)
    return (s ** torch.arange(m).double()[:, None] * upper).to(_wide_dtype(dtype))


def _frank(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Upper Hessenberg with determinant 1 and ill-conditioned small eigenvalues: n + 1 - max(i, j)."""
    size = max(m, n)
    i, j = torch.arange(1, m + 1)[:, None], torch.arange(1, n + 1)
    return torch.where(j >= i - 1, (size + 1 - torch.maximum(i, j)).double(), 0.0).to(_wide_dtype(dtype))


def _graded(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Rows and columns scaled by falling powers: entries over many orders of magnitude."""
    rows = torch.logspace(0, -4, m, dtype=torch.float64)[:, None]
    return rows * gaussian(m, n, dtype, seed) * torch.logspace(0, -4, n, dtype=torch.float64)


def _scaled(size: Callable[[torch.dtype], float]) -> Callable[[int, int, torch.dtype, int], Tensor]:
    def build(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
        A = gaussian(m, n, dtype, seed)
        return A / A.abs().max() * size(dtype)

    return build


def _signed_permutation(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    g = _generator(seed)
    k = min(m, n)
    A = torch.zeros(m, n, dtype=_wide_dtype(dtype))
    signs = torch.randint(0, 2, (k,), generator=g) * 2 - 1
    A[torch.randperm(m, generator=g)[:k], torch.randperm(n, generator=g)[:k]] = signs.to(A.dtype)
    return A


def _orthonormal(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    return random_orthonormal(m, n, dtype, seed) if m >= n else random_orthonormal(n, m, dtype, seed).mH


def _single_entry(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    A = torch.zeros(m, n, dtype=_wide_dtype(dtype))
    A[m // 2, n // 2] = -3.0
    return A


def _zero_column(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    A = gaussian(m, n, dtype, seed)
    A[:, n // 2] = 0.0
    return A


def _equal_columns(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    A = gaussian(m, n, dtype, seed)
    A[:, -1] = A[:, 0]
    return A


def _from_spectrum(name: str) -> Callable[[int, int, torch.dtype, int], Tensor]:
    def build(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
        return with_singular_values(m, n, singular_values(name, min(m, n)), dtype, seed)

    return build


def _ones(m: int, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.ones(m, n, dtype=_wide_dtype(dtype))


# Name -> builder(m, n, dtype, seed) in double precision.
GALLERY: dict[str, Callable[[int, int, torch.dtype, int], Tensor]] = {
    "gaussian": gaussian,
    **{name: _from_spectrum(name) for name in SPECTRA},
    "graded": _graded,
    "hilbert": _hilbert,
    "kahan": _kahan,
    "frank": _frank,
    "near-overflow": _scaled(lambda dtype: 0.9 * torch.finfo(dtype).max),
    "near-underflow": _scaled(lambda dtype: 16.0 * torch.finfo(dtype).tiny / torch.finfo(dtype).eps),
    "subnormal": _scaled(lambda dtype: torch.finfo(dtype).tiny),
    "scaled-1e30": _scaled(lambda dtype: min(1e30, 0.5 * torch.finfo(dtype).max)),
    "scaled-1e-30": _scaled(lambda dtype: max(1e-30, 16.0 * torch.finfo(dtype).tiny / torch.finfo(dtype).eps)),
    "signed-permutation": _signed_permutation,
    "orthonormal": _orthonormal,
    "identity": lambda m, n, dtype, seed: torch.eye(m, n, dtype=_wide_dtype(dtype)),
    "upper-ones": lambda m, n, dtype, seed: _ones(m, n, dtype, seed).triu(),
    "nilpotent": lambda m, n, dtype, seed: torch.eye(m, n, dtype=_wide_dtype(dtype)).roll(1, -1).triu(1),
    "ones": _ones,
    "single-entry": _single_entry,
    "zero-column": _zero_column,
    "equal-columns": _equal_columns,
    "zero": lambda m, n, dtype, seed: torch.zeros(m, n, dtype=_wide_dtype(dtype)),
}


def make(
    name: str, m: int, n: int, dtype: torch.dtype = torch.float32, batch: tuple[int, ...] = (), seed: int = 0
) -> Tensor:
    """The named matrix (*batch, m, n) rounded to dtype; every matrix of a batch has a seed of its own."""
    count = math.prod(batch)
    stack = [GALLERY[name](m, n, dtype, seed + 2 * i).to(dtype) for i in range(count)]
    return torch.stack(stack).reshape(*batch, m, n) if stack else torch.zeros(*batch, m, n, dtype=dtype)
