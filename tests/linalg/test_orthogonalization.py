"""Inverse square roots and Loewdin's orthogonalization, against mpmath, SciPy and their definitions."""

import mpmath
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from polargrad.linalg import inverse_sqrt, lowdin, polar_factor
from tests.assertions import assert_close, rounding
from tests.matrices import random_orthonormal

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
FORWARD = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at first use


def definite(n, condition=10.0, dtype=torch.float64, seed=0):
    Q = random_orthonormal(n, n, dtype, seed)
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    A = (Q * values) @ Q.mH
    return (A + A.mH) / 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("n", [1, 4, 30])
def test_x_a_x_is_the_identity(n, condition, dtype):
    wide = definite(n, condition, torch.complex128 if dtype.is_complex else torch.float64)
    A = wide.to(dtype)
    X = inverse_sqrt(A)
    assert X.dtype == dtype
    assert_close(X, X.mH)
    values, Q = torch.linalg.eigh(A.to(wide.dtype))
    exact = (Q * values.rsqrt()) @ Q.mH
    # A is known to eps, and so the result to eps cond(A).
    assert torch.linalg.matrix_norm(X - exact) <= rounding(dtype, n) * condition * torch.linalg.matrix_norm(exact)


def test_mpmath_agrees_at_a_condition_number_of_1e10():
    A = definite(5, 1e10)
    with mpmath.workdps(60):
        values, Q = mpmath.eighe(mpmath.matrix(A.tolist()))
        X = Q * mpmath.diag([1 / mpmath.sqrt(v) for v in values]) * Q.H
        exact = torch.tensor([[float(X[i, j].real) for j in range(5)] for i in range(5)], dtype=torch.float64)
    assert torch.linalg.matrix_norm(inverse_sqrt(A) - exact) <= 1e10 * 1e-15 * torch.linalg.matrix_norm(exact)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e20, 1e37])
def test_extreme_scales(scale):
    A = definite(4).float()
    assert_close((inverse_sqrt(A * scale).double() * scale**0.5).float(), inverse_sqrt(A), c=300)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_single(dtype):
    A = definite(4).to(dtype)
    A = (A + A.mT) / 2
    assert torch.equal(inverse_sqrt(A), inverse_sqrt(A.float()).to(dtype))


@FORWARD
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_derivatives_of_the_inverse_root(dtype):
    """At a repeated eigenvalue too, where those of an eigendecomposition do not exist."""
    A = torch.stack([definite(3, 5.0, dtype), 2.0 * torch.eye(3, dtype=dtype)]).requires_grad_()
    assert gradcheck(inverse_sqrt, A, check_forward_ad=True)
    assert gradgradcheck(inverse_sqrt, A)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_transforms_of_the_inverse_root():
    A = torch.stack([definite(3, 5.0), definite(3, 2.0, seed=1)])
    assert_close(torch.vmap(inverse_sqrt)(A), inverse_sqrt(A))
    jacobian = torch.autograd.functional.jacobian(inverse_sqrt, A[0])
    assert_close(torch.func.jacrev(inverse_sqrt)(A[0]), jacobian)
    assert_close(torch.func.jacfwd(inverse_sqrt)(A[0]), jacobian)


@pytest.mark.parametrize("function", [inverse_sqrt, lambda S: lowdin(torch.ones(3, 1), S)], ids=["root", "metric"])
def test_what_is_not_definite_is_refused_with_its_smallest_eigenvalue(function):
    for bad in (torch.diag(torch.tensor([1.0, 1.0, -0.5])), torch.diag(torch.tensor([1.0, 1.0, 0.0]))):
        with pytest.raises(ValueError, match=r"positive definite: 1 of 1 matrices .*smallest eigenvalue of .*identity"):
            function(bad)
    with pytest.raises(ValueError, match=r"smallest eigenvalue of -5\.0e-01"):
        function(torch.diag(torch.tensor([1.0, 1.0, -0.5])))


def test_a_bad_matrix_gives_nan_and_leaves_its_neighbours_alone():
    A = torch.eye(3).repeat(2, 1, 1)
    A[0, 1, 1] = torch.nan
    X = inverse_sqrt(A)
    assert X[0].isnan().all()
    assert torch.equal(X[1], torch.eye(3))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0)])
def test_nothing(shape):
    assert inverse_sqrt(torch.zeros(shape)).shape == shape


# Loewdin


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), [(6, 6), (9, 4), (5, 1)])
def test_the_columns_are_orthonormal_in_the_metric(m, n, dtype):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    A, S = torch.randn(3, m, n, dtype=wide).to(dtype), definite(m, 100.0, wide).to(dtype)
    Q = lowdin(A, S)
    assert Q.shape == A.shape
    Q, S = Q.to(wide), S.to(wide)
    assert_close((Q.mH @ S @ Q).to(dtype), torch.eye(n, dtype=dtype).expand(3, n, n), c=300)
    overlap = A.to(wide).mH @ S @ A.to(wide)
    assert_close(Q.to(dtype), (A.to(wide) @ inverse_sqrt(overlap)).to(dtype), c=1e4)


def test_no_basis_that_is_orthonormal_in_the_metric_is_nearer():
    A, S = torch.randn(6, 3, dtype=torch.float64), definite(6)
    root = torch.linalg.inv(inverse_sqrt(S))
    Q = lowdin(A, S)
    distance = torch.linalg.matrix_norm(root @ (Q - A))
    for seed in range(20):
        K = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        turned = Q @ torch.linalg.matrix_exp(0.1 * (K - K.mT))
        assert torch.linalg.matrix_norm(root @ (turned - A)) > distance


def test_without_a_metric_it_is_the_polar_factor():
    A = torch.randn(2, 5, 3)
    assert torch.equal(lowdin(A), polar_factor(A))
    assert_close(lowdin(A, torch.eye(5)), polar_factor(A))


def test_nearly_dependent_columns_cost_no_square_of_the_condition_number():
    """The overlap A^H S A has the condition number 1e14: its inverse root has no digit left in its small directions."""
    sigma = torch.logspace(0, -7, 5, dtype=torch.float64)
    A = (random_orthonormal(9, 5) * sigma) @ random_orthonormal(5, 5, seed=1).mT
    S = definite(9, 100.0)
    Q = lowdin(A, S)
    eye = torch.eye(5, dtype=torch.float64)
    assert torch.linalg.matrix_norm(Q.mT @ S @ Q - eye) < 1e-12
    by_overlap = A @ inverse_sqrt(A.mT @ S @ A)
    assert torch.linalg.matrix_norm(by_overlap.mT @ S @ by_overlap - eye) > 1e-6


def test_dependent_columns_give_a_partial_isometry_of_the_metric():
    A, S = torch.randn(6, 3, dtype=torch.float64), definite(6)
    A[:, 2] = A[:, 0]
    Q = lowdin(A, S)
    G = Q.mT @ S @ Q
    assert_close(G @ G, G)
    assert_close(G.trace(), torch.tensor(2.0, dtype=torch.float64))


@FORWARD
def test_derivatives_of_the_basis():
    A = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    S = definite(4).requires_grad_()
    assert gradcheck(lowdin, (A, S), check_forward_ad=True)
    assert gradgradcheck(lowdin, (A, S))


@pytest.mark.parametrize(
    ("A", "S", "error", "match"),
    [
        (torch.ones(2, 3), None, ValueError, "as many rows as columns"),
        (torch.ones(3, 2), torch.eye(2), ValueError, r"\(m, m\)"),
        (torch.ones(3, 2), torch.eye(3).double(), TypeError, "dtype"),
        (torch.ones(3, 2), 2.0, TypeError, "tensor"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(A, S, error, match):
    with pytest.raises(error, match=match):
        lowdin(A, S)


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.jacrev, torch.func.jacfwd])
def test_a_matrix_without_a_root_is_refused_in_transforms_too(transform):
    good, bad = torch.eye(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    for function in (inverse_sqrt, lambda S: lowdin(torch.ones(2, 1, dtype=S.dtype), S)):
        given = [torch.stack([good, M]) if transform is torch.func.vmap else M for M in (good, bad)]
        assert transform(function)(given[0]).isfinite().all()
        with pytest.raises(ValueError, match="must be Hermitian positive definite: 1 of"):
            transform(function)(given[1])
