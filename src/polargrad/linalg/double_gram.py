"""The exact factor of a float32 matrix by way of its float64 Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.bounds import (
    cholesky,
    gram_norm_bound,
    is_positive_definite,
    largest_eigenvalue,
    smallest_eigenvalue,
)
from polargrad.linalg.kernels import gram, product
from polargrad.linalg.method import IterationResult, PolarMethod
from polargrad.linalg.precision import double_precision
from polargrad.linalg.qdwh import halley_operations, polar_by_halley
from polargrad.linalg.tall import TALL, is_tall, preconditioned_qr, sketch

__all__ = ["DoubleGram"]

# Up to this condition number a product X Z in float32 with ||Z|| = 1 / sigma_min rounds no worse than other methods.
_WELL_CONDITIONED = 16.0
# The estimates of bounds.py are inner ones. These margins widen them by what few iterations leave open. An upper bound
# that is too low even so is replaced by a certain one, and a lower bound that is too high shows at the end.
_UPPER_MARGIN = 1.06
_LOWER_MARGIN = 1.1
# What an estimate that was off costs at most: quintic steps.
_EXTRA_STEPS = 6
# Full rank is taken for granted only where sigma_min is this much above the cut-off; else eigenvalues decide.
_RANK_MARGIN = 2.0
# From this ratio of rows to columns on, a sketch of 4 n rows is cheap beside the Gram matrix.
_SKETCH_FROM = 20
# Batches of matrices that are not tall with at most so many columns go by eigenvalues, and tall ones by fewer columns:
# one call of LAPACK for each costs less than the calls of the iteration for all (benchmarks/small.py).
_EIGENVALUES, _EIGENVALUES_TALL = 48, 24
# Bytes of such a batch's Gram matrices at a time: fresh memory for those of a million matrices would cost a third more.
_PART_BYTES = 2**24
# Batches of matrices with at least this many columns are taken one by one, so that each stays in the cache.
_ONE_BY_ONE = 192
# Of the singular values of a usual square matrix, relative to the largest; the operations are counted for it.
_TYPICAL_LOWER_BOUND = 1e-3


class _Spectrum(NamedTuple):
    """A batch of Gram matrices G = R^H R and what is known of the singular values behind them."""

    G: Tensor  # (k, n, n)
    R: Tensor  # (k, n, n), upper triangular
    largest: Tensor  # (k,), at most sigma_max, or beyond it where an estimate is too low; size() is above sigma_max
    smallest: Tensor  # (k,), an estimate from above of sigma_min, or NaN
    full: Tensor  # bool (k,), full rank beyond doubt

    def ratio(self) -> float:
        """The smallest sigma_min / sigma_max of the batch, as estimated; NaN where one is singular."""
        return float((self.smallest / self.largest).min())

    def size(self) -> Tensor:
        """The divisor that brings singular values to at most 1, (k, 1, 1)."""
        return (_UPPER_MARGIN * self.largest)[:, None, None]

    def lower(self) -> float:
        """A lower bound on what then are the singular values."""
        return self.ratio() / (_UPPER_MARGIN * _LOWER_MARGIN)


@dataclass(frozen=True)
class DoubleGram(PolarMethod):
    """The partial isometry of a float32 or complex64 matrix on a CPU, backward stable at any condition number and rank.

    Products of float32 numbers are exact in float64, so G = X^H X carries an error of about 1e-16 ||X||^2: its
    eigenvalues resolve singular values down to 1e-8 ||X||, below the rounding of X itself. G leads to the factor by
    one of four ways, of which the first three ask for sigma_min > 2 cutoff sigma_max:

    - tall, condition up to 16: U = X (R^{-1} P) with G = R^H R and R = P H;
    - tall: Y = X R^{-1}, Y^H Y = S^H S, S R = P H, U = Y (S^{-1} P), a second pass that makes up for the condition.
      For m >= 20 n the first pass is over a sketch of 4 n rows, if that turns out to precondition well enough;
    - square: the Halley iteration on X, its first step from G;
    - any rank: G = V Lambda V^H; B = X V Lambda^{-1/2} over the eigenvalues above the cut-off, in
      float64, polished to orthonormal columns; U = B V^H.

    P comes from the Halley iteration, whose bounds are estimated from G and checked at the end.

    Args:
        cutoff: relative to the largest singular value; singular values at or below it are left out. None is
            eps sqrt(n) / 2 of the working dtype, at most 4 eps, 4.8e-7. Rounding a matrix of rank r to float32 perturbs
            it by at most eps / 2 ||X||_F <= eps sqrt(r) / 2 ||X||_2, and by far less than that in the spectral norm of
            a large one unless all rounding errors conspire, so that null directions stay below the cut-off.

    Source: Yamazaki, Tomov, Dongarra (2015) for the mixed-precision Gram matrix; Nakatsukasa, Bai, Gygi (2010) for
        the iteration.
    """

    name: ClassVar[str] = "double-gram"
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.cutoff is not None and not 1e-7 <= self.cutoff < 1.0:
            raise ValueError(
                f"cutoff must lie in [1e-7, 1) or be None, got {self.cutoff}: float64 Gram matrices resolve no less"
            )

    def iterate(self, X: Tensor) -> IterationResult:
        if X.dtype not in (torch.float32, torch.complex64):
            raise TypeError(f"{type(self).__name__} is for float32 or complex64 work, got {X.dtype}; use 'svd'")
        if X.shape[0] > 1 and X.shape[-1] <= (_EIGENVALUES_TALL if is_tall(X) else _EIGENVALUES):
            most = max(1, _PART_BYTES // (X.shape[-1] ** 2 * double_precision(X.dtype).itemsize))
            parts = [self._by_eigenvalues(part, gram(part, double_precision(X.dtype))) for part in X.split(most)]
            return IterationResult(parts[0] if len(parts) == 1 else torch.cat(parts), steps=1)
        if X.shape[0] == 1 or X.shape[-1] < _ONE_BY_ONE:
            return self._by_rank(X)
        parts = [self._by_rank(x[None]) for x in X]
        return IterationResult(torch.cat([part.unitary for part in parts]), steps=max(part.steps for part in parts))

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Operations for a matrix of full rank and a condition number of 1000 on a CPU."""
        work = self.working_dtype(dtype)
        if m < TALL * n:
            return operations.cholesky(n) + halley_operations(m, n, _TYPICAL_LOWER_BOUND, work)
        # G = R^H R, Y = X R^{-1}, Y^H Y = S^H S, Halley steps on S R, a solve with S, and the product of Y with that.
        reduction = 2 * (operations.gram(m, n) + operations.cholesky(n)) + operations.product(m, n) / 2
        halley = halley_operations(n, n, _TYPICAL_LOWER_BOUND, work)
        return reduction + halley + operations.product(n, n) / 2 + operations.product(m, n)

    def _cutoff(self, X: Tensor) -> float:
        return torch.finfo(X.dtype).eps * min(4.0, X.shape[-1] ** 0.5 / 2) if self.cutoff is None else self.cutoff

    def _by_rank(self, X: Tensor) -> IterationResult:
        """Sort the matrices of a batch on the CPU by whether they have full rank beyond doubt."""
        if X.shape[0] == 1 and X.shape[-2] >= _SKETCH_FROM * X.shape[-1] and X.shape[-1] >= _ONE_BY_ONE:
            done = self._from_sketch(X)
            if done is not None:
                return done
        known = self._spectrum(gram(X, double_precision(X.dtype)), self._cutoff(X))
        if bool(known.full.all()):
            return self._full_rank(X, known)
        if not bool(known.full.any()):
            return IterationResult(self._by_eigenvalues(X, known.G), steps=1)
        U = X.new_empty(X.shape)
        full = known.full
        done = self._full_rank(X[full], _Spectrum(*(part[full] for part in known)))
        U[full], U[~full] = done.unitary, self._by_eigenvalues(X[~full], known.G[~full])
        return IterationResult(U, steps=done.steps)

    def _spectrum(self, G: Tensor, cutoff: float) -> _Spectrum:
        R, info = cholesky(G)
        largest, smallest = largest_eigenvalue(G).sqrt(), smallest_eigenvalue(R).sqrt()
        bound = (_UPPER_MARGIN * torch.where(largest > 0, largest, 1.0)).square()[:, None, None]
        M = (G / -bound).to(torch.complex64 if G.is_complex() else torch.float32)
        M.diagonal(dim1=-2, dim2=-1).add_(1.0)
        largest = torch.where(is_positive_definite(M), largest, gram_norm_bound(G))
        full = (info == 0) & (smallest > _RANK_MARGIN * cutoff * largest)
        return _Spectrum(G, R, largest, smallest, full)

    def _full_rank(self, X: Tensor, known: _Spectrum) -> IterationResult:
        size, lower, R = known.size(), known.lower(), known.R
        if not is_tall(X):
            return self._mended(X, known, *polar_by_halley(X, lower, size=size, G=known.G, extra_steps=_EXTRA_STEPS))
        extra_steps = _EXTRA_STEPS
        if known.ratio() * _WELL_CONDITIONED >= 1.0:
            Y, S, T = X, R, R / size
            extra_steps = 2  # a condition number that was underestimated by more loses accuracy here
        else:
            Y, S = preconditioned_qr(X, R)
            T = S @ (R / size).to(X.dtype)
        # T^H rather than T: its columns are graded, not its rows, which rounds better.
        P, steps = polar_by_halley(T.mH.to(X.dtype), lower, extra_steps=extra_steps)
        Z = torch.linalg.solve_triangular(S, P.mH.to(S.dtype), upper=True)
        return self._mended(X, known, product(Y, Z.to(X.dtype)), steps)

    def _mended(self, X: Tensor, known: _Spectrum, U: Tensor, steps: int) -> IterationResult:
        """U, by eigenvalues where the bounds were so far off that the iteration gave up."""
        lost = U[:, 0, 0].isnan()
        if bool(lost.any()):
            U[lost] = self._by_eigenvalues(X[lost], known.G[lost])
        return IterationResult(U, steps)

    def _from_sketch(self, X: Tensor) -> IterationResult | None:
        """The second way with R from a sketch of one X; None where X is too well or ill conditioned, or R too poor."""
        cutoff = self._cutoff(X)
        sketched = self._spectrum(gram(sketch(X), double_precision(X.dtype)), cutoff)
        if not cutoff < sketched.ratio() < 1.0 / _WELL_CONDITIONED:
            return None
        Y, S = preconditioned_qr(X, sketched.R)
        if not self._spectrum(S.mH @ S, cutoff).ratio() * _WELL_CONDITIONED > 1.0:
            return None
        T = (S.to(sketched.R.dtype) @ sketched.R).mH.to(X.dtype)
        known = self._spectrum(gram(T, sketched.R.dtype), cutoff)
        if not bool(known.full.all()):
            return None
        P, steps = polar_by_halley(T, known.lower(), size=known.size(), G=known.G, extra_steps=_EXTRA_STEPS)
        if bool(P[0, 0, 0].isnan()):
            return None
        return IterationResult(product(Y, torch.linalg.solve_triangular(S, P.mH, upper=True)), steps)

    def _by_eigenvalues(self, X: Tensor, G: Tensor) -> Tensor:
        values, V = torch.linalg.eigh(G)
        sigma = values.clamp_min(0.0).sqrt()
        kept = sigma > self._cutoff(X) * sigma[:, -1:]
        first = int((~kept).all(0).sum())  # eigenvalues ascend: leave out what no matrix of the batch keeps
        sigma, kept, V = sigma[:, first:], kept[:, first:], V[:, :, first:]
        B = product(X, V * torch.where(kept, 1.0 / torch.where(kept, sigma, 1.0), 0.0)[:, None, :])
        # The columns of small singular values are orthonormal up to 1e-16 / sigma^2 only: (I + F)^{-1/2} mends that.
        F = gram(B) - torch.diag_embed(kept.to(B.dtype))
        W = V.mH.to(B.dtype)
        W = W - 0.5 * (F @ (W - 0.75 * (F @ W)))
        return product(B, W)
