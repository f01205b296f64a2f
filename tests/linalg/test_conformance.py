"""Every method, on every shape, dtype and matrix of the gallery, held to the accuracy class that it declares.

A case is one call of `polar`. `make test` runs a sample; `make conformance` runs all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polargrad.linalg import PolarMethod, PolarResult, Status, available_methods, polar, resolve_method
from tests.assertions import (
    assert_orthonormal,
    assert_polar_factor,
    assert_psd,
    assert_unmodified,
    eps_of,
    rounding,
    unit_scale,
)
from tests.matrices import GALLERY, make, with_singular_values
from tests.polar_cases import LIMITED

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
    A = make(case.matrix, case.m, case.n, case.dtype, case.batch, case.seed)
    result = hold(case.method, A)
    work = resolve_method(case.method).working_dtype(case.dtype)
    blurred = case.matrix == "rank-deficient" and eps_of(case.dtype) > eps_of(work)  # full rank once rounded
    if case.method in PARTIAL_ISOMETRY and case.matrix in NULL_BY_CONSTRUCTION and not blurred:
        hold_partial_isometry(A, result, work, count_rank=case.matrix != "ones")


def hold(name: str, A: torch.Tensor) -> PolarResult:
    """Run `polar` and hold it to the class that the method declares; return what it returned."""
    method = resolve_method(name)
    before = A.clone()
    result = polar(A, method)
    U, H = result.unitary, result.hermitian
    batch, k, longest = A.shape[:-2], min(A.shape[-2:]), max(A.shape[-2:])
    assert_unmodified(A, before)
    assert U.is_contiguous()
    assert result.status.shape == batch
    assert H is not None
    assert H.shape == (*batch, k, k)
    assert U.dtype == H.dtype == A.dtype

    work = method.working_dtype(A.dtype)
    # Rounding the factor to a narrower dtype moves every entry by half a unit of that dtype.
    rounded = eps_of(A.dtype) if eps_of(A.dtype) > eps_of(work) else 0.0
    tolerance = max(method.tolerance(work, max(k, math.isqrt(longest))), rounding(work, k)) + rounded
    eps = min(eps_of(work), eps_of(A.dtype))
    floor = method.sigma_floor(work)

    sigma = torch.linalg.svdvals(unit_scale(_double(A)))
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
    kept = ~singular  # nothing more is promised of a breakdown
    if name == "newton":  # for nonsingular matrices; of others it must only not claim to have converged
        kept &= reached | (status == Status.CONVERGED)
    A, U, H, sigma, reached = A[kept], U[kept], H[kept], sigma[kept], (reached & nonzero)[kept]
    assert_polar_factor(A, U, tolerance=tolerance, floor=floor, working_eps=eps)
    assert_orthonormal(U[reached], 2 * tolerance + tolerance**2)
    if bool(H.isfinite().all()) or float(_double(A).abs().max()) * k * longest < torch.finfo(A.dtype).max:
        assert_psd(H, max(tolerance, rounding(A.dtype, k)))
    return result


def hold_partial_isometry(A: torch.Tensor, result: PolarResult, work: torch.dtype, count_rank: bool) -> None:
    """U^H U is the projector on the rows of A, status converged."""
    k, longest = min(A.shape[-2:]), max(A.shape[-2:])
    assert bool((result.status == Status.CONVERGED).all()), f"status {result.status.tolist()} for a partial isometry"
    V = _double(result.unitary.mH if A.shape[-2] < A.shape[-1] else result.unitary)
    G = V.mH @ V
    defect = float(torch.linalg.matrix_norm(G @ G - G).max()) / math.sqrt(k)
    bound = 4 * (rounding(work, longest) + (eps_of(A.dtype) if eps_of(A.dtype) > eps_of(work) else 0.0))
    assert defect <= bound, f"not a partial isometry: {defect:.2e} > {bound:.2e}"
    if not count_rank:  # LAPACK's rounding of many equal columns is itself above the cut-off of a few eps
        return
    sigma = torch.linalg.svdvals(unit_scale(_double(A)))
    rank = (sigma > 10 * longest * eps_of(work) * torch.linalg.vector_norm(sigma, dim=-1, keepdim=True)).sum(-1)
    trace = G.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    assert bool((trace <= rank + 0.5).all()), f"rank {rank.tolist()}, ||U||_F^2 = {trace.tolist()}"


def _double(A: torch.Tensor) -> torch.Tensor:
    return A.to(torch.complex128 if A.is_complex() else torch.float64)


# Misses that were found here, each with its cause.
MISSES = [
    # a power iteration that started almost orthogonal to the largest singular vector
    Case("qdwh", torch.float64, 6, 4, "arithmetic", (), 231),
    Case("qdwh", torch.float64, 8, 40, "near-overflow", (3,), 337),
    Case("qdwh", torch.float64, 8, 40, "subnormal", (1,), 339),
    # Householder QR of [R; c I] with graded rows of R
    Case("zolo-pd", torch.float64, 33, 33, "hilbert", (2, 2), 142),
    Case("zolo-pd", torch.complex128, 64, 48, "hilbert", (1, 3), 398),
    # a null direction at 2.0 eps, the least cut-off then
    Case("svd", torch.complex128, 40, 8, "rank-deficient", (2, 2), 296),
    Case("auto", torch.complex128, 40, 8, "rank-deficient", (2, 2), 296),
]


@pytest.mark.parametrize("case", MISSES, ids=str)
def test_what_was_missed_once(case: Case) -> None:
    check(case)


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


# Limited methods: the bounds that they declare hold, and CONVERGED is said of no factor that misses the class.


def check_limited(method: PolarMethod, A: torch.Tensor) -> None:
    """AssertionError where a singular value leaves the declared bounds, or the status is not earned."""
    work = method.working_dtype(A.dtype)
    k, longest = min(A.shape[-2:]), max(A.shape[-2:])
    rounded = eps_of(A.dtype) if eps_of(A.dtype) > eps_of(work) else 0.0
    slack = max(method.rounding(work, max(k, math.isqrt(longest))), rounding(work, k)) + rounded
    result = polar(A, method)
    assert not bool((result.status == Status.NON_FINITE).any())
    assert bool(((result.status != Status.BREAKDOWN) | (A == 0).all(-1).all(-1) | (method.name == "newton")).all())
    kept = result.status != Status.BREAKDOWN
    if method.name == "newton":  # for nonsingular matrices
        sigma = torch.linalg.svdvals(unit_scale(_double(A)))
        kept = kept & (sigma[..., -1] > 10 * longest * eps_of(A.dtype) * sigma[..., 0])
    A, U, status = A[kept], result.unitary[kept], result.status[kept]
    deviation = method.deviation(work)
    if deviation < 1.0:
        assert_polar_factor(
            A,
            U,
            tolerance=deviation + slack,
            floor=method.sigma_floor(work),
            working_eps=min(eps_of(work), eps_of(A.dtype)),
        )
    sigma = torch.linalg.svdvals(_double(U))
    off = torch.minimum((sigma - 1).abs(), sigma.abs()).amax(-1) if sigma.numel() else sigma.sum(-1)
    allowed = method.tolerance(work, max(k, math.isqrt(longest))) + slack
    assert bool(((status != Status.CONVERGED) | (off <= allowed)).all()), f"converged with {float(off.max()):.1e}"


@pytest.mark.parametrize("matrix", ["gaussian", "log-1e6", "rank-deficient", "subnormal"])
@pytest.mark.parametrize("method", LIMITED, ids=str)
def test_a_sample_of_limited_methods(method: PolarMethod, matrix: str) -> None:
    for dtype in (torch.float32, torch.complex128):
        check_limited(method, make(matrix, 16, 16, dtype, (2,)))


@pytest.mark.slow
@pytest.mark.parametrize("method", LIMITED, ids=str)
def test_every_limited_method(method: PolarMethod) -> None:
    failures = []
    for dtype in DTYPES:
        for number, (m, n) in enumerate(SHAPES):
            for matrix in GALLERY:
                if method.name == "newton" and m != n:
                    continue
                try:
                    check_limited(method, make(matrix, m, n, dtype, BATCHES[number % len(BATCHES)], seed=number))
                except Exception as error:
                    failures.append(f"{dtype} {m}x{n} {matrix}: {type(error).__name__}: {str(error).splitlines()[0]}")
    assert not failures, f"{len(failures)} misses:\n" + "\n".join(failures)


# Contexts: autocast, lowered float32 products, another default device and dtype change no bit.


class surrounded(ExitStack):
    """All of them together."""

    def __enter__(self) -> surrounded:
        super().__enter__()
        before = torch.get_float32_matmul_precision()
        self.callback(torch.set_float32_matmul_precision, before)
        self.callback(torch.set_default_dtype, torch.get_default_dtype())
        self.enter_context(torch.autocast("cpu", torch.bfloat16))
        self.enter_context(torch.device("meta"))
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.bfloat16)
        return self


def check_context(case: Case) -> None:
    """AssertionError where a context shows in the result."""
    A = make(case.matrix, case.m, case.n, case.dtype, case.batch, case.seed)
    outside = polar(A, case.method)
    with surrounded():
        inside = polar(A, case.method)
    for theirs, ours in zip(outside[:3], inside[:3], strict=True):
        assert theirs.dtype == ours.dtype
        assert torch.equal(theirs.nan_to_num(7.0), ours.nan_to_num(7.0))


@pytest.mark.parametrize("case", ALL[:: 11 * SAMPLE], ids=str)
def test_a_sample_of_the_cases_in_contexts(case: Case) -> None:
    check_context(case)


def test_the_contexts_would_show() -> None:
    A = torch.randn(64, 64)
    with surrounded():
        assert torch.zeros(1).is_meta
        assert (A @ A).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("method", available_methods())
def test_cases_in_contexts(method: str) -> None:
    for case in [case for case in ALL[::5] if case.method == method]:
        check_context(case)


# Tall extremes: sums over long columns.

TALL = [(300_000, 1), (300_000, 4), (50_000, 10), (20_000, 40)]


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n"), TALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16], ids=str)
def test_tall_extremes(m: int, n: int, dtype: torch.dtype) -> None:
    for matrix in ("gaussian", "log-1e3", "graded"):
        A = make(matrix, m, n, dtype)
        for method in available_methods():
            result = hold(method, A)
            kind = resolve_method(method)
            if result.status == Status.CONVERGED and kind.deviation(torch.float32) < 1e-5:
                # Long columns are summed in double precision, so that double alone rounds by their length.
                length = kind.rounding(dtype, math.isqrt(m)) if dtype == torch.float64 else 0.0
                assert_orthonormal(
                    result.unitary, 8 * kind.rounding(dtype, n) + length if eps_of(dtype) < 1e-3 else None
                )


@st.composite
def _matrices(draw: st.DrawFn) -> tuple[str, torch.Tensor]:
    """Any singular values, scale, shape, batch, dtype and memory layout."""
    name = draw(st.sampled_from(available_methods()))
    dtype = draw(st.sampled_from(DTYPES))
    m, n = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    if name == "newton":
        m = n
    batch = draw(st.sampled_from(BATCHES))
    exponents = st.one_of(st.floats(-18, 0), st.sampled_from([0.0, -3.0, -math.inf]))
    sigma = 10.0 ** torch.tensor(draw(st.lists(exponents, min_size=min(m, n), max_size=min(m, n)))).double()
    seed = draw(st.integers(0, 2**16))
    count = math.prod(batch)
    A = torch.stack([with_singular_values(m, n, sigma, dtype, seed + 2 * i) for i in range(count)]).reshape(
        *batch, m, n
    )
    span = math.log2(torch.finfo(dtype).max)
    A = (A * 2.0 ** draw(st.floats(-span, span - 4))).to(dtype)
    layout = draw(st.sampled_from(["plain", "transposed", "strided"]))
    if layout == "transposed":
        A = A.mT.contiguous().mT
    elif layout == "strided":
        A = torch.zeros(*batch, 2 * m, n + 3, dtype=dtype)[..., ::2, 1 : n + 1].copy_(A)
    return name, A


@given(_matrices())
@settings(max_examples=150)
def test_random_matrices(drawn: tuple[str, torch.Tensor]) -> None:
    hold(*drawn)


@pytest.mark.slow
@given(_matrices())
@settings(max_examples=3000)
def test_many_random_matrices(drawn: tuple[str, torch.Tensor]) -> None:
    hold(*drawn)


def test_the_lane_has_ten_thousand_cases() -> None:
    assert len(ALL) >= 10_000
    sample = ALL[::SAMPLE]
    assert {case.method for case in sample} == set(available_methods())
    assert {case.matrix for case in sample} == set(GALLERY)
    assert {case.dtype for case in sample} == set(DTYPES)
