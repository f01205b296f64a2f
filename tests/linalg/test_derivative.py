"""The gradient of the polar decomposition, against finite differences and closed forms."""

import math

import pytest
import torch
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


def test_functional_transforms():
    A = torch.randn(2, 4, 3, dtype=torch.float64)
    gradient = torch.func.grad(lambda A: polar_factor(A, "svd").sum())(A)
    B = A.clone().requires_grad_()
    polar_factor(B, "svd").sum().backward()
    assert_close(gradient, B.grad)
