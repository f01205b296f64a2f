"""The shared path: what a caller may pass, what comes back, and what stays untouched."""

import math
import sys
from pathlib import Path

import pytest
import torch

import polargrad
from polargrad.linalg import (
    NewtonSchulz,
    Status,
    available_methods,
    polar,
    polar_factor,
    resolve_method,
)
from tests.assertions import (
    assert_close,
    assert_orthonormal,
    assert_polar_factor,
    assert_psd,
    assert_unmodified,
    eps_of,
)
from tests.matrices import make, random_orthonormal, with_singular_values
from tests.polar_cases import DTYPES, FULL, METHODS, same_to, well_conditioned

# Definition and orientation


@pytest.mark.parametrize("method", FULL)
@pytest.mark.parametrize(("m", "n"), [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_tall_is_u_h_and_wide_is_h_u(method, m, n, dtype):
    A = well_conditioned(m, n, dtype=dtype)
    U, H, status, _ = polar(A, method)
    assert H is not None
    assert_close(U @ H if m >= n else H @ U, A)
    assert_psd(H)
    assert_polar_factor(A, U)
    assert status == Status.CONVERGED


@pytest.mark.parametrize("method", METHODS)
def test_the_factor_of_the_adjoint_is_the_adjoint_of_the_factor(method):
    A = well_conditioned(6, 6, dtype=torch.complex128)
    assert_close(polar_factor(A.mH, method), polar_factor(A, method).mH, c=1e4)


@pytest.mark.parametrize("method", FULL)
def test_equivariance_under_unitary_maps(method):
    """polar(P A Q) = P polar(A) Q."""
    A, P, Q = well_conditioned(7, 4), random_orthonormal(7, 7, seed=1), random_orthonormal(4, 4, seed=2)
    assert_close(polar_factor(P @ A @ Q, method), P @ polar_factor(A, method) @ Q)


def test_scipy_agrees():
    linalg = pytest.importorskip("scipy.linalg")
    for m, n in [(5, 5), (6, 3), (3, 6)]:
        A = well_conditioned(m, n, dtype=torch.complex128)
        U, H = linalg.polar(A.numpy(), side="right" if m >= n else "left")
        result = polar(A)
        assert_close(result.unitary, torch.from_numpy(U))
        assert_close(result.hermitian, torch.from_numpy(H))


# Sides and completion


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (6, 3), (3, 6), (1, 4), (4, 1)])
def test_the_hermitian_factor_stands_on_the_side_that_is_asked(m, n, side, dtype):
    linalg = pytest.importorskip("scipy.linalg")
    A = well_conditioned(2, m, n, dtype=torch.complex64 if dtype.is_complex else torch.float64).to(dtype)
    U, H, status, _ = polar(A, side=side)
    assert (status == Status.CONVERGED).all()
    assert torch.equal(U, polar_factor(A))
    assert_psd(H)
    assert_close(U @ H if side == "right" else H @ U, A, c=300)
    for a, u, h in zip(A, U, H, strict=True):
        expected_u, expected_h = linalg.polar(a.to(torch.complex128).numpy(), side=side)
        assert_close(u.to(torch.complex128), torch.from_numpy(expected_u), c=30 * eps_of(dtype) / eps_of(torch.float64))
        assert_close(h.to(torch.complex128), torch.from_numpy(expected_h), c=30 * eps_of(dtype) / eps_of(torch.float64))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", [(2, 4, 3), (3, 4), (3, 3)], ids=str)
def test_both_sides_have_gradients(side, shape):
    torch.manual_seed(0)
    A = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda A: polar(A, side=side)[:2], A)
    assert torch.autograd.gradgradcheck(lambda A: polar(A, side=side)[1], A)


def test_no_other_side():
    with pytest.raises(ValueError, match="side must be 'left', 'right' or None, got 'both'"):
        polar(torch.eye(3), side="both")
    assert polar(torch.zeros(0, 3), side="right").hermitian.shape == (3, 3)
    assert polar(torch.zeros(2, 3, 0), side="left").hermitian.shape == (2, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (9, 5), (5, 9)])
@pytest.mark.parametrize("method", ["auto", "svd", "qdwh", "zolo-pd"])
def test_a_factor_can_be_completed(method, m, n, rank, dtype):
    sigma = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0], dtype=torch.float64)[: min(m, n)] * (
        torch.arange(min(m, n)) < rank
    )
    wide = torch.complex128 if dtype.is_complex else torch.float64
    A = torch.stack([with_singular_values(m, n, sigma, wide), well_conditioned(m, n, dtype=wide)]).to(dtype)
    U, H, status, _ = polar(A, method, completed=True)
    assert (status == Status.CONVERGED).all()
    assert_orthonormal(U)
    assert_close(U @ H if m >= n else H @ U, A, c=300)
    assert_psd(H)
    assert torch.equal(U[1], polar_factor(A, method)[1])
    assert torch.equal(polar_factor(A, method, completed=True), U)


def test_the_completed_zero_matrix_is_scipys():
    linalg = pytest.importorskip("scipy.linalg")
    for m, n in [(3, 3), (4, 2), (2, 4)]:
        A = torch.zeros(m, n)
        assert torch.equal(polar_factor(A, completed=True).abs(), torch.from_numpy(linalg.polar(A.numpy())[0]).abs())


def test_completion_leaves_what_has_full_rank_or_is_not_finite():
    A = torch.stack([torch.eye(3), torch.full((3, 3), math.nan), torch.diag(torch.tensor([1.0, 0.0, 0.0]))])
    U = polar_factor(A, completed=True)
    assert torch.equal(U[0], torch.eye(3))
    assert U[1].isnan().all()
    assert_orthonormal(U[2])
    assert polar(A, "newton", completed=True).status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.BREAKDOWN]
    assert_close(torch.vmap(lambda A: polar_factor(A, completed=True))(A[[0, 2]]), U[[0, 2]])
    with pytest.raises(TypeError, match="completed must be True or False"):
        polar_factor(A, completed="scipy")


# Layouts: the same matrix in any memory layout gives the same factor, and nobody writes into it


LAYOUTS = {
    "transposed": lambda A: A.mT.contiguous().mT,
    "strided": lambda A: torch.zeros(*A.shape[:-2], 2 * A.shape[-2], 3 * A.shape[-1], dtype=A.dtype)[
        ..., ::2, ::3
    ].copy_(A),
    "offset": lambda A: torch.cat([A.flatten()[:1], A.flatten()])[1:].view(A.shape),
    "batch last": lambda A: A.movedim(0, -1).contiguous().movedim(-1, 0),
    "flipped": lambda A: A.flip(-1).clone().flip(-1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(method, layout):
    plain = well_conditioned(3, 6, 6, dtype=torch.float32)
    A = LAYOUTS[layout](plain)
    before = A.clone()
    assert_close(polar_factor(A, method), polar_factor(plain, method), c=1e4)
    assert_unmodified(A, before)


@pytest.mark.parametrize("method", METHODS)
def test_lazy_conjugation_and_negation(method):
    A = well_conditioned(4, 4, dtype=torch.complex128)
    assert A.mH.is_conj()
    U = polar_factor(A.mH, method)
    assert not U.is_conj()
    assert_close(U, polar_factor(A.mH.resolve_conj(), method))
    negative = torch.complex(A.real, -A.imag).conj().imag  # a view with the negative bit
    negated = torch._neg_view(A.real)
    assert negated.is_neg()
    assert_close(polar_factor(negated, method), -polar_factor(A.real, method))
    assert_close(polar_factor(negative + 3 * torch.eye(4), method), polar_factor(A.imag + 3 * torch.eye(4), method))


@pytest.mark.parametrize("method", METHODS)
def test_expanded_input(method):
    A = well_conditioned(5, 5)
    U = polar_factor(A.expand(4, 5, 5), method)
    assert_close(U, polar_factor(A, method).expand(4, 5, 5), c=same_to(method))
    ones = torch.ones(1, 1).expand(6, 1)
    assert_close(polar_factor(ones, "svd"), ones / math.sqrt(6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4)])
def test_the_input_is_not_modified_and_not_aliased(method, dtype, shape):
    A = well_conditioned(*shape, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    before = A.clone()
    result = polar(A, method)
    U = polar_factor(A, method)
    result.unitary.zero_()
    result.hermitian.zero_()
    U.zero_()
    assert_unmodified(A, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 2)])
def test_batches_of_any_rank(method, batch):
    A = well_conditioned(*batch, 5, 5)
    result = polar(A, method)
    assert result.unitary.shape == A.shape
    assert result.hermitian.shape == (*batch, 5, 5)
    assert result.status.shape == result.stats["orthogonality"].shape == result.stats["backward_error"].shape == batch
    single = torch.stack([polar_factor(a, method) for a in A.reshape(-1, 5, 5)]).reshape(A.shape)
    assert_close(result.unitary, single, c=same_to(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (0, 3, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_empty(method, shape, dtype):
    A = torch.zeros(shape, dtype=dtype, requires_grad=True)
    result = polar(A, method)
    k = min(shape[-2:])
    assert result.unitary.shape == polar_factor(A, method).shape == shape
    assert result.hermitian.shape == (*shape[:-2], k, k)
    assert result.status.shape == shape[:-2]
    assert result.unitary.dtype == result.hermitian.dtype == dtype
    result.unitary.abs().sum().backward()
    assert A.grad.shape == shape


# Scale


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [-149, -120, -99, -60, -25, 25, 60, 99, 120])
def test_powers_of_two_change_nothing(method, exponent):
    """Float32 from subnormal numbers to near overflow; scaling by a power of two does not round."""
    A = torch.randint(-8, 9, (6, 6), generator=torch.Generator().manual_seed(3)).float() + 40 * torch.eye(6)
    scaled = A * 2.0 ** (exponent / 2) * 2.0 ** (exponent / 2) if exponent % 2 == 0 else A * 2.0**exponent
    if exponent == -149:
        scaled = (A.double() * 2.0**-149).float()
    U = polar_factor(scaled, method)
    assert_close(U, polar_factor(A, method), c=10 if resolve_method(method).tolerance(torch.float32, 1) < 1e-4 else 1e6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["near-overflow", "near-underflow", "scaled-1e30", "scaled-1e-30"])
def test_extreme_scales_give_a_finite_factor(method, dtype, name):
    A = make(name, 8, 8, dtype, seed=5)
    U = polar_factor(A, method)
    assert U.isfinite().all()
    assert 0.3 < float(torch.linalg.matrix_norm(U.to(torch.complex128), 2)) < 1.5


def test_the_hermitian_factor_is_scaled_back():
    for scale in (1e-30, 1e30):
        A = well_conditioned(5, 3, dtype=torch.float32)
        A = A * scale
        U, H, _, _ = polar(A, "svd")
        assert_close((U.double() @ H.double()).float(), A)


# Half precision


@pytest.mark.parametrize("method", FULL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(method, dtype):
    A = well_conditioned(8, 5, dtype=torch.float32).to(dtype)
    U, H, status, _ = polar(A, method)
    assert U.dtype == H.dtype == dtype
    exact = polar(A.float(), "svd")
    assert float((U.float() - exact.unitary).abs().max()) <= eps_of(dtype)
    assert float((H.float() - exact.hermitian).abs().max()) <= eps_of(dtype) * float(exact.hermitian.abs().max())
    assert status == Status.CONVERGED


# Cost


def test_a_factor_by_a_method_costs_few_python_calls():
    """An optimizer asks for one per bucket and step: Muon's five steps in at most 23 calls of ours."""
    calls, ours = [], Path(polargrad.__file__).parent
    method, A = NewtonSchulz(), torch.randn(64, 32)
    polar_factor(A, method)

    def count(frame, event, _):
        if event == "call" and ours in Path(frame.f_code.co_filename).parents:
            calls.append(frame.f_code.co_name)

    sys.setprofile(count)
    try:
        polar_factor(A, method)
    finally:
        sys.setprofile(None)
    assert 5 < len(calls) <= 23, calls


@pytest.mark.parametrize("method", [*available_methods(), NewtonSchulz(dtype="float16")], ids=str)
def test_a_floor_of_zero_divides_nothing(method):
    A = torch.stack([torch.zeros(3, 3), torch.eye(3)])
    for floor in (torch.zeros(2, 1, 1), 1e-8, 1e-30):  # float16 rounds the last two to 0
        U = polar_factor(A, method, norm_floor=floor)
        assert torch.equal(U, polar_factor(A, method))
        assert (U[0] == 0).all()


def test_float16_takes_subnormal_matrices_and_floors_beyond_its_range():
    method = NewtonSchulz.quintic(6, dtype="float16")
    assert torch.allclose(polar_factor(torch.eye(2) * 2.0**-148, method), torch.eye(2), atol=2e-3)
    assert polar_factor(torch.eye(2), method, norm_floor=1e30).abs().max() < 1e-3


@pytest.mark.parametrize("floor", [-1.0, torch.nan, torch.inf, "1", 1j, True, None, torch.tensor([[-1.0]]),
                                   torch.tensor([[torch.nan]]), torch.ones(2), torch.ones(2, 1, 1),
                                   torch.ones(1, 1, dtype=torch.complex64), torch.ones(1, 1, dtype=torch.int64)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("method", ["svd", "newton-schulz"])
def test_a_norm_floor_that_is_none_is_refused(floor, method):
    with pytest.raises(ValueError, match="norm_floor must be"):
        polar_factor(torch.eye(3), method, norm_floor=floor)


@pytest.mark.parametrize("method", ["auto", "svd", "qdwh", "newton", "newton-schulz", "gram-newton-schulz"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128], ids=str)
def test_a_norm_floor_for_real_and_complex_matrices(method, dtype):
    A = torch.randn(2, 5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    U, low = (polar_factor(A, method, norm_floor=floor) for floor in (0.0, 1e-6))
    torch.testing.assert_close(low, U)
    size = torch.linalg.matrix_norm(A)[:, None, None]
    below = polar_factor(A, method, norm_floor=1e4 * size)
    if "schulz" in method:  # a polynomial of A / norm_floor, near its beginning proportional to A
        assert (torch.linalg.matrix_norm(below) < 0.1 * torch.linalg.matrix_norm(U)).all()
    else:
        torch.testing.assert_close(below, 1e-4 * U)
    same = polar_factor(A, method, norm_floor=1e4 * size.max())
    torch.testing.assert_close(same, polar_factor(A, method, norm_floor=1e4 * float(size.max())))


@pytest.mark.parametrize("n", [2, 3, 4, 16])
def test_the_cut_off_of_single_precision_is_where_the_docs_have_it(n):
    """Directions from sqrt(n) / 2 eps sigma_max on, at most 4, are kept, and what is below is left out."""
    eps = torch.finfo(torch.float32).eps
    ratios = torch.logspace(-1, 1, 40, dtype=torch.float64) * eps * min(4.0, n**0.5 / 2)
    A = torch.diag_embed(torch.cat([torch.ones(40, n - 1, dtype=torch.float64), ratios[:, None]], 1))
    turn = torch.arange(n).roll(1)  # a permutation and a power of two round nothing
    A = (2.0**-7 * A[:, turn]).float()
    for U in (polar_factor(A), torch.stack([polar_factor(a) for a in A])):
        rank = U.square().sum((-2, -1)).round()
        assert torch.equal(rank == n, ratios > eps * min(4.0, n**0.5 / 2))


def test_a_nested_tensor_is_refused():
    with pytest.raises(TypeError, match="dense"):
        polar_factor(torch.nested.nested_tensor([torch.randn(3, 2), torch.randn(4, 2)], layout=torch.jagged))
