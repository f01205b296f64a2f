"""Nearest rotations and Procrustes problems, against SciPy, brute force and finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from polargrad.linalg import nearest_rotation, orthogonal_procrustes, polar_factor
from tests.assertions import assert_close, assert_orthonormal, rounding
from tests.matrices import random_orthonormal, with_singular_values

FORWARD = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at first use


def assert_rotation(R):
    assert_orthonormal(R)
    assert (torch.linalg.det(R.double()) > 0).all()


def by_svd(A):
    """The formula, in double precision."""
    P, _, Qt = torch.linalg.svd(A.double())
    D = torch.ones(A.shape[:-1], dtype=torch.float64)
    D[..., -1] = torch.linalg.det(P @ Qt).sign()
    return P * D.unsqueeze(-2) @ Qt


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_the_formula(n, dtype):
    A = torch.randn(20, n, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    R = nearest_rotation(A)
    assert R.dtype == dtype
    assert_rotation(R)
    # Rounding turns R by its own size over the sum of the two smallest singular values, the last one with its sign.
    sigma = torch.linalg.svdvals(A.double())
    gap = torch.ones(20) if n == 1 else sigma[:, -2] + sigma[:, -1] * torch.linalg.det(A.double()).sign()
    error = torch.linalg.matrix_norm(R.double() - by_svd(A))
    assert (error <= rounding(dtype, n) * (1 + sigma[:, 0] / gap)).all()


def test_no_rotation_is_nearer():
    """Brute force over the circle, on which every rotation of the plane lies."""
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    for seed in range(10):
        A = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        least = torch.linalg.matrix_norm(circle - A).min()
        assert torch.linalg.matrix_norm(nearest_rotation(A) - A) <= least + 1e-12


def test_it_is_the_polar_factor_where_the_determinant_is_positive_and_not_elsewhere():
    A = torch.randn(50, 3, 3, dtype=torch.float64)
    positive = torch.linalg.det(A) > 0
    R, U = nearest_rotation(A), polar_factor(A)
    assert_close(R[positive], U[positive])
    assert (torch.linalg.matrix_norm(R - U)[~positive] > 1.9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_degenerate_matrices_have_one_too(dtype):
    A = torch.stack(
        [
            torch.zeros(3, 3),
            torch.diag(torch.tensor([1.0, 1.0, 0.0])),
            torch.diag(torch.tensor([1.0, 0.0, 0.0])),
            -torch.eye(3),
            torch.diag(torch.tensor([3.0, 2.0, -1.0])) * 1e-38,
            torch.eye(3) * 1e38,
        ]
    ).to(dtype)
    R = nearest_rotation(A)
    assert_rotation(R)
    attained = (R.double() * A.double()).sum((-2, -1))
    best = torch.tensor([0.0, 2.0, 1.0, -1.0 + 2.0, 4e-38, 3e38], dtype=torch.float64)
    assert torch.allclose(attained, best, rtol=1e-5, atol=0.0)


def test_a_bad_matrix_leaves_its_neighbours_alone():
    A = torch.eye(3).repeat(3, 1, 1)
    A[1, 0, 0] = math.nan
    R = nearest_rotation(A)
    assert R[1].isnan().all()
    assert torch.equal(R[0], R[2])


def test_of_a_hundred_thousand_gaussian_matrices_none_is_lost():
    assert_rotation(nearest_rotation(torch.randn(100_000, 3, 3, generator=torch.Generator().manual_seed(1))))


@FORWARD
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_derivatives_on_both_sides_of_the_determinant(n, sign):
    sigma = torch.linspace(1.0, 0.3, n, dtype=torch.float64)
    A = with_singular_values(n, n, sigma, seed=n)
    A = A if torch.linalg.det(A).sign() == sign else A @ torch.diag(torch.tensor([-1.0] + [1.0] * (n - 1))).double()
    A = torch.stack([A, A.mT]).requires_grad_()
    assert gradcheck(nearest_rotation, A, check_forward_ad=True)
    assert gradgradcheck(nearest_rotation, A, check_fwd_over_rev=True)
    G = torch.randn(n, n, dtype=torch.float64)
    per_matrix = torch.vmap(torch.func.hessian(lambda A: (nearest_rotation(A) * G).sum()))(A.detach())
    alone = [torch.autograd.functional.hessian(lambda A: (nearest_rotation(A) * G).sum(), a.detach()) for a in A]
    assert_close(per_matrix, torch.stack(alone), c=300)


def test_a_singular_matrix_has_a_gradient_where_the_rotation_is_unique():
    """The polar factor has none there: this is why a rotation has a derivative of its own."""
    A = random_orthonormal(3, 3) * torch.tensor([2.0, 1.0, 0.0]).double() @ random_orthonormal(3, 3, seed=1).mT
    assert gradcheck(nearest_rotation, A.requires_grad_())
    with pytest.raises(RuntimeError, match="not differentiable"):
        polar_factor(A, completed=True).sum().backward()


@pytest.mark.parametrize("sigma", [(1.0, 0.0, 0.0), (1.0, 0.5, -0.5), (0.0, 0.0, 0.0)])
def test_where_it_is_not_unique_the_gradient_is_refused_or_masked(sigma):
    A = torch.stack([torch.diag(torch.tensor(sigma)), torch.eye(3)]).double().requires_grad_()
    with pytest.raises(RuntimeError, match=r"1 of 2 matrices .*singular_gradient='zero'"):
        nearest_rotation(A).sum().backward()
    for choice in ("zero", "nan"):
        G = torch.randn(2, 3, 3, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((nearest_rotation(A, singular_gradient=choice) * G).sum(), A)
        assert (gradient[0] == 0).all() if choice == "zero" else gradient[0].isnan().all()
        assert gradient[1].isfinite().all()
        assert gradient[1].any()


@pytest.mark.parametrize(
    ("A", "error", "match"),
    [
        (torch.ones(3, 2), ValueError, r"square matrices, got shape \(3, 2\)"),
        (torch.eye(3, dtype=torch.complex64), TypeError, "real"),
        (torch.eye(3, dtype=torch.int64), TypeError, r"A\.float"),
        ([[1.0]], TypeError, "torch.as_tensor"),
    ],
)
def test_what_is_no_rotation_problem_is_refused(A, error, match):
    with pytest.raises(error, match=match):
        nearest_rotation(A)


def test_nothing_has_no_rotations():
    assert nearest_rotation(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
    A = torch.zeros(0, 3, 3, requires_grad=True)
    nearest_rotation(A).sum().backward()
    assert A.grad.shape == A.shape


# Procrustes


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(("m", "n"), [(5, 3), (3, 3), (2, 4)])
def test_scipy_agrees(m, n, dtype):
    linalg = pytest.importorskip("scipy.linalg")
    A, B = torch.randn(m, n, dtype=dtype), torch.randn(m, n, dtype=dtype)
    R, scale = orthogonal_procrustes(A, B)
    expected, sum_of_values = linalg.orthogonal_procrustes(A.numpy(), B.numpy())
    assert_close(scale, torch.tensor(sum_of_values, dtype=torch.float64))
    assert_orthonormal(R)
    if m >= n:  # or else M is singular, and its completion one of many
        assert_close(R, torch.from_numpy(expected), c=1e3)
    assert_close(torch.linalg.matrix_norm(A @ R - B), torch.linalg.matrix_norm(A @ torch.from_numpy(expected) - B))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("reflected", [False, True])
def test_a_motion_is_found_again(reflected, scale):
    A = torch.randn(4, 20, 3, generator=torch.Generator().manual_seed(0)) * scale
    T = nearest_rotation(torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1)))
    T = T @ torch.diag(torch.tensor([1.0, 1.0, -1.0])) if reflected else T
    R, found = orthogonal_procrustes(A / scale, 2.5 * (A @ T))
    assert_close(R, T)
    assert_close(found / (A / scale).square().sum((-2, -1)), 2.5 * scale * torch.ones(4), c=100)
    R, _ = orthogonal_procrustes(A, A @ T, rotation=True)
    assert_rotation(R)
    assert (torch.linalg.matrix_norm(R - T) < 1e-4).all() != reflected


def test_the_scale_of_a_rotation_counts_the_last_value_with_its_sign():
    A = torch.eye(3, dtype=torch.float64)
    R, scale = orthogonal_procrustes(A, torch.diag(torch.tensor([3.0, 2.0, -1.0])).double(), rotation=True)
    assert_close(R, A)
    assert_close(scale, torch.tensor(4.0, dtype=torch.float64))


@FORWARD
@pytest.mark.parametrize("rotation", [False, True])
def test_procrustes_derivatives(rotation):
    A, B = (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    solve = lambda A, B: orthogonal_procrustes(A, B, rotation=rotation)  # noqa: E731
    assert gradcheck(solve, (A, B), check_forward_ad=True)
    assert gradgradcheck(solve, (A, B))


def test_procrustes_refuses_what_does_not_fit():
    A = torch.randn(4, 3)
    with pytest.raises(ValueError, match="one shape and dtype"):
        orthogonal_procrustes(A, A[:3])
    with pytest.raises(TypeError, match="one shape and dtype"):
        orthogonal_procrustes(A, A.double())
    with pytest.raises(TypeError, match="rotation is real"):
        orthogonal_procrustes(A.to(torch.complex64), A.to(torch.complex64), rotation=True)


def test_two_points_in_space_leave_no_gradient_for_a_rotation_but_an_answer():
    A, B = torch.randn(1, 3, requires_grad=True), torch.randn(1, 3)
    R, scale = orthogonal_procrustes(A, B, rotation=True)
    assert_rotation(R)
    assert_close(scale, torch.linalg.vector_norm(A.detach()) * torch.linalg.vector_norm(B))
    with pytest.raises(RuntimeError, match="not differentiable"):
        R.sum().backward()


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0), (0, 4, 3), (2, 4, 0), (2, 0, 3), (2, 0, 4, 3)], ids=str)
def test_no_points_and_no_problems(shape, rotation):
    A = torch.zeros(shape, dtype=torch.float64)
    R, scale = orthogonal_procrustes(A, A, rotation=rotation)
    assert R.shape == (*shape[:-2], shape[-1], shape[-1])
    assert scale.shape == shape[:-2]
    assert not scale.any()
    torch.testing.assert_close(R.mT @ R, torch.eye(shape[-1]).double().expand(R.shape))
