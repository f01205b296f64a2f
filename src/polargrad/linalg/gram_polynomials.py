"""The exact factor of a float32 matrix by products alone: polynomials of its float64 Gram matrix, in two passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.method import IterationResult, PolarMethod, register
from polargrad.linalg.precision import double_precision
from polargrad.linalg.qdwh import halley_on_gram, halley_weights

__all__ = ["FIRST_PASS", "SECOND_PASS", "GramPolynomials"]


class Nonic(NamedTuple):
    """q(M) = e (M^2 + r M + s I)(M^2 + t M + u I): the even part of an odd polynomial p(x) = x q(x^2) of degree 9."""

    e: float
    r: float
    s: float
    t: float
    u: float


# The greedy composition of minimax polynomials of degree 9 for singular values in [_LOWER, 1]: each is the best one on
# the interval that the previous ones left. The first six leave [0.0739, 1.9261], all nine [1 - 3.2e-8, 1 + 3.2e-8].
# tests/linalg/test_gram_polynomials.py generates them.
_LOWER = 2e-7
_ROWS: tuple[Nonic, ...] = (
    Nonic(279.8977101286838, -0.5267873166503539, 0.06937627403486415, -1.770486084493136, 0.7836552737317212),
    Nonic(0.5466725176456355, -2.1071427018426148, 1.110019261366312, -7.0819260632751115, 12.538422829649493),
    Nonic(0.5466445092863377, -2.1070991669565893, 1.1100174730788044, -7.0818085746212, 12.538030853532064),
    Nonic(0.5464315507247077, -2.106767978532152, 1.1100039289328345, -7.080914828825779, 12.535049307523611),
    Nonic(0.5448196711984197, -2.1042511100627745, 1.1099044718306526, -7.07412513818609, 12.512413159405352),
    Nonic(0.5330265730567965, -2.085275021145121, 1.1093518310229633, -7.023066682198694, 12.34300113341125),
    Nonic(0.4644740123461652, -1.95052238158622, 1.1153306925036839, -6.667196089537218, 11.202039569001132),
    Nonic(0.31632530232901057, -1.3287510907228832, 1.3556954140868143, -5.164887151082295, 7.1509902317157445),
    Nonic(0.27357284535596166, -0.904056673992801, 1.7080042982779198, -4.244170233167307, 5.27046716879753),
)
# What all of them do to [_SIGMA_FLOOR, 1], and the smallest singular value that G resolves with a margin.
_SIGMA_FLOOR, _DEVIATION = 4e-7, 3.2e-8
FIRST_PASS, SECOND_PASS = _ROWS[:6], _ROWS[6:]

# From so many columns on a factorization costs less than the products that it saves (benchmarks/gpu.py).
_HALLEY_FROM = 2048
# A Gram matrix of at least this ratio of rows to columns is formed by so many block rows of its lower triangle.
_TALL = 8
_BLOCK_ROWS = 3


@register
@dataclass(frozen=True)
class GramPolynomials(PolarMethod):
    """The unitary factor of a matrix by products in float64: no factorization, no number read from the device.

    Products of float32 numbers are exact in float64, so G = X^H X knows singular values down to 1e-8 ||X||, below the
    rounding of a float32 X itself; of float64 input the factor has single precision. With
    polynomials q_k and M_1 = G / tau, tau = ||G^2||_F^(1/2) >= ||X||_2^2::

        Q_k = q_k(M_k),   M_(k+1) = M_k Q_k^2         for k = 1, ..., 6
        Y = X Q_1 ... Q_6 / tau^(1/2),   M_7 = Y^H Y
        U = Y Q_7 Q_8 Q_9

    The first pass brings singular values from 2e-7 ||X||_F on into [0.07, 1.93]; M_7, formed anew, knows nothing of
    what rounding did to M_6. Three polynomials then reach 1 to within 3.2e-8: about 38 products of n x n matrices and 4
    of m x n ones. From n = 2048 on two Halley steps by Cholesky factorization take the place of the first seven
    polynomials, since they cost less there. Singular values above 4 eps ||X||_F go to 1, within rounding; those of null
    directions end somewhere in [0, 1], as with QDWH. For devices on which float64 products are as fast as float32 ones
    (GPUs of the data centre), where it is the choice of `auto`; it runs anywhere.

    Example:
        >>> import torch
        >>> U = GramPolynomials().iterate(torch.diag(torch.tensor([2.0, -3e-4]))[None]).unitary
        >>> U[0].tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: the two-pass scheme is this library's; composition of minimax polynomials: Amsel, Persson, Musco, Gower
        (arXiv 2505.16932), algorithm 1; products alone on the Gram matrix: Gram Newton-Schulz (Dao AI Lab 2026).
    """

    name: ClassVar[str] = "gram-polynomials"
    confines_nonfinite: ClassVar[bool] = True
    peak_memory: ClassVar[float] = 24.0

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        return 1.0 - _DEVIATION, 1.0 + _DEVIATION

    def rounding(self, dtype: torch.dtype, n: int) -> float:
        """The rounding of single precision: what G does not resolve of a float64 X turns U by the root of its eps."""
        single = torch.complex64 if dtype.is_complex else torch.float32
        return super().rounding(single, n)

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Two Gram matrices and two products of m rows, and 4 or 5 products of n x n matrices for every polynomial.

        A Halley step counts as 5 products: factorization and inverse, two products, and passes over memory.
        """
        if n < _HALLEY_FROM:
            small = sum(5 * len(rows) - 3 for rows in (FIRST_PASS, SECOND_PASS))
        else:
            small = 10 + 5 * len(SECOND_PASS[1:]) - 3 + 1
        return 2 * (operations.gram(m, n) + operations.product(m, n)) + small * operations.product(n, n)

    def sigma_floor(self, dtype: torch.dtype) -> float:
        return max(super().sigma_floor(dtype), _SIGMA_FLOOR)

    def iterate(self, X: Tensor) -> IterationResult:
        double = X.to(double_precision(X.dtype))
        G = _gram(double)
        G2 = G @ G
        tau = torch.linalg.matrix_norm(G2, keepdim=True).sqrt()
        tau = torch.where(tau > 0, tau, 1.0)
        if X.shape[-1] < _HALLEY_FROM:
            root, second = _inverse_root(G / tau, FIRST_PASS, G2 / tau.square()), SECOND_PASS
        else:
            weights = halley_weights(_LOWER, _DEVIATION)[:2]
            root = torch.cat([halley_on_gram(g[None], weights)[0] for g in G.div_(tau)])
            second = SECOND_PASS[1:]
        del G, G2
        Y = double @ root.div_(tau.sqrt())
        del double, root
        return IterationResult((Y @ _inverse_root(_gram(Y), second)).to(X.dtype), steps=len(_ROWS))


def _gram(X: Tensor) -> Tensor:
    """X^H X (k, n, n); of a tall X two thirds of it, and the rest by symmetry."""
    k, m, n = X.shape
    if k > 1 or m < _TALL * n or n < 128 * _BLOCK_ROWS:
        return X.mH @ X
    G = X.new_empty(1, n, n)
    edges = [n * i // _BLOCK_ROWS for i in range(_BLOCK_ROWS + 1)]
    for start, end in pairwise(edges):
        block = X[0, :, start:end].mH @ X[0, :, :end]
        G[0, start:end, :end] = block
        G[0, :start, start:end] = block[:, :start].mH
    return G


def _inverse_root(M: Tensor, rows: Sequence[Nonic], M2: Tensor | None = None) -> Tensor:
    """q_1(M_1) q_2(M_2) ... with M_(k+1) = M_k q_k(M_k)^2, near M^{-1/2}; functions of M, all of which commute."""
    P = None
    for row in rows:
        Q = _polynomial(M, M @ M if M2 is None else M2, row)
        M2, P = None, Q if P is None else P @ Q
        if row is not rows[-1]:
            M = (M @ Q) @ Q
    assert P is not None
    return P


def _polynomial(M: Tensor, M2: Tensor, row: Nonic) -> Tensor:
    """q(M) = e (M^2 + r M + s I)(M^2 + t M + u I)."""
    left = torch.add(M2, M, alpha=row.r)
    left.diagonal(dim1=-2, dim2=-1).add_(row.s)
    right = torch.add(M2, M, alpha=row.t)
    right.diagonal(dim1=-2, dim2=-1).add_(row.u)
    return torch.baddbmm(M, left, right, beta=0, alpha=row.e)
