"""The engine computes in the precision that it states, whatever surrounds it."""

import contextlib
import threading

import pytest
import torch

from polargrad.linalg import (
    NewtonSchulz,
    Status,
    available_methods,
    inverse_sqrt,
    lowdin,
    nearest_rotation,
    orthogonal_procrustes,
    polar,
    polar_factor,
)
from polargrad.linalg.double_gram import DoubleGram
from polargrad.linalg.precision import at_least_single, double_precision, is_lowered, stated_precision
from tests.matrices import with_singular_values
from tests.polar_cases import well_conditioned

METHODS = [*available_methods(), NewtonSchulz(dtype=None), DoubleGram()]
DTYPES = [torch.float32, torch.bfloat16, torch.complex64]


class autocast(torch.autocast):
    def __init__(self):
        super().__init__("cpu", torch.bfloat16)


class lowered_products:
    """float32 products of the CPU in bfloat16: what "high" and "medium" mean for TF32 on a GPU."""

    def __enter__(self):
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")

    def __exit__(self, *_):
        torch.set_float32_matmul_precision(self.before)


def products_are_lowered():
    A = torch.randn(64, 64)
    error = torch.linalg.matrix_norm((A @ A).double() - A.double() @ A.double())
    return bool(error > 1e-4 * torch.linalg.matrix_norm(A))


@pytest.fixture(params=[autocast, lowered_products])
def context(request):
    with request.param():
        if not products_are_lowered():
            pytest.skip("this CPU computes float32 products in float32 only")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_factor_certificate_and_gradient_are_those_of_no_context(method, dtype, context):
    A = well_conditioned(2, 48, 32, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    G = torch.randn_like(A)

    def everything(A):
        A = A.clone().requires_grad_()
        result = polar(A, method)
        (gradient,) = torch.autograd.grad((result.unitary * G.conj()).sum().real + result.hermitian.abs().sum(), A)
        return (*result[:2], gradient, *(result.stats[name] for name in ("orthogonality", "backward_error")))

    outside = everything(A)
    with context():
        inside = everything(A)
        assert torch.equal(polar_factor(A, method), outside[0])
    for theirs, ours in zip(outside, inside, strict=True):
        assert ours.dtype == theirs.dtype
        # abs() and sum() of the loss are the test's own; the rest is the engine's.
        assert torch.equal(ours, theirs)


def test_backward_inside_a_context_of_a_forward_outside(context):
    A = well_conditioned(20, 12, dtype=torch.float32)
    G = torch.randn(20, 12)

    def gradients(A, inside):
        A = A.clone().requires_grad_()
        U, H, _, _ = polar(A, "svd")
        loss = (U * G).sum() + H.square().sum()
        if not inside:
            (first,) = torch.autograd.grad(loss, A, create_graph=True)
            return first, *torch.autograd.grad(first.square().sum(), A)
        with context():
            (first,) = torch.autograd.grad(loss, A, create_graph=True)
            return first, *torch.autograd.grad(first.square().sum(), A)

    for inside, outside in zip(gradients(A, True), gradients(A, False), strict=True):
        assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    "function",
    [
        nearest_rotation,
        inverse_sqrt,
        lambda S: lowdin(torch.eye(12)[:, :5], S),
        lambda S: orthogonal_procrustes(S, torch.eye(12))[0],
    ],
    ids=["rotation", "root", "lowdin", "procrustes"],
)
def test_functions_built_on_the_factor_inside_a_context(function, context):
    """Both passes, and the backward pass alone, which is not of torch's own operations."""
    A = well_conditioned(12, 12, dtype=torch.float32)
    S = (A @ A.mT).requires_grad_()
    value = function(S)
    G = torch.randn_like(value)
    (gradient,) = torch.autograd.grad(value, S, G)
    outside = function(S)
    with context():
        inside = function(S)
        assert torch.equal(inside, value)
        assert torch.equal(torch.autograd.grad(outside, S, G)[0], gradient)
        assert torch.equal(torch.autograd.grad(inside, S, G)[0], gradient)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at the first jvp
def test_forward_mode_inside_a_context(context):
    A, dA = well_conditioned(20, 12, dtype=torch.float32), torch.randn(20, 12)
    outside = torch.func.jvp(lambda A: polar(A, "svd")[:2], (A,), (dA,))
    with context():
        inside = torch.func.jvp(lambda A: polar(A, "svd")[:2], (A,), (dA,))
    for theirs, ours in zip(outside, inside, strict=True):
        for a, b in zip(theirs, ours, strict=True):
            assert torch.equal(a, b)


def test_nothing_of_the_surroundings_is_changed_for_good():
    A = well_conditioned(6, 4, dtype=torch.float32)
    get = torch._C._get_fp32_precision_getter
    with lowered_products():
        before = (torch.get_float32_matmul_precision(), get("mkldnn", "matmul"), get("cuda", "matmul"))
        polar_factor(A)
        with pytest.raises(TypeError, match="A must be"):
            polar_factor(A.long())
        with contextlib.suppress(ZeroDivisionError), stated_precision("cpu"):
            assert get("mkldnn", "matmul") == "ieee"
            _ = 1 / 0
        assert before == (torch.get_float32_matmul_precision(), get("mkldnn", "matmul"), get("cuda", "matmul"))
        assert is_lowered("cpu")
    assert not is_lowered("cpu")
    with autocast():
        polar_factor(A)
        assert torch.is_autocast_enabled("cpu")
        assert (A @ A.mT).dtype == torch.bfloat16


def test_an_inherited_setting_is_inherited_again():
    get, set_ = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    before = get("mkldnn", "matmul")
    set_("mkldnn", "matmul", "none")
    set_("generic", "all", "tf32")
    try:
        with stated_precision("cpu"):
            assert get("mkldnn", "matmul") == "ieee"
        assert get("mkldnn", "matmul") == "tf32"
        set_("generic", "all", "none")
        assert get("mkldnn", "matmul") == "none"
    finally:
        set_("generic", "all", "none")
        set_("mkldnn", "matmul", before)


def test_autocast_of_another_thread_stays_its_own():
    seen = []

    def work():
        with autocast():
            seen.append(polar(with_singular_values(8, 8, torch.linspace(1, 0.1, 8).double()).float()).status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0] == Status.CONVERGED
    assert not is_lowered("cpu")


# Defaults of the process


# Shapes that no other test has, so that nothing comes from a cache of earlier calls; the larger ones for the methods
# that keep something for a shape.
FRESH = [(method, (21, 13)) for method in METHODS] + [
    (method, shape) for method in ("auto", "qdwh", DoubleGram()) for shape in ((530, 270), (6300, 210))
]


@pytest.mark.parametrize(("method", "shape"), FRESH, ids=str)
def test_the_default_device_is_not_taken_for_that_of_the_matrix(method, shape):
    A = torch.randn(shape).requires_grad_()
    with torch.device("meta"):
        result = polar(A, method)
        (gradient,) = torch.autograd.grad(result.unitary[0, 0] + result.hermitian[0, 0], A)
    assert result.unitary.device.type == result.hermitian.device.type == gradient.device.type == "cpu"
    assert torch.equal(result.unitary, polar_factor(A, method))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_default_dtype_changes_nothing(method, default):
    A = torch.randn(23, 17).requires_grad_()
    outside = polar(A, method)
    torch.set_default_dtype(default)
    try:
        result = polar(A, method)
        (gradient,) = torch.autograd.grad(result.unitary[0, 0], A)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(result.unitary, outside.unitary)
    assert torch.equal(result.hermitian, outside.hermitian)
    assert result.status == outside.status
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, torch.autograd.grad(outside.unitary[0, 0], A)[0])


# Dtypes


def test_wider_dtypes():
    assert [at_least_single(d) for d in (torch.float16, torch.bfloat16, torch.float32)] == [torch.float32] * 3
    assert at_least_single(torch.complex128) == torch.complex128
    assert double_precision(torch.float32) == torch.float64
    assert double_precision(torch.complex64) == torch.complex128
