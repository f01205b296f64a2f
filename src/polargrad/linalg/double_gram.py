"""The exact factor of a float32 matrix by way of its float64 Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.bounds import largest_eigenvalue, smallest_eigenvalue
from polargrad.linalg.kernels import gram, product
from polargrad.linalg.method import Iterate, PolarMethod
from polargrad.linalg.qdwh import double_precision, orthonormalize
from polargrad.linalg.tall import is_tall, preconditioned_qr

__all__ = ["DoubleGram"]

# Up to this condition number a product X Z in float32 with ||Z|| = 1 / sigma_min rounds no worse than other methods.
_WELL_CONDITIONED = 16.0
# The estimates of bounds.py are inner ones. These margins widen them by what 4 iterations leave open.
_UPPER_MARGIN = 1.06
_LOWER_MARGIN = 1.1
# What an estimate that was off costs at most: quintic steps.
_EXTRA_STEPS = 12
# Full rank is taken for granted only where sigma_min is this much above the cut-off; else eigenvalues decide.
_RANK_MARGIN = 2.0
# Batches of matrices with at least this many columns are taken one by one, so that each stays in the cache.
_ONE_BY_ONE = 192


@dataclass(frozen=True)
class DoubleGram(PolarMethod):
    """The partial isometry of a float32 or complex64 matrix, backward stable at any condition number and rank.

    Products of float32 numbers are exact in float64, so G = X^H X carries an error of about 1e-16 ||X||^2: its
    eigenvalues resolve singular values down to 1e-8 ||X||, below the rounding of X itself. G leads to the factor by
    one of four ways, of which the first three ask for sigma_min > 2 cutoff sigma_max:

    - tall, condition up to 16: U = X (R^{-1} P) with G = R^H R and R = P H;
    - tall: Y = X R^{-1}, Y^H Y = S^H S, S R = P H, U = Y (S^{-1} P), a second pass that makes up for the condition;
    - square: the Halley iteration on X, its first step from G;
    - any rank, or not on a CPU: G = V Lambda V^H; B = X V Lambda^{-1/2} over the eigenvalues above the cut-off, in
      float64, polished to orthonormal columns; U = B V^H. Fixed sequence of operations on a GPU.

    P comes from the Halley iteration, whose bounds are estimated from G and checked at the end.

    Args:
        cutoff: relative to the largest singular value; singular values at or below it are left out. None is 4 eps of
            the working dtype, 4.8e-7. Rounding a matrix of rank r to float32 perturbs it by at most
            eps / 2 ||X||_F <= eps sqrt(r) / 2 ||X||_2, and by far less than that in the spectral norm unless all
            rounding errors conspire, so that null directions stay below the cut-off.

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

    def iterate(self, X: Tensor) -> Iterate:
        if X.dtype not in (torch.float32, torch.complex64):
            raise TypeError(f"{type(self).__name__} is for float32 or complex64 work, got {X.dtype}; use 'svd'")
        if X.device.type != "cpu" or torch.compiler.is_compiling():
            return Iterate(self._by_eigenvalues(X, gram(X, double_precision(X.dtype))), steps=1)
        if X.shape[0] == 1 or X.shape[-1] < _ONE_BY_ONE:
            return self._by_rank(X)
        parts = [self._by_rank(x[None]) for x in X]
        return Iterate(torch.cat([part.unitary for part in parts]), steps=max(part.steps for part in parts))

    def _cutoff(self, dtype: torch.dtype) -> float:
        return 4 * torch.finfo(dtype).eps if self.cutoff is None else self.cutoff

    def _by_rank(self, X: Tensor) -> Iterate:
        """Sort the matrices of a batch on the CPU by whether they have full rank beyond doubt."""
        G = gram(X, double_precision(X.dtype))
        R, info = torch.linalg.cholesky_ex(G, upper=True)
        largest, smallest = largest_eigenvalue(G).sqrt(), smallest_eigenvalue(R).sqrt()
        full = (info == 0) & (smallest > _RANK_MARGIN * self._cutoff(X.dtype) * largest)
        if bool(full.all()):
            return self._full_rank(X, G, R, largest, float((smallest / largest).min()))
        if not bool(full.any()):
            return Iterate(self._by_eigenvalues(X, G), steps=1)
        U = torch.empty(X.shape, dtype=X.dtype)
        ratio = float((smallest / largest)[full].min())
        done = self._full_rank(X[full], G[full], R[full], largest[full], ratio)
        U[full], U[~full] = done.unitary, self._by_eigenvalues(X[~full], G[~full])
        return Iterate(U, steps=done.steps)

    def _full_rank(self, X: Tensor, G: Tensor, R: Tensor, largest: Tensor, ratio: float) -> Iterate:
        size = (_UPPER_MARGIN * largest)[:, None, None]
        lower = ratio / (_UPPER_MARGIN * _LOWER_MARGIN)
        if not is_tall(X):
            return Iterate(*orthonormalize(X, lower, size=size, G=G, extra_steps=_EXTRA_STEPS))
        if ratio * _WELL_CONDITIONED >= 1.0:
            Y, S, T = X, R, R / size
        else:
            Y, S = preconditioned_qr(X, R)
            T = S @ (R / size).to(X.dtype)
        # T^H rather than T: its columns are graded, not its rows, which rounds better.
        P, steps = orthonormalize(T.mH.to(X.dtype), lower, extra_steps=_EXTRA_STEPS)
        P = P.mH
        Z = torch.linalg.solve_triangular(S, P.to(S.dtype), upper=True)
        return Iterate(product(Y, Z.to(X.dtype)), steps)

    def _by_eigenvalues(self, X: Tensor, G: Tensor) -> Tensor:
        values, V = torch.linalg.eigh(G)
        sigma = values.clamp_min(0.0).sqrt()
        kept = sigma > self._cutoff(X.dtype) * sigma[:, -1:]
        if X.device.type == "cpu":
            first = int((~kept).all(0).sum())  # eigenvalues ascend: leave out what no matrix of the batch keeps
            sigma, kept, V = sigma[:, first:], kept[:, first:], V[:, :, first:]
        B = product(X, V * torch.where(kept, 1.0 / torch.where(kept, sigma, 1.0), 0.0)[:, None, :])
        # The columns of small singular values are orthonormal up to 1e-16 / sigma^2 only: (I + F)^{-1/2} mends that.
        F = gram(B) - torch.diag_embed(kept.to(B.dtype))
        W = V.mH.to(B.dtype)
        W = W - 0.5 * (F @ (W - 0.75 * (F @ W)))
        return product(B, W)
