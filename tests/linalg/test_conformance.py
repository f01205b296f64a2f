"""Every method, on every shape, dtype and matrix of the gallery, held to the accuracy class that it declares.

A case is one call of `polar`. `make test` runs a sample; `make conformance` runs all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

from polargrad.linalg import Status, available_methods, polar, resolve_method
from tests.assertions import assert_orthonormal, assert_polar_factor, assert_psd, assert_unmodified, eps_of, rounding
from tests.matrices import GALLERY, make

SHAPES = [
    (1, 1),
    (2, 2),
    (5, 5),
    (16, 16),
    (33, 33),
    (7, 1),
    (1, 7),
    (6, 4),
    (4, 6),
    (40, 8),
    (8, 40),
    (160, 3),
    (64, 48),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
BATCHES: list[tuple[int, ...]] = [(), (3,), (2, 2), (1,), (), (2,), (1, 3)]
# Rank-deficient beyond doubt: the null directions carry nothing but the rounding of the entries.
NULL_BY_CONSTRUCTION = {"rank-deficient", "zero", "single-entry", "ones", "nilpotent", "zero-column", "equal-columns"}
PARTIAL_ISOMETRY = {"svd", "auto"}  # give the partial isometry of a rank-deficient matrix
SAMPLE = 41  # every so many cases; prime, so that it meets every method, shape, dtype, batch and matrix


class Case(NamedTuple):
    method: str
    dtype: torch.dtype
    m: int
    n: int
    matrix: str
    batch: tuple[int, ...]
    seed: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.method} {dtype} {self.m}x{self.n} {self.matrix} batch={self.batch} seed={self.seed}"


def _cases(method: str, dtype: torch.dtype) -> Iterator[Case]:
    number = 0
    for m, n in SHAPES:
        if method == "newton" and m != n:
            continue
        for matrix in GALLERY:
            yield Case(method, dtype, m, n, matrix, BATCHES[number % len(BATCHES)], seed=number)
            number += 1


ALL = [case for method in available_methods() for dtype in DTYPES for case in _cases(method, dtype)]


def check(case: Case) -> None:
    """Run one case; AssertionError where the method misses its class."""
    method = resolve_method(case.method)
    A = make(case.matrix, case.m, case.n, case.dtype, case.batch, case.seed)
    before = A.clone()
    result = polar(A, method)
    U, H = result.unitary, result.hermitian
    k, longest = min(case.m, case.n), max(case.m, case.n)
    assert_unmodified(A, before)
    assert U.is_contiguous()
    assert result.status.shape == case.batch
    assert H is not None
    assert H.shape == (*case.batch, k, k)
    assert H.dtype == A.dtype

    work = method.working_dtype(case.dtype)
    # Rounding the factor to a narrower dtype moves every entry by half a unit of that dtype.
    rounded = eps_of(case.dtype) if eps_of(case.dtype) > eps_of(work) else 0.0
    tolerance = max(method.tolerance(work, max(k, math.isqrt(longest))), rounding(work, k)) + rounded
    eps = min(eps_of(work), eps_of(case.dtype))
    floor = method.floor(work)

    double = A.to(torch.complex128 if A.is_complex() else torch.float64)
    size = double.abs().amax((-2, -1), keepdim=True)
    sigma = torch.linalg.svdvals(double / torch.where(size > 0, size, 1.0))
    norm = torch.linalg.vector_norm(sigma, dim=-1)
    reached = sigma[..., -1] >= 10 * max(floor, longest * eps) * norm
    nonzero = norm > 0

    status = result.status
    singular = status == Status.BREAKDOWN
    assert not bool((status == Status.NON_FINITE).any()), f"finite input called non-finite: {status.tolist()}"
    assert not bool((singular & reached & nonzero).any()), f"breakdown on a regular matrix: {status.tolist()}"
    assert bool(((status == Status.CONVERGED) | ~(reached & nonzero)).all()), (
        f"status {status.tolist()} where every singular value is above the floor; "
        f"orthogonality {result.stats['orthogonality'].tolist()}, tolerance {tolerance:.1e}"
    )
    if bool(singular.any()):  # nothing more is promised there
        return
    assert_polar_factor(A, U, tolerance=tolerance, floor=floor, working_eps=eps)
    for index in (reached & nonzero).nonzero().tolist():
        assert_orthonormal(U[tuple(index)], 2 * tolerance + tolerance**2)
    representable = (sigma[..., 0] * size[..., 0, 0] * math.sqrt(2) < torch.finfo(case.dtype).max).all()
    if bool(representable):
        assert_psd(H, max(tolerance, rounding(case.dtype, k)))
    blurred = case.matrix == "rank-deficient" and eps_of(case.dtype) > eps_of(work)  # full rank once rounded
    if case.method in PARTIAL_ISOMETRY and case.matrix in NULL_BY_CONSTRUCTION and not blurred:
        assert bool((status == Status.CONVERGED).all()), f"status {status.tolist()} for a partial isometry"
        V = (U.mH if case.m < case.n else U).to(double.dtype)
        G = V.mH @ V
        defect = float(torch.linalg.matrix_norm(G @ G - G).max()) / math.sqrt(k)
        assert defect <= 4 * tolerance, f"not a partial isometry: {defect:.2e}"
        rank = (sigma > 10 * longest * eps * norm[..., None]).sum(-1)
        trace = G.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        # LAPACK's rounding of 33 equal columns is itself above the cut-off of a few eps.
        assert case.matrix == "ones" or bool((trace <= rank + 0.5).all()), (
            f"rank {rank.tolist()}, ||U||_F^2 = {trace.tolist()}"
        )


@pytest.mark.parametrize("case", ALL[::SAMPLE], ids=str)
def test_a_sample_of_the_cases(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("method", available_methods())
def test_every_case(method: str, dtype: torch.dtype) -> None:
    failures = []
    for case in _cases(method, dtype):
        try:
            check(case)
        except Exception as error:  # the list of all misses says more than the first
            failures.append(f"{case}: {type(error).__name__}: {str(error).splitlines()[0]}")
    assert not failures, f"{len(failures)} misses:\n" + "\n".join(failures)


def test_the_lane_has_ten_thousand_cases() -> None:
    assert len(ALL) >= 10_000
    sample = ALL[::SAMPLE]
    assert {case.method for case in sample} == set(available_methods())
    assert {case.matrix for case in sample} == set(GALLERY)
    assert {case.dtype for case in sample} == set(DTYPES)
