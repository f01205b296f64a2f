"""The shared path: what a caller may pass, what comes back, and what stays untouched."""

import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polargrad.linalg import (
    QDWH,
    SVD,
    Auto,
    NewtonSchulz,
    PolarExpress,
    Status,
    available_methods,
    polar,
    polar_factor,
    resolve_method,
)
from tests.assertions import assert_close, assert_polar_factor, assert_psd, assert_unmodified, eps_of
from tests.matrices import make, random_orthonormal, with_singular_values

METHODS = available_methods()
FULL = ["svd", "auto", "qdwh"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
REAL = [torch.float32, torch.float64]


def well_conditioned(*shape, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    A = torch.randn(shape, dtype=dtype)
    k = min(shape[-2:])
    return A + 2 * math.sqrt(k) * torch.eye(*shape[-2:], dtype=dtype)


def _same_to(method):
    """c of assert_close for one matrix computed in two orders of summation: coarse methods work in half precision."""
    return 1e3 if resolve_method(method).tolerance(torch.float64, 1) < 1e-6 else 1e14


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
    assert_close(U, polar_factor(A, method).expand(4, 5, 5), c=_same_to(method))
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
    assert_close(result.unitary, single, c=_same_to(method))


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


# Status


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_matrix_does_not_touch_its_neighbours(method, bad):
    A = well_conditioned(3, 5, 5)
    spoiled = A.clone()
    spoiled[1, 2, 3] = bad
    result = polar(spoiled, method)
    assert result.status[1] == Status.NON_FINITE
    assert result.unitary[1].isnan().all()
    assert result.hermitian[1].isnan().all()
    assert result.stats["orthogonality"].isnan().tolist() == [False, True, False]
    assert_close(result.unitary[[0, 2]], polar_factor(A, method)[[0, 2]])


def test_an_imaginary_infinity_is_seen():
    A = torch.eye(3, dtype=torch.complex64)
    A[0, 0] = complex(1.0, math.inf)
    assert polar(A).status == Status.NON_FINITE


def test_a_step_limit_is_reported_with_what_was_reached():
    A = with_singular_values(8, 8, torch.logspace(0, -5, 8, dtype=torch.float64))
    result = polar(A, "qdwh", max_steps=2)
    assert result.status == Status.STEP_LIMIT
    assert result.stats["steps"] == 2
    G = result.unitary.mT @ result.unitary
    measured = torch.linalg.matrix_norm(G - torch.eye(8)) / math.sqrt(8)
    assert_close(result.stats["orthogonality"], measured)
    assert polar(A, "qdwh").status == Status.CONVERGED


def test_the_known_bound_holds():
    for method in (QDWH(max_steps=2), PolarExpress(), NewtonSchulz()):
        A = with_singular_values(8, 8, torch.logspace(0, -2, 8, dtype=torch.float64)).float()
        result = polar(A, method)
        if result.stats["bounds"] is None:
            continue
        low, high = result.stats["bounds"]
        sigma = torch.linalg.svdvals(result.unitary.double())
        assert low - 0.02 <= float(sigma.min())
        assert float(sigma.max()) <= high + 0.02


def test_converged_is_never_said_of_a_wrong_isometry():
    """The measured certificate sees what G = I alone would not."""

    class Wrong(SVD):
        def iterate(self, X):
            return super().iterate(X)._replace(unitary=torch.linalg.qr(X).Q)

    A = well_conditioned(3, 6, 4)
    assert (polar(A, Wrong()).status == Status.STEP_LIMIT).all()
    assert (polar(A, SVD()).status == Status.CONVERGED).all()


def test_converged_is_never_said_of_a_lost_direction():
    class Truncated(SVD):
        def iterate(self, X):
            return SVD(cutoff=1e-2).iterate(X)

    A = with_singular_values(6, 4, torch.tensor([1.0, 0.5, 0.1, 1e-3], dtype=torch.float64))
    assert polar(A, Truncated()).status == Status.STEP_LIMIT
    assert polar(A, SVD()).status == Status.CONVERGED


def test_a_method_that_fails_is_a_breakdown():
    class Failing(SVD):
        def iterate(self, X):
            return super().iterate(X)._replace(unitary=torch.full_like(X, math.nan))

    assert polar(well_conditioned(3, 3), Failing()).status == Status.BREAKDOWN


@pytest.mark.parametrize("method", ["svd", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_rank_deficiency_gives_the_partial_isometry(method, dtype):
    sigma = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0], dtype=torch.float64)
    for m, n in [(5, 5), (9, 5), (5, 9)]:
        A = with_singular_values(m, n, sigma, dtype).to(dtype)
        result = polar(A, method)
        values = torch.linalg.svdvals(result.unitary)
        assert_close(values, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]).to(values.dtype), c=30)
        assert result.status == Status.CONVERGED
        assert float(result.stats["orthogonality"]) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gives_zero(method, dtype):
    A = torch.stack([torch.zeros(4, 4, dtype=dtype), torch.eye(4, dtype=dtype)])
    result = polar(A, method)
    assert not result.unitary[0].any()
    assert not result.hermitian[0].any()
    assert result.status[0] in (Status.CONVERGED, Status.BREAKDOWN)
    assert float(torch.linalg.matrix_norm(result.unitary[1].to(torch.complex128) - torch.eye(4))) < 1.0


# Accuracy and steps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accuracy", [1e-1, 1e-2, 1e-3, "full"])
@pytest.mark.parametrize("dtype", REAL)
def test_an_accuracy_is_reached_or_refused(method, accuracy, dtype):
    A = with_singular_values(12, 12, torch.linspace(1, 0.05, 12, dtype=torch.float64)).to(dtype)
    try:
        U = polar_factor(A, method, accuracy=accuracy)
    except ValueError as error:
        assert "accuracy" in str(error)  # noqa: PT017
        assert method not in FULL
        return
    deviation = float((torch.linalg.svdvals(U.double()) - 1).abs().max())
    assert deviation <= (100 * eps_of(dtype) if accuracy == "full" else accuracy)


def test_max_steps_is_handed_on():
    assert polar(well_conditioned(4, 4), "qdwh", max_steps=3).stats["steps"] == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"accuracy": 0.0}, "accuracy must be"),
        ({"accuracy": 1.0}, "accuracy must be"),
        ({"accuracy": "best"}, "accuracy must be"),
        ({"accuracy": True}, "accuracy must be"),
        ({"accuracy": 1e-9}, "below the unit roundoff"),
        ({"method": "newton-schulz", "accuracy": 1e-3}, "accuracy"),
        ({"method": "qdwh", "accuracy": 1e-3, "max_steps": 2}, "not both"),
        ({"method": "qdwh", "max_steps": 0}, "max_steps"),
        ({"method": "qdwh", "max_steps": True}, "max_steps"),
        ({"method": "qdwh", "max_steps": 2.0}, "max_steps"),
        ({"method": "svd", "max_steps": 2}, "max_steps"),
        ({"method": "QDWH"}, "known: auto"),
    ],
)
def test_a_bad_option_is_refused(options, match):
    for function in (polar, polar_factor):
        with pytest.raises(ValueError, match=match):
            function(torch.eye(3), **options)


@pytest.mark.parametrize(
    ("A", "error", "match"),
    [
        ([[1.0]], TypeError, "torch.as_tensor"),
        (torch.ones(3), ValueError, "unsqueeze"),
        (torch.ones(3, 3, dtype=torch.int64), TypeError, "A.float"),
        (torch.ones(3, 3, dtype=torch.bool), TypeError, "floating point"),
        (torch.eye(3).to_sparse(), TypeError, "to_dense"),
    ],
)
def test_a_bad_matrix_is_refused(A, error, match):
    for function in (polar, polar_factor):
        with pytest.raises(error, match=match):
            function(A)


def test_a_bad_method_is_refused():
    with pytest.raises(TypeError, match="PolarMethod"):
        polar(torch.eye(3), 3)


def test_methods_are_values():
    assert Auto() == Auto()
    assert hash(QDWH(max_steps=2)) == hash(QDWH(max_steps=2))
    assert resolve_method(QDWH(max_steps=2)) == resolve_method("qdwh", max_steps=2)


# Cost


class _Operations(TorchDispatchMode):
    """Counts the operations that read a value back to the host."""

    def __init__(self):
        super().__init__()
        self.syncs = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.item, torch.ops.aten.nonzero):
            self.syncs.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_back_off_the_cpu(monkeypatch):
    """The path of an accelerator, walked on the CPU: the flags stay tensors."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for method in (
        "newton-schulz",
        "gram-newton-schulz",
        "precond-newton-schulz",
        "polar-express",
        "qdwh",
        "zolo-pd",
        "newton",
    ):
        with _Operations() as operations:
            polar_factor(well_conditioned(2, 64, 40, dtype=torch.float32), method)
        assert operations.syncs == [], method
    with _Operations() as operations:
        float(torch.ones(1).sum())
    assert operations.syncs


def test_both_paths_agree_off_and_on_the_cpu(monkeypatch):
    A = well_conditioned(3, 6, 4, dtype=torch.float32) * torch.tensor([1e-30, 1.0, 1e30])[:, None, None]
    here = polar_factor(A, "qdwh")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(polar_factor(A, "qdwh"), here)


def test_the_factor_alone_costs_no_certificate(monkeypatch):
    def fail(*_):
        raise AssertionError("certificate computed")

    monkeypatch.setattr(sys.modules["polargrad.linalg.polar"], "_certify", fail)
    polar_factor(torch.eye(3))
    with pytest.raises(AssertionError, match="certificate"):
        polar(torch.eye(3))
