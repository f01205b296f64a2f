"""ZOLO-PD: two steps of Zolotarev's rational function, whose terms are independent of each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.bounds import gram_norm_bound
from polargrad.linalg.coefficients import CUBIC
from polargrad.linalg.kernels import gram, product
from polargrad.linalg.method import Accuracy, IterationResult, PolarMethod, check_count, check_lower_bound, register
from polargrad.linalg.newton_schulz import iterate_polynomials, normalize_frobenius
from polargrad.linalg.precision import double_precision
from polargrad.linalg.zolotarev import MAX_DEGREE, Zolotarev, zolotarev_schedule

__all__ = ["ZoloPD"]

# X^H X + c I with ||X|| <= 1 has a condition number of at most 1 + 1/c: from this shift on, its Cholesky factorization
# loses three digits at worst, and that in directions that lie below the lower bound.
_CHOLESKY_SHIFT = 1e-3
# The same for float32 data with the Gram matrix formed and factored in float64. The Gram matrix then differs from that
# of X by 1e-16, as if X differed by 1e-16 / sigma <= 1e-9: far below the rounding of float32 data.
_DOUBLE_CHOLESKY_SHIFT = 1e-14
# Entries of the matrices of a step that are factored together (128 MB in double precision).
_BLOCK = 2**24


def _together(step: Zolotarev, entries: int) -> Iterator[list[tuple[float, float]]]:
    """The pairs (a_j, c_j) in groups whose matrices, of so many entries each, fit: a GPU factors a group as one batch.

    They stay numbers of the host, since a tensor of them would stop the queue of a GPU to be copied.
    """
    pairs = list(zip(step.weights, step.shifts, strict=True))
    size = max(1, _BLOCK // entries)
    return (pairs[first : first + size] for first in range(0, len(pairs), size))


def _cholesky_terms(G: Tensor, step: Zolotarev) -> tuple[Tensor, Tensor]:
    """I + sum_j a_j (G + c_j I)^{-1}, and where a factorization failed (k,)."""
    k, n, _ = G.shape
    eye = torch.eye(n, dtype=G.dtype, device=G.device)
    total = eye.repeat(k, 1, 1)
    failed = torch.zeros(k, dtype=torch.bool, device=G.device)
    for pairs in _together(step, k * n * n):
        L, info = torch.linalg.cholesky_ex(torch.stack([G + c * eye for _, c in pairs]))
        for (a, _), inverse in zip(pairs, torch.cholesky_inverse(L), strict=True):
            total.add_(inverse, alpha=a)
        failed |= (info != 0).any(0)
    return total, failed


def _qr_terms(X: Tensor, step: Zolotarev) -> Tensor:
    """X + sum_j a_j X (X^H X + c_j I)^{-1} by [X; sqrt(c_j) I] = [Q1; Q2] R, where the term is Q1 Q2^H / sqrt(c_j)."""
    k, m, n = X.shape
    eye = torch.eye(n, dtype=X.dtype, device=X.device).expand(k, n, n)
    total = X.clone()
    for pairs in _together(step, k * (m + n) * n):
        Q, _ = torch.linalg.qr(torch.stack([torch.cat([X, math.sqrt(c) * eye], dim=-2) for _, c in pairs]))
        for (a, c), term in zip(pairs, Q[..., :m, :] @ Q[..., m:, :].mH, strict=True):
            total.add_(term, alpha=a / math.sqrt(c))
    return total


@register
@dataclass(frozen=True)
class ZoloPD(PolarMethod):
    """X <- Z(X) with Zolotarev's best rational functions: two steps to full accuracy at any condition number.

    X <- s (X + sum_j a_j X (X^H X + c_j I)^{-1}), j = 1, ..., degree, with s, a_j, c_j from the lower bound on the
    singular values. The terms of a step are independent and computed as one batch: by Cholesky factorization where
    the shift c_j is large enough for that to be stable, in float64 for float32 input, and by QR of [X; sqrt(c_j) I]
    elsewhere (float64 input, first step). One cubic Newton-Schulz step polishes a converged factor.

    Args:
        degree: terms per step, 1 to 8, or None for the fewest that converge in two steps (3 in float32, 6 in float64,
            at the default lower bound).
        max_steps: None runs to convergence and polishes; a number stops after so many steps.
        lower_bound: lower bound on sigma_min / ||A||_F, at least 1e-100; None is eps of the working dtype. Singular
            values below it end in [0, 1].

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> import torch
        >>> U = ZoloPD().iterate(torch.diag(torch.tensor([1.0, -1e-6]))[None]).unitary
        >>> U[0].round(decimals=5).tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: Nakatsukasa and Freund, SIAM Review 58 (2016), algorithm 5.1.
    """

    name: ClassVar[str] = "zolo-pd"
    degree: int | None = None
    max_steps: int | None = None
    lower_bound: float | None = None

    def __post_init__(self) -> None:
        check_count("degree", self.degree, MAX_DEGREE)
        check_count("max_steps", self.max_steps)
        if self.lower_bound is not None:
            check_lower_bound(self.lower_bound, 1e-100)

    def with_accuracy(self, accuracy: Accuracy, dtype: torch.dtype) -> ZoloPD:
        """The smallest degree whose two steps reach `accuracy` without a polish."""
        for degree in range(1, MAX_DEGREE + 1):
            method = replace(self, degree=degree, max_steps=2)
            if accuracy != "full" and method.tolerance(self.working_dtype(dtype), 1) <= accuracy:
                return method
        super().with_accuracy(accuracy, dtype)
        return self

    def sigma_floor(self, dtype: torch.dtype) -> float:
        return self.lower_bound or torch.finfo(dtype).eps

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        steps, polish = self.schedule(dtype)
        return (1.0 if polish else steps[-1].lower), 1.0

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Every term of a step by a Cholesky factorization and inverse, or by the QR of [X; sqrt(c) I]."""
        work = self.working_dtype(dtype)
        steps, polish = self.schedule(work)
        total, rows = 0.0, m
        if self._arithmetic(steps[0], work) == "qr":
            total, rows = operations.qr(m, n) + operations.product(m, n), n
        for step in steps:
            if self._arithmetic(step, work) == "qr":
                total += len(step.shifts) * (operations.qr(rows + n, n) + operations.product(rows, n))
            else:
                term = operations.cholesky(n) + 2 * operations.triangular_inverse(n)
                total += operations.gram(rows, n) + len(step.shifts) * term + operations.product(rows, n)
        return total + (operations.polynomial(rows, n, quintic=False) if polish else 0.0)

    def schedule(self, dtype: torch.dtype) -> tuple[tuple[Zolotarev, ...], bool]:
        """The steps for work in `dtype`, and whether they converge, so that the polish is due."""
        # The polish squares what the steps leave.
        deviation = 0.5 * math.sqrt(torch.finfo(dtype).eps)
        lower = min(self.sigma_floor(dtype), 1.0 - 2.0 * deviation)  # at least one step
        converged = zolotarev_schedule(lower, deviation, self.degree)
        steps = converged[: self.max_steps]
        return steps, len(steps) == len(converged)

    def iterate(self, X: Tensor) -> IterationResult:
        steps, polish = self.schedule(X.dtype)
        failed = torch.zeros(X.shape[0], dtype=torch.bool, device=X.device)
        Q = None
        if self._arithmetic(steps[0], X.dtype) == "qr":
            # A = Q R has the factor Q times that of R: the terms then cost n^3 rather than m n^2. The rows of R may be
            # graded, for which Householder QR of [R; sqrt(c) I] is unstable (Hilbert matrices: skewness 1e-10); the
            # columns may.
            Q, R = torch.linalg.qr(X)
            X = R.mH
        for index, step in enumerate(steps):
            arithmetic = self._arithmetic(step, X.dtype)
            if arithmetic == "qr":
                X = step.scale * _qr_terms(normalize_frobenius(X) if index == 0 else X, step)
                continue
            G = gram(X, double_precision(X.dtype) if arithmetic == "double" else X.dtype)
            size = torch.ones_like(G[:, :1, :1].real)
            if index == 0:
                bound = gram_norm_bound(G)
                size = torch.where(bound > 0, bound, 1.0)[:, None, None]
            P, info = _cholesky_terms(G / size**2, step)
            X = product(X, P * (step.scale / size))
            failed = failed | info
        if polish:
            X = iterate_polynomials(X, CUBIC)
        return IterationResult(X if Q is None else product(Q, X.mH), steps=len(steps), breakdown=failed)

    @staticmethod
    def _arithmetic(step: Zolotarev, dtype: torch.dtype) -> str:
        """How the terms of a step are computed: "working", "double" (both by Cholesky), or "qr"."""
        if step.shifts[0] >= _CHOLESKY_SHIFT:
            return "working"
        single = torch.finfo(dtype).bits == 32
        return "double" if single and step.shifts[0] >= _DOUBLE_CHOLESKY_SHIFT else "qr"
