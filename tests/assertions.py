"""What "equal" means in these tests: c * eps * dimension, and what a polar factor has to satisfy.

The constant. A backward stable algorithm for an n x n matrix rounds O(n) times per entry, each time by at most
eps / 2; worst-case bounds then read (small polynomial in n) * eps, while the errors of actual runs grow like sqrt(n),
with a constant that is largest for the smallest matrices. LAPACK's testers accept residuals up to 30 times n * eps for
that reason, and so do we. That is still far below what one wrong column or one dropped iteration costs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "SAFETY",
    "assert_close",
    "assert_orthonormal",
    "assert_polar_factor",
    "assert_psd",
    "assert_unmodified",
    "eps_of",
    "rounding",
    "unit_scale",
]

SAFETY = 30.0


def eps_of(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def rounding(dtype: torch.dtype, dimension: int, c: float = SAFETY) -> float:
    """c * eps * dimension."""
    return c * eps_of(dtype) * max(dimension, 1)


def _double(A: Tensor) -> Tensor:
    return A.detach().resolve_conj().to(torch.complex128 if A.is_complex() else torch.float64)


def unit_scale(A: Tensor) -> Tensor:
    """Each matrix of A (complex128 or float64) times the power of two that brings its largest entry near 1.

    In two factors, since one of them would overflow for subnormal entries, as division by the largest entry does.
    """
    size = torch.view_as_real(A).abs().amax(-1) if A.is_complex() else A.abs()
    exponent = -torch.frexp(size.amax((-2, -1), keepdim=True)).exponent
    half = exponent // 2
    return A * torch.ldexp(torch.ones_like(A.real), half) * torch.ldexp(torch.ones_like(A.real), exponent - half)


def _tall(A: Tensor) -> Tensor:
    return A.mH if A.shape[-2] < A.shape[-1] else A


def assert_close(actual: Tensor, expected: Tensor, dimension: int | None = None, c: float = SAFETY) -> None:
    """||actual - expected||_F <= c eps dimension ||expected||_F, eps of the coarser dtype, over the whole tensor."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    coarser = max(actual.dtype, expected.dtype, key=eps_of)
    difference = float(torch.linalg.vector_norm(_double(actual) - _double(expected)))
    size = float(torch.linalg.vector_norm(_double(expected)))
    bound = rounding(coarser, max(expected.shape, default=1) if dimension is None else dimension, c)
    assert difference <= bound * max(size, torch.finfo(torch.float64).tiny), (
        f"relative difference {difference / max(size, 1e-300):.2e} exceeds {bound:.2e} ({c} eps dimension)"
    )


def assert_unmodified(A: Tensor, before: Tensor) -> None:
    """Bitwise the same, NaN included."""
    same = (before == A) | ((A != A) & (before != before))
    assert bool(same.all()), "the input was modified"


def assert_orthonormal(U: Tensor, tolerance: float | None = None) -> None:
    """||U^H U - I||_F / sqrt(k) <= tolerance (U U^H for wide U); by default c eps max(m, n)."""
    tolerance = rounding(U.dtype, max(U.shape[-2:])) if tolerance is None else tolerance
    V = _double(_tall(U))
    k = V.shape[-1]
    if V.numel() == 0:
        return
    defect = torch.linalg.matrix_norm(V.mH @ V - torch.eye(k, dtype=V.dtype)) / math.sqrt(k)
    assert bool((defect <= tolerance).all()), f"||U^H U - I|| / sqrt(k) = {float(defect.max()):.2e} > {tolerance:.2e}"


def assert_psd(H: Tensor, tolerance: float | None = None) -> None:
    """H is Hermitian and lambda_min(H) >= -tolerance ||H||_2; by default c eps n.

    Subnormal entries are rounded more coarsely than eps, to multiples of eps tiny: n of those are granted besides.
    """
    tolerance = rounding(H.dtype, H.shape[-1]) if tolerance is None else tolerance
    if H.numel() == 0:
        return
    largest = _double(H).abs().amax((-2, -1))
    spacing = H.shape[-1] * eps_of(H.dtype) * torch.finfo(H.dtype).tiny
    bound = tolerance + torch.where(largest > 0, spacing / largest, 0.0)
    H64 = unit_scale(_double(H))
    skew = torch.linalg.matrix_norm(H64 - H64.mH)
    assert bool((skew <= bound * torch.linalg.matrix_norm(H64)).all()), f"not Hermitian: {float(skew.max()):.2e}"
    values = torch.linalg.eigvalsh(H64)
    lowest = values[..., 0] / values.abs().amax(-1).clamp_min(torch.finfo(torch.float64).tiny)
    assert bool((lowest >= -bound).all()), f"lambda_min / ||H|| = {float(lowest.min()):.2e} < -{float(bound.max()):.2e}"


def assert_polar_factor(
    A: Tensor,
    U: Tensor,
    *,
    tolerance: float | None = None,
    floor: float | None = None,
    working_eps: float | None = None,
) -> None:
    """U is a polar factor of A to an accuracy class (tolerance, floor).

    With sigma_i, q_i the singular values and right singular vectors of A and V = U (tall orientation):
    1. no singular value of V is above 1 + tolerance;
    2. on the span of the q_i with sigma_i >= 10 floor ||A||_F the singular values of V are within tolerance of 1;
    3. K = V^H A is Hermitian and positive semidefinite, and A = V K, up to the tolerance and the floor.
    Full accuracy is the default: tolerance = c eps max(m, n), floor = 4 eps. `working_eps` is the unit roundoff of the
    computation where that is not the one of the dtype of U.
    """
    assert U.shape == A.shape, f"shape {tuple(U.shape)}, expected {tuple(A.shape)}"
    assert U.dtype == A.dtype, f"dtype {U.dtype}, expected {A.dtype}"
    if A.numel() == 0:
        return
    assert bool(U.isfinite().all()), "the factor is not finite"
    tolerance = rounding(U.dtype, max(U.shape[-2:])) if tolerance is None else tolerance
    floor = 4 * eps_of(U.dtype) if floor is None else floor
    for a, u in zip(
        _double(_tall(A)).flatten(0, -3) if A.ndim > 2 else [_double(_tall(A))],
        _double(_tall(U)).flatten(0, -3) if A.ndim > 2 else [_double(_tall(U))],
        strict=True,
    ):
        _assert_one(a, u, tolerance, floor, eps_of(U.dtype) if working_eps is None else working_eps)


def _assert_one(a: Tensor, v: Tensor, tolerance: float, floor: float, eps: float) -> None:
    m, n = a.shape
    if not bool((a != 0).any()):
        assert not v.any(), "the factor of a zero matrix must be zero"
        return
    a = unit_scale(a)
    _, sigma, qh = torch.linalg.svd(a, full_matrices=False)
    norm = float(torch.linalg.vector_norm(sigma))
    top = float(torch.linalg.matrix_norm(v, 2)) - 1.0
    assert top <= tolerance, f"sigma_max(U) - 1 = {top:.2e} > {tolerance:.2e}"
    # |sigma - 1| <= t says |sigma^2 - 1| <= 2 t + t^2.
    square = 2 * tolerance + tolerance**2
    # Rounding A by n eps turns the span of the large singular vectors by n eps / sigma towards the small ones.
    roundoff = max(m, n) * eps
    high = sigma >= 10 * max(floor, roundoff) * norm
    if bool(high.any()):
        w = v @ qh[high].mH
        r = w.shape[1]
        defect = float(torch.linalg.matrix_norm(w.mH @ w - torch.eye(r, dtype=w.dtype))) / math.sqrt(r)
        turn = 0.0 if r == n else (10 * max(floor, roundoff) * norm / float(sigma[high].min())) ** 2
        assert defect <= square + turn, (
            f"||U^H U - I|| / sqrt(r) = {defect:.2e} > {square:.2e} + {turn:.1e} on the {r} of {n} singular vectors "
            f"above {floor:.1e} ||A||"
        )
    k = v.mH @ a
    h = (k + k.mH) / 2
    # A - V H loses |1 - sigma(V)^2| of what is above the floor, and at most all of what is below.
    slack = square + 10 * floor * math.sqrt(n)
    skew = float(torch.linalg.matrix_norm(k - k.mH)) / norm
    assert skew <= max(tolerance, SAFETY * roundoff), f"U^H A is not Hermitian: {skew:.2e}"
    lowest = -float(torch.linalg.eigvalsh(h)[0]) / norm
    assert lowest <= max(tolerance, SAFETY * roundoff), f"H is not positive semidefinite: {-lowest:.2e} ||A||"
    error = float(torch.linalg.matrix_norm(a - v @ h)) / norm
    assert error <= slack, f"||A - U H|| / ||A|| = {error:.2e} > {slack:.2e}"
