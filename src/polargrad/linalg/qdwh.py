"""QDWH: the dynamically weighted Halley iteration, by QR while the weight is large and then by Cholesky."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.arithmetic import arithmetic
from polargrad.linalg.bounds import cholesky, gram_norm_bound, is_positive_definite, norm_bound
from polargrad.linalg.coefficients import CUBIC, QUINTIC, Coefficients, map_interval
from polargrad.linalg.compilation import compile_constant
from polargrad.linalg.kernels import gram, hermitian_product, product
from polargrad.linalg.method import IterationResult, PolarMethod, check_count, check_lower_bound, register
from polargrad.linalg.minimax import composition
from polargrad.linalg.newton_schulz import iterate_polynomials
from polargrad.linalg.precision import double_precision
from polargrad.linalg.tall import TALL, is_tall

__all__ = ["QDWH", "halley_weights", "polar_by_halley"]

# Up to this weight c the Cholesky factor of I + c X^H X, in the precision of X, is accurate enough. In float64 QR
# takes over above it (Nakatsukasa and Higham 2013, section 5.4, who use 100); in float32 Cholesky in float64 does.
_CHOLESKY_WEIGHT = 100.0
# Between the two weights it is enough to form and factor I + c X^H X in float64 and to solve in float32, whose error
# is sqrt(c) eps in directions that hardly count for the backward error: measured 0.8e-6 at c = 315.
_DOUBLE_SOLVE_WEIGHT = 1000.0
# From this lower bound on, two quintic steps reach full accuracy in float32, and cost less than a Halley step and one
# quintic. (From 0.63 on they leave 3e-7, half as much again as rounding does.)
_POLYNOMIAL_BOUND = 0.675
# Quintics are generated for lower bounds on this grid, so that they are generated a few times only.
_GRID = 0.045
# Times eps: the deviation from 1 that counts as rounding.
_ROUNDING = 2.5
# Weights up to this one keep c eps below 1e-4 in float64: I + c X^H X is then safely positive definite.
_DOUBLE_CHOLESKY_WEIGHT = 1e11
# Below this lower bound sqrt(c) X leaves the range of float32.
_LEAST_LOWER_BOUND = 1e-50


def halley_weight(lower: float) -> tuple[float, float, float]:
    """The best (a, b, c) of x (a + b x^2) / (1 + c x^2) for singular values in [lower, 1].

    Source: Nakatsukasa, Bai, Gygi (2010), eq. (3.10).

    Example:
        >>> [round(weight, 9) for weight in halley_weight(1.0)]
        [3.0, 1.0, 3.0]
    """
    d = (4.0 * (1.0 - lower**2)) ** (1.0 / 3.0) / lower ** (4.0 / 3.0)
    root = math.sqrt(1.0 + d)
    a = root + 0.5 * math.sqrt(8.0 - 4.0 * d + 8.0 * (2.0 - lower**2) / (lower**2 * root))
    b = (a - 1.0) ** 2 / 4.0
    return a, b, a + b - 1.0


def _image_of_bound(lower: float, a: float, b: float, c: float) -> float:
    return min(lower * (a + b * lower**2) / (1.0 + c * lower**2), 1.0)


@compile_constant
def halley_weights(lower: float, tolerance: float) -> tuple[tuple[float, float, float], ...]:
    """The weights step by step, until the lower bound has reached 1 - tolerance.

    Pure host arithmetic: the number of steps depends on `lower` alone, so no device synchronization is needed.

    Example:
        >>> len(halley_weights(1e-16, 1e-15))
        6
    """
    weights = []
    while 1.0 - lower > tolerance:
        weights.append(halley_weight(lower))
        lower = _image_of_bound(lower, *weights[-1])
    return tuple(weights)


def _scale(X: Tensor, bound: Tensor) -> Tensor:
    """X / bound for each matrix; zero stays zero."""
    return X / torch.where(bound > 0, bound, 1.0)[:, None, None].to(X.dtype)


def _qr_step(X: Tensor, a: float, b: float, c: float) -> Tensor:
    """[sqrt(c) X; I] = [Q1; Q2] R;  X <- (b/c) X + (a - b/c) / sqrt(c) Q1 Q2^H."""
    k, m, n = X.shape
    eye = torch.eye(n, dtype=X.dtype, device=X.device).expand(k, n, n)
    Q, _ = torch.linalg.qr(torch.cat([math.sqrt(c) * X, eye], dim=-2))
    return (b / c) * X + ((a - b / c) / math.sqrt(c)) * (Q[..., :m, :] @ Q[..., m:, :].mH)


def _cholesky_step(X: Tensor, a: float, b: float, c: float, Z: Tensor) -> Tensor:
    """I + Z = R^H R with Z = c X^H X (overwritten);  X <- (b/c) X + (a - b/c) X R^{-1} R^{-H}."""
    Z.diagonal(dim1=-2, dim2=-1).add_(1.0)
    R = cholesky(Z)[0].to(X.dtype)
    Y = torch.linalg.solve_triangular(R, X, upper=True, left=False)
    Y = torch.linalg.solve_triangular(R.mH, Y, upper=False, left=False)
    return Y.mul_(a - b / c).add_(X, alpha=b / c)


def _halley_step(X: Tensor, a: float, b: float, c: float) -> Tensor:
    """One step in the arithmetic that its weight c asks for."""
    double = double_precision(X.dtype)
    if c <= _CHOLESKY_WEIGHT:
        return _cholesky_step(X, a, b, c, gram(X).mul_(c))
    if X.dtype == double or c > _DOUBLE_CHOLESKY_WEIGHT:
        return _qr_step(X, a, b, c)
    if c <= _DOUBLE_SOLVE_WEIGHT:
        return _cholesky_step(X, a, b, c, gram(X, double).mul_(c))
    return _cholesky_step(X.to(double), a, b, c, gram(X, double).mul_(c)).to(X.dtype)


def _step_operations(m: int, n: int, c: float, work: torch.dtype) -> float:
    """Operations of a Halley step of weight c: by QR, or a Gram matrix, its Cholesky factor and two solves."""
    if c > _CHOLESKY_WEIGHT and (work == double_precision(work) or c > _DOUBLE_CHOLESKY_WEIGHT):
        return operations.qr(m + n, n) + operations.product(m, n)
    return operations.gram(m, n) + operations.cholesky(n) + operations.product(m, n)


def halley_operations(m: int, n: int, lower: float, work: torch.dtype) -> float:
    """Floating-point operations of `polar_by_halley` on one (m, n) with that lower bound."""
    weights, rows, _ = _plan(lower, torch.finfo(work).eps)
    steps = sum(_step_operations(m, n, c, work) for _, _, c in weights)
    return steps + sum(operations.polynomial(m, n, c != 0) for _, _, c in rows)


def _plan(lower: float, eps: float) -> tuple[tuple[tuple[float, float, float], ...], tuple[Coefficients, ...], float]:
    """The weights of the Halley steps from `lower` on until quintics are cheaper, and those quintics.

    Also the deviation from 1 that the last quintic meets.
    """
    weights = []
    while lower < _POLYNOMIAL_BOUND:
        weights.append(halley_weight(lower))
        lower = _image_of_bound(lower, *weights[-1])
    return tuple(weights), *_polynomials(_GRID * math.floor(lower / _GRID + 1e-9), eps)


def _inverse(M: Tensor) -> Tensor:
    """M^{-1} of positive definite matrices; on a GPU by calls that neither wait nor loop, which torch's own does."""
    if not M.is_cuda:
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(M)[0])
    R, _ = torch.linalg.cholesky_ex(M, upper=True)
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device).expand_as(M)
    R = torch.linalg.solve_triangular(R, eye, upper=True)
    return R @ R.mH


def halley_on_gram(G: Tensor, weights: Sequence[tuple[float, float, float]]) -> tuple[Tensor, Tensor]:
    """Halley steps on X by way of its Gram matrix alone: W and W G W such that they take X to X W.

    With S = (I + c G)^{-1}, p = b / c and q = a - p, a step takes X to X (p I + q S) and, since c G S = I - S, its Gram
    matrix G to p^2 G + 2 p q / c (I - S) + q^2 / c (S - S^2). Rounding costs eps / sigma^2 in a singular value sigma:
    a run to convergence should not end like this.

    Args:
        G: (k, n, n), X^H X with singular values of X at most 1, in double precision.
        weights: (a, b, c) of each step, with c eps far below 1.
    """
    W = None
    for a, b, c in weights:
        p = b / c
        q = a - p
        M = c * G
        M.diagonal(dim1=-2, dim2=-1).add_(1.0)
        S = _inverse(M)
        G = hermitian_product(S, S, G, beta=p * p, alpha=-q * q / c).add_(S, alpha=(q * q - 2.0 * p * q) / c)
        G.diagonal(dim1=-2, dim2=-1).add_(2.0 * p * q / c)
        S.mul_(q).diagonal(dim1=-2, dim2=-1).add_(p)
        W = S if W is None else hermitian_product(W, S)
    assert W is not None
    return W, G


def _short_run(X: Tensor, size: Tensor, weights: Sequence[tuple[float, float, float]]) -> Tensor:
    """Halley steps on X / size (k, m, n) and a cubic Newton-Schulz step, with one product that involves X."""
    size = torch.where(size > 0, size, 1.0)[:, None, None].to(torch.float64)
    W, G = halley_on_gram(gram(X, double_precision(X.dtype)).div_(size * size), weights)
    return product(X, hermitian_product(W, G, W, beta=1.5, alpha=-0.5).div_(size))


def _polynomial_step(X: Tensor, G: Tensor, row: Coefficients) -> Tensor:
    """X (a I + b G + c G^2) with G = X^H X."""
    a, b, c = row
    P = hermitian_product(G, G).mul_(c).add_(G, alpha=b) if c else b * G
    P.diagonal(dim1=-2, dim2=-1).add_(a)
    return product(X, P)


@compile_constant
def _polynomials(lower: float, eps: float) -> tuple[tuple[Coefficients, ...], float]:
    """Minimax quintics that take [lower, 1] to 1 up to rounding, the last one a cubic if that will do.

    Also the deviation from 1 that the last one meets.
    """
    rows: tuple[Coefficients, ...] = ()
    met, left = 1.0 - lower, 1.0
    while left > _ROUNDING * eps:
        rows = composition(lower, len(rows) + 1, cushion=0.0)
        low, high = map_interval(rows, lower)
        met, left = (met if len(rows) == 1 else left), max(1.0 - low, high - 1.0)
    if len(rows) > 1 and 1.5 * met**2 <= _ROUNDING * eps:
        rows = (*rows[:-1], *CUBIC)
    return rows, met


def polar_by_halley(
    X: Tensor,
    lower: float,
    *,
    size: Tensor | None = None,
    G: Tensor | None = None,
    extra_steps: int = 0,
) -> tuple[Tensor, int]:
    """The unitary factor of X (k, m, n) with singular values in [lower, 1], and the number of steps.

    Halley steps until minimax quintics are cheaper, which also polish. Singular values a little above 1 do no harm.

    Args:
        X: (k, m, n) in single or double precision.
        lower: lower bound on the singular values of X / size, in (0, 1).
        size: (k, 1, 1) in double precision, what to divide X by; None is 1.
        G: X^H X (k, n, n) in double precision, if known. It has to be that of X to the last bit.
        extra_steps: for a `lower` that is an estimate: how many further quintic steps may follow as long as a singular
            value of an iterate turns out to be too small, which a Cholesky factorization decides. Reads numbers back
            from the device. A matrix for which they do not suffice comes back as NaN.

    Source: Nakatsukasa, Bai, Gygi (2010), eq. (3.10); Amsel, Persson, Musco, Gower (arXiv 2505.16932), theorem 3.1.
    """
    eps = torch.finfo(X.dtype).eps
    weights, rows, met = _plan(lower, eps)
    start = 0
    if G is not None and size is not None and weights and weights[0][2] > _CHOLESKY_WEIGHT:
        a, b, c = weights[0]
        # X / size in double precision: rounded to X's own, it would no longer be the X of G.
        X, start = _cholesky_step(X / size, a, b, c, G * (c / size**2)).to(X.dtype), 1
    elif size is not None:
        X = X / size.to(X.real.dtype)
    for a, b, c in weights[start:]:
        X = _halley_step(X, a, b, c)
    for row in rows[:-1]:
        X = _polynomial_step(X, gram(X), row)
    row, steps = rows[-1], len(weights) + len(rows)
    if not extra_steps:
        return _polynomial_step(X, gram(X), row), steps
    reached = X.new_zeros(X.shape[0], dtype=torch.bool)
    for _ in range(extra_steps):
        G = gram(X)
        # G >= (1 - 3 met) I says that the singular values of X are above 1 - 1.5 met; none is above 1.
        D = G.clone()
        D.diagonal(dim1=-2, dim2=-1).add_(3.0 * met - 1.0)
        reached = is_positive_definite(D)
        X = _polynomial_step(X, G, row)
        if bool(reached.all()):
            return X, steps
        row, met, steps = QUINTIC[0], (0.4 * eps) ** (1 / 3), steps + 1
    return torch.where(reached[:, None, None], X, math.nan), steps


@register
@dataclass(frozen=True)
class QDWH(PolarMethod):
    """QR-based dynamically weighted Halley iteration, cubic convergence, backward stable.

    X <- X (a I + b X^H X) (I + c X^H X)^{-1} with weights from a lower bound on the smallest singular value. A tall
    matrix is reduced to a square one by a Householder QR factorization first, which makes every matrix with QR steps
    safe against graded rows. Steps of large weight go by QR for float64 input, and for float32 input by Cholesky in
    float64, which is as accurate and several times as fast.

    Args:
        max_steps: None runs to convergence: Halley steps (2 or 3 in float32, 4 in float64), then 2 or 3 quintics. A
            number stops after so many Halley steps and polishes by one cubic Newton-Schulz step, converged or not.
            Two in float32 are the setting of the PolarGrad paper's matrix experiments, and leave the singular values
            in about [0.73, 1].
        lower_bound: l0, lower bound on sigma_min / ||A||_2, where ||A||_2 is estimated when run to convergence and
            bounded by sqrt(||A||_1 ||A||_inf) with `max_steps`; None is eps of the working dtype. Singular values
            below it go to a value in [0, 1].

    Source: Nakatsukasa, Bai, Gygi, SIAM J. Matrix Anal. Appl. 31 (2010), eq. (3.10); Nakatsukasa and Higham (2013).
    """

    name: ClassVar[str] = "qdwh"
    peak_memory: ClassVar[float] = 14.0
    max_steps: int | None = None
    lower_bound: float | None = None

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps)
        if self.lower_bound is not None:
            check_lower_bound(self.lower_bound, _LEAST_LOWER_BOUND)

    def sigma_floor(self, dtype: torch.dtype) -> float:
        return max(super().sigma_floor(dtype), self.lower_bound or 0.0)

    def _weights(self, dtype: torch.dtype) -> tuple[tuple[float, float, float], ...]:
        eps = torch.finfo(dtype).eps
        return halley_weights(self.lower_bound or eps, 10 * eps)

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        weights = self._weights(dtype)
        if self.max_steps is None or self.max_steps >= len(weights):
            return 1.0, 1.0
        lower = self.lower_bound or torch.finfo(dtype).eps
        for a, b, c in weights[: self.max_steps]:
            lower = _image_of_bound(lower, a, b, c)
        return map_interval(CUBIC, lower)

    def tolerance(self, dtype: torch.dtype, n: int) -> float:
        """Full accuracy: a run that `max_steps` stops short of it has not converged."""
        return self.rounding(dtype, n)

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """A QR factorization of a tall matrix or in float64; then the Halley steps, and products to finish."""
        work = self.working_dtype(dtype)
        total, rows = 0.0, m
        if m >= TALL * n or work == double_precision(work):
            total, rows = operations.qr(m, n) + operations.product(m, n), n
        if self.max_steps is None:
            return total + halley_operations(rows, n, self.lower_bound or torch.finfo(work).eps, work)
        steps = self._weights(work)[: self.max_steps]
        total += sum(_step_operations(rows, n, c, work) for _, _, c in steps)
        return total + operations.polynomial(rows, n, quintic=False)

    def iterate(self, X: Tensor) -> IterationResult:
        eps = torch.finfo(X.dtype).eps
        lower = self.lower_bound or eps
        weights, bound = self._weights(X.dtype), norm_bound(X)
        short = weights[: self.max_steps]
        if len(short) < len(weights) and self._by_gram(X, short):
            return IterationResult(_short_run(X, bound, short), len(short))
        Q = None
        if is_tall(X) or X.dtype == double_precision(X.dtype):
            # X = Q R has the factor Q times that of R. The rows of R are graded, for which Householder QR of
            # [sqrt(c) R; I] without row sorting is unstable (skewness 1e-12 for Hilbert matrices); columns are not.
            Q, R = torch.linalg.qr(X)
            X = R.mH
        if self.max_steps is None:
            # The closer the bound, the more of the small singular values are above `lower`.
            bound = torch.minimum(bound, gram_norm_bound(gram(X)))
            X, steps = polar_by_halley(_scale(X, bound), lower)
        else:
            X = _scale(X, bound)
            for a, b, c in short:
                X = _halley_step(X, a, b, c)
            X, steps = iterate_polynomials(X, CUBIC), len(short)
        return IterationResult(X if Q is None else product(Q, X.mH), steps)

    def _by_gram(self, X: Tensor, weights: Sequence[tuple[float, float, float]]) -> bool:
        """Whether double precision, where it is fast, makes up for X^H X."""
        # From the third step on what rounding costs the small singular values is seen.
        single = X.dtype != double_precision(X.dtype) and arithmetic(X.device).double and len(weights) <= 2
        return single and is_tall(X) and weights[0][2] <= _DOUBLE_CHOLESKY_WEIGHT
