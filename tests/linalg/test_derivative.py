"""The gradient of the polar decomposition, against finite differences and closed forms."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from polargrad.linalg import available_methods, polar, polar_factor, resolve_method
from tests.assertions import assert_close
from tests.matrices import random_orthonormal, with_singular_values

SHAPES = [(3, 3), (5, 3), (3, 5), (1, 1), (4, 1), (1, 4), (2, 4, 3), (2, 1, 3, 3)]


def _regular(shape, dtype, seed=0):
    torch.manual_seed(seed)
    return (torch.randn(shape, dtype=dtype) + torch.eye(*shape[-2:], dtype=dtype)).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["svd", "qdwh", "auto"])
def test_both_factors_against_finite_differences(method, shape, dtype):
    A = _regular(shape, dtype)
    assert gradcheck(lambda A: polar_factor(A, method), A)
    assert gradcheck(lambda A: polar(A, method)[:2], A)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 2)])
def test_second_derivatives(shape, dtype):
    assert gradgradcheck(lambda A: polar(A, "svd")[:2], _regular(shape, dtype))


def test_repeated_singular_values_are_no_trouble():
    """The derivative of an SVD does not exist there; that of the polar factor does."""
    A = (2.0 * random_orthonormal(4, 4)).requires_grad_()
    assert gradcheck(lambda A: polar_factor(A, "svd"), A)
    assert gradgradcheck(lambda A: polar_factor(A, "svd"), A)


def test_the_gradient_checker_notices_a_wrong_gradient():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, A):
            ctx.save_for_backward(A)
            return polar_factor(A, "svd")

        @staticmethod
        def backward(ctx, G):
            (A,) = ctx.saved_tensors
            with torch.enable_grad():
                B = A.detach().requires_grad_()
                return 1.01 * torch.autograd.grad(polar_factor(B, "svd"), B, G)[0]

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(Wrong.apply, _regular((3, 3), torch.float64))


def test_the_gradient_of_the_nuclear_norm_is_the_factor():
    """d tr(H) = <U, dA>."""
    for shape in [(5, 3), (3, 5), (4, 4)]:
        A = _regular(shape, torch.float64)
        U, H, _, _ = polar(A, "svd")
        (gradient,) = torch.autograd.grad(H.diagonal().sum(), A)
        assert_close(gradient, U.detach())


def test_moving_along_a_changes_nothing():
    """U(s A) = U(A), so the gradient is orthogonal to A; and it scales like 1 / s."""
    A = _regular((5, 3), torch.float64)
    G = torch.randn(5, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((polar_factor(A, "svd") * G).sum(), A)
    assert abs(float((gradient * A.detach()).sum())) < 1e-13
    B = (1e3 * A.detach()).requires_grad_()
    (scaled,) = torch.autograd.grad((polar_factor(B, "svd") * G).sum(), B)
    assert_close(1e3 * scaled, gradient)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e38])
def test_extreme_scales(scale):
    torch.manual_seed(0)
    base = torch.eye(4) + 0.1 * torch.randn(4, 4)
    G = torch.randn(4, 4)
    A = (base * scale).requires_grad_()
    (gradient,) = torch.autograd.grad((polar_factor(A, "svd") * G).sum(), A)
    B = base.clone().requires_grad_()
    (plain,) = torch.autograd.grad((polar_factor(B, "svd") * G).sum(), B)
    assert_close((gradient.double() * scale).float(), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_get_a_gradient_of_their_own(dtype):
    torch.manual_seed(0)
    base = (torch.eye(5, 3) + 0.3 * torch.randn(5, 3)).to(dtype)
    A = base.clone().requires_grad_()
    U, H, _, _ = polar(A, "svd")
    (U.sum() + H.square().sum()).backward()
    assert A.grad.dtype == dtype
    B = base.double().requires_grad_()
    V, K, _, _ = polar(B, "svd")
    (V.sum() + K.square().sum()).backward()
    assert float((A.grad.double() - B.grad).norm() / B.grad.norm()) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", available_methods())
def test_every_method_carries_the_derivative_of_the_exact_factor(method):
    """To the accuracy of the factor that was computed."""
    A = with_singular_values(4, 4, torch.linspace(1, 0.3, 4, dtype=torch.float64)).requires_grad_()
    G = torch.randn(4, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((polar_factor(A, method) * G).sum(), A)
    (exact,) = torch.autograd.grad((polar_factor(A, "svd") * G).sum(), A)
    tolerance = resolve_method(method).tolerance(resolve_method(method).working_dtype(A.dtype), 4)
    assert float((gradient - exact).norm() / exact.norm()) <= 8 * max(tolerance, 1e-12)


@pytest.mark.parametrize(
    "A",
    [
        torch.zeros(3, 3),
        torch.diag(torch.tensor([1.0, 1.0, 0.0])),
        torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
        torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]),
    ],
    ids=["zero", "square", "tall", "wide"],
)
def test_without_full_rank_the_error_is_clear(A):
    A = A.clone().requires_grad_()
    U = polar_factor(A, "svd")
    with pytest.raises(RuntimeError, match="not differentiable at a matrix without full rank"):
        U.sum().backward()


def test_a_singular_neighbour_outside_the_loss_is_no_trouble():
    A = torch.stack([torch.eye(3), torch.zeros(3, 3)]).requires_grad_()
    polar_factor(A, "svd")[0].sum().backward()
    assert A.grad.isfinite().all()
    assert not A.grad[1].any()


def test_a_non_finite_matrix_poisons_its_own_gradient_alone():
    A = torch.stack([torch.eye(3), torch.full((3, 3), math.nan)]).requires_grad_()
    U, H, _, _ = polar(A, "svd")
    (U.sum() + H.sum()).backward()
    assert A.grad[0].isfinite().all()
    assert A.grad[1].isnan().all()


def test_layouts_and_views_carry_gradients():
    A = torch.randn(3, 2, 4, dtype=torch.complex128, requires_grad=True)
    assert gradcheck(lambda A: polar_factor(A.mH.movedim(0, 1)[:, :, :2], "svd"), A)
    B = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda B: polar_factor(B.expand(2, 3, 2), "svd"), B)


def test_no_graph_where_none_is_asked():
    A = torch.eye(3, requires_grad=True)
    with torch.no_grad():
        assert not polar_factor(A).requires_grad
    assert not polar_factor(A.detach()).requires_grad
    assert polar_factor(A).requires_grad
    result = polar(A)
    assert not result.status.requires_grad
    assert not result.stats["orthogonality"].requires_grad


# Forward mode, transforms and second derivatives


EXACT = [*(m for m in available_methods() if resolve_method(m).tolerance(torch.float64, 1) < 1e-6), "polar-express"]
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at first use


@forward_mode
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.complex128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_mode_and_batched_derivatives_against_finite_differences(shape, dtype):
    def both(A):
        return polar(A, "svd")[:2]

    A = _regular(shape, dtype)
    batched = math.prod(shape) <= 9  # which costs most of the time
    forward = batched and not dtype.is_complex  # torch refuses complex views in batches of tangents
    assert gradcheck(both, A, check_forward_ad=True, check_batched_grad=batched, check_batched_forward_grad=forward)
    assert gradgradcheck(both, A, check_fwd_over_rev=True, check_rev_over_rev=True)


@forward_mode
@pytest.mark.parametrize("shape", [(4, 3), (3, 3), (3, 4), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("method", EXACT)
def test_every_transform_gives_the_same_derivatives(method, shape):
    """The Jacobian by rows of backward, the reference, is what gradcheck holds to finite differences."""
    A, B = _regular(shape, torch.float64).detach(), _regular(shape, torch.float64, seed=1).detach()
    G = torch.randn(shape, dtype=torch.float64)

    def factor(A):
        return polar_factor(A, method)

    def loss(A):
        return (G * factor(A)).sum()

    jacobian = torch.autograd.functional.jacobian(factor, A)
    hessian = torch.autograd.functional.hessian(loss, A)
    func = torch.func
    for transformed in (func.jacrev(factor), func.jacfwd(factor)):
        assert_close(transformed(A), jacobian)
    assert_close(torch.autograd.functional.jacobian(factor, A, vectorize=True), jacobian)
    assert_close(torch.autograd.functional.jacobian(factor, A, vectorize=True, strategy="forward-mode"), jacobian)
    jacrev, jacfwd = func.jacrev, func.jacfwd
    for outer, inner in ((jacrev, jacrev), (jacrev, jacfwd), (jacfwd, jacrev), (jacfwd, jacfwd)):
        assert_close(outer(inner(loss))(A), hessian, c=300)
    assert_close(func.hessian(loss)(A), hessian, c=300)
    _, tangent = func.jvp(factor, (A,), (B,))
    assert_close(tangent, torch.tensordot(jacobian, B, dims=B.ndim))
    both = torch.stack([A, B])
    assert_close(torch.vmap(factor)(both), torch.stack([factor(A), factor(B)]))
    assert_close(torch.vmap(func.grad(loss))(both), torch.stack([func.grad(loss)(A), func.grad(loss)(B)]))
    assert_close(
        torch.vmap(factor, in_dims=-1, out_dims=1)(both.movedim(0, -1)).movedim(1, 0), torch.vmap(factor)(both)
    )


def test_the_whole_decomposition_under_vmap():
    A = torch.randn(3, 2, 5, 4)
    together = torch.vmap(lambda A: polar(A)[:3])(A)
    for part, expected in zip(together, polar(A)[:3], strict=True):
        assert part.dtype == expected.dtype
        assert torch.allclose(part, expected, atol=1e-5)


@forward_mode
@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5)], ids=str)
def test_the_hessian_where_the_gradient_is_zero(shape):
    """f(A) = ||U(A) - U(A_0)||^2 / 2 has the Hessian J^T J at A_0, where the cotangent of U is zero."""
    A = _regular(shape, torch.float64).detach()
    target = polar_factor(A, "svd")

    def distance(A):
        return (polar_factor(A, "svd") - target).square().sum() / 2

    J = torch.autograd.functional.jacobian(lambda A: polar_factor(A, "svd"), A).reshape(A.numel(), A.numel())
    expected = (J.mT @ J).reshape(*shape, *shape)
    assert float(expected.norm()) > 0.1
    assert_close(torch.autograd.functional.hessian(distance, A), expected)
    assert_close(torch.func.hessian(distance)(A), expected)
    assert_close(torch.func.jacfwd(torch.func.jacfwd(distance))(A), expected)


def test_nested_forward_mode_needs_our_care():
    """The reason for `_nested_forward_mode`: torch itself gives zero here. Where it no longer does, drop it."""

    class Exponential(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.exp()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_forward(output)

        @staticmethod
        def jvp(ctx, dx):
            return dx * ctx.saved_tensors[0]

    x, one = torch.tensor(0.5), torch.tensor(1.0)
    slope = lambda x: torch.func.jvp(Exponential.apply, (x,), (one,))[1]  # noqa: E731
    assert torch.func.jvp(slope, (x,), (one,))[1] == 0.0


# Matrices without a derivative


@pytest.mark.parametrize("singular", ["zero", "nan"])
def test_a_singular_member_of_a_batch_touches_its_own_gradient_alone(singular):
    A = torch.randn(3, 4, 3, dtype=torch.float64)
    A[1, :, 2] = A[1, :, 1]
    B = A.clone().requires_grad_()
    U, H, _, _ = polar(B, "svd", singular_gradient=singular)
    (U.square() + U).sum().backward()
    C = A[[0, 2]].clone().requires_grad_()
    V = polar_factor(C, "svd")
    (V.square() + V).sum().backward()
    assert torch.equal(B.grad[[0, 2]], C.grad)
    assert (B.grad[1].isnan() if singular == "nan" else B.grad[1] == 0).all()
    assert H.requires_grad


def test_a_masked_gradient_is_masked_in_every_mode():
    A = torch.stack([torch.eye(3), torch.zeros(3, 3)]).double()

    def loss(A):
        return (polar_factor(A, "svd", singular_gradient="zero") * torch.arange(9.0).view(3, 3)).sum()

    for gradient in (
        torch.func.grad(loss)(A),
        torch.func.jacfwd(loss)(A),
        torch.vmap(torch.func.grad(loss))(A[None])[0],
    ):
        assert gradient[0].any()
        assert not gradient[1].any()
    hessian = torch.func.hessian(loss)(A)
    assert hessian.isfinite().all()
    assert not hessian[1].any()


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.vmap(torch.func.grad(f)),
        lambda f: torch.vmap(torch.func.jacfwd(f)),
        lambda f: torch.vmap(torch.func.hessian(f)),
    ],
)
@forward_mode
def test_transforms_refuse_a_singular_matrix_as_backward_does(transform):
    A = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]))]).double()
    with pytest.raises(RuntimeError, match=r"\d+ of \d+ .*singular_gradient='zero'"):
        transform(lambda A: polar_factor(A, "svd").sum())(A)


def test_a_second_derivative_at_a_singular_matrix_is_refused_where_the_first_is_zero():
    A = torch.diag(torch.tensor([1.0, 1.0, 0.0])).double().requires_grad_()
    U = polar_factor(A, "svd")
    G = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(U, A, G, create_graph=True)
    assert not first.any()
    with pytest.raises(RuntimeError, match="without full rank"):
        torch.autograd.grad(first.sum(), G)


def test_a_non_finite_matrix_outside_the_loss_gets_no_gradient():
    A = torch.stack([torch.eye(3), torch.full((3, 3), math.nan)]).requires_grad_()
    U, H, _, _ = polar(A, "svd")
    (U[0].sum() + H[0].sum()).backward()
    assert A.grad[0].any()
    assert A.grad.isfinite().all()
    for part in (0, 1):
        A.grad = None
        polar(A, "svd")[part].sum().backward()
        assert A.grad[1].isnan().any()


def test_a_bad_choice_is_refused():
    with pytest.raises(ValueError, match=r"singular_gradient must be .*'raise'.* got 'mask'"):
        polar_factor(torch.eye(3), singular_gradient="mask")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("place", ["near overflow", "near underflow"])
def test_the_ends_of_the_range(dtype, place):
    """The modulus of a complex number overflows before its parts do."""
    base = _regular((4, 3), dtype).detach() / 4
    info = torch.finfo(dtype)
    scale = 2.0 ** int(math.log2(info.max) - 2) if place == "near overflow" else 2.0 ** int(math.log2(info.tiny) + 30)
    G = _regular((4, 3), dtype, seed=1).detach()
    A, B = (base * scale).requires_grad_(), base.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(polar_factor(A, "svd"), A, G)
    (plain,) = torch.autograd.grad(polar_factor(B, "svd"), B, G)
    if place == "near overflow":  # or else the gradient is beyond the range
        assert_close((gradient * 2.0**40) * (scale / 2.0**40), plain, c=300)
    assert A.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0, 3, 3), (0, 0)], ids=str)
def test_the_factors_of_nothing_keep_their_graph(shape):
    A = torch.zeros(shape, requires_grad=True)
    result = polar(A)
    (result.unitary.sum() + result.hermitian.sum()).backward()
    assert result.hermitian.requires_grad
    assert A.grad.shape == shape


# Tracing


# Dynamo makes an instance of every function that it traces, and torch warns of that.
traced = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@traced
@pytest.mark.parametrize("method", available_methods())
def test_one_graph_holds_factor_and_gradient(method):
    torch._dynamo.reset()
    A, G = torch.randn(20, 12), torch.randn(20, 12)

    def step(A):
        U, H, status, _ = polar(A, method)
        return (U * G).sum() + H.square().sum(), U, status

    def outcome(step):
        B = A.clone().requires_grad_()
        loss, U, status = step(B)
        loss.backward()
        return loss.detach(), U.detach(), status, B.grad

    compiled = outcome(torch.compile(step, fullgraph=True, backend="aot_eager"))
    for ours, theirs in zip(compiled, outcome(step), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(30, 20), (300, 256), (3, 40, 40)], ids=str)
@pytest.mark.parametrize("method", available_methods())
def test_fake_tensors_have_factors_and_gradients(method, shape):
    A = torch.randn(shape).requires_grad_()
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(A)
        result = polar(fake, method)
        (result.unitary.sum() + result.hermitian.sum()).backward()
        assert result.unitary.shape == fake.grad.shape == shape
    assert torch.equal(polar_factor(A, method), polar_factor(A, method))  # nothing fake was kept


@traced
def test_a_graph_confines_a_non_finite_matrix_as_eager_does():
    A = torch.stack([torch.eye(3), torch.full((3, 3), math.nan), torch.eye(3)])

    def gradient(part, wrap):
        torch._dynamo.reset()
        B = A.clone().requires_grad_()
        wrap(lambda A: sum(M[part].sum() for M in polar(A, "svd")[:2]))(B).backward()
        return B.grad

    compiled = lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")  # noqa: E731
    for part in (slice(0, 1), slice(0, 2)):
        ours = gradient(part, compiled)
        assert torch.allclose(ours, gradient(part, lambda f: f), atol=1e-6, equal_nan=True)
        assert bool(ours[1].isnan().any()) == (part.stop == 2)


@traced
def test_a_graph_gives_nan_where_it_cannot_raise():
    torch._dynamo.reset()
    A = torch.stack([torch.eye(3), torch.zeros(3, 3)]).requires_grad_()
    torch.compile(lambda A: polar_factor(A, "qdwh").sum(), fullgraph=True, backend="aot_eager")(A).backward()
    assert A.grad[0].isfinite().all()
    assert A.grad[1].isnan().all()
