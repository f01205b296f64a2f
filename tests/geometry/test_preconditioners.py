"""Optimizers as preconditioners: each gives its optimizer's direction, and kappa is what it is said to be."""

import math

import pytest
import torch

from polargrad.geometry import Entrywise, Frobenius, Rows, Spectral
from polargrad.geometry import preconditioners as pre

EPS = torch.finfo(torch.float64).eps


def _normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _distance(X, Y):
    """||X - Y||_F / ||Y||_F."""
    return float(torch.linalg.matrix_norm(X - Y) / torch.linalg.matrix_norm(Y))


def _spd(n, kappa, seed=0):
    Q = torch.linalg.qr(_normal(n, n, seed=seed))[0]
    return (Q * torch.logspace(-math.log10(kappa), 0, n, dtype=torch.float64)) @ Q.mT


SHAPES = [(6, 3), (3, 6), (4, 4), (5, 1), (1, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("make", "geometry"),
    [
        (pre.sign_preconditioner, Entrywise()),
        (pre.row_norm, Rows()),
        (lambda G: pre.polar_preconditioner(G, with_size=False), Spectral("svd")),
    ],
    ids=["sign", "rows", "polar"],
)
def test_a_norm_is_an_implicit_preconditioner(shape, make, geometry):
    G = _normal(*shape)
    assert _distance(make(G).solve(G), geometry.lmo(G)) <= 100 * EPS * max(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_size_the_polar_preconditioner_gives_polargrads_direction(shape):
    G = _normal(*shape)
    assert _distance(pre.polar_preconditioner(G).solve(G), Spectral("svd").sharp(G)) <= 100 * EPS * max(shape)


def test_identity_is_gradient_descent():
    G = _normal(4, 3)
    assert torch.equal(pre.identity(G).solve(G), G)
    assert _distance(Frobenius().sharp(G), G) <= 10 * EPS


def test_shampoo_of_one_gradient_is_its_polar_factor():
    G = _normal(6, 3)
    assert _distance(pre.shampoo(G @ G.mT, G.mT @ G).solve(G), Spectral("svd").lmo(G)) <= 1e4 * EPS


def test_shampoo_of_several_gradients_is_not():
    G, F = _normal(6, 3), _normal(6, 3, seed=1)
    mixed = pre.shampoo(G @ G.mT + F @ F.mT, G.mT @ G + F.mT @ F).solve(G)
    assert _distance(mixed, Spectral("svd").lmo(G)) > 0.05


def test_adam_of_one_gradient_is_its_sign_and_adagrad_too():
    G = _normal(4, 3)
    assert _distance(pre.adam(G.square(), eps=0.0).solve(G), G.sign()) <= 10 * EPS
    assert _distance(pre.adagrad(G.square(), eps=0.0).solve(G), G.sign()) <= 10 * EPS


def test_full_adagrad_of_one_gradient_is_the_normalized_gradient():
    G = _normal(4, 3)
    outer = torch.outer(G.flatten(), G.flatten())
    assert _distance(pre.adagrad_full(outer).solve(G), Frobenius().lmo(G)) <= 1e4 * EPS


@pytest.mark.parametrize(
    "operator",
    [
        pre.Diagonal(_normal(4, 3).abs() + 0.1),
        pre.Kronecker(_spd(4, 10.0), _spd(3, 5.0)),
        pre.Dense(_spd(12, 50.0)),
    ],
    ids=["diagonal", "kronecker", "dense"],
)
def test_matrix_apply_and_solve_are_one_operator(operator):
    X = _normal(4, 3, seed=3)
    PX = operator.apply(X)
    assert _distance((operator.matrix() @ X.flatten()).reshape(4, 3), PX) <= 100 * EPS
    assert _distance(operator.solve(PX), X) <= 1e4 * EPS
    assert _distance(operator.solve(2.0 * PX), X) > 0.5  # the comparison can fail


def test_newton_makes_the_hessian_perfect_and_the_identity_leaves_it():
    A, B = _normal(9, 5), _normal(3, 7, seed=1)
    H = pre.newton(A.mT @ A, B @ B.mT)
    expected = float((torch.linalg.cond(A) * torch.linalg.cond(B)) ** 2)
    plain = pre.Kronecker(torch.eye(5, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    assert pre.curvature_condition_number(H, plain) == pytest.approx(expected, rel=1e-10)
    assert pre.curvature_condition_number(H, H) == pytest.approx(1.0, rel=1e-10)


def test_kronecker_and_dense_agree_on_the_curvature():
    H, P = (
        pre.Kronecker(_spd(4, 30.0), _spd(3, 20.0, seed=1)),
        pre.Kronecker(_spd(4, 3.0, seed=2), _spd(3, 9.0, seed=3)),
    )
    by_factors = pre.curvature_condition_number(H, P)
    assert pre.curvature_condition_number(H, pre.Dense(P.matrix())) == pytest.approx(by_factors, rel=1e-9)
    assert pre.curvature_condition_number(pre.Dense(H.matrix()), P) == pytest.approx(by_factors, rel=1e-9)


def test_a_singular_preconditioner_has_infinite_condition():
    H = pre.Kronecker(torch.eye(2, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    P = pre.Diagonal(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    assert pre.curvature_condition_number(H, P) == math.inf
    assert P.solve(torch.ones(2, 1, dtype=torch.float64)).tolist() == [[1.0], [0.0]]


def test_kfac_with_true_moments_is_newton():
    A, B = _normal(9, 5), _normal(3, 7, seed=1)
    H = pre.newton(A.mT @ A, B @ B.mT)
    assert pre.curvature_condition_number(H, pre.kfac(A.mT @ A / 9, B @ B.mT)) == pytest.approx(1.0, rel=1e-10)


def test_gradient_condition_number_sees_the_nonzero_singular_values():
    U, V = torch.linalg.qr(_normal(6, 3))[0], torch.linalg.qr(_normal(5, 3, seed=1))[0]
    G = (U * torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64)) @ V.mT
    assert pre.gradient_condition_number(G) == pytest.approx(4.0, rel=1e-12)
    assert pre.gradient_condition_number(Spectral("svd").lmo(G)) == pytest.approx(1.0, rel=1e-12)
    assert pre.gradient_condition_number(torch.zeros(3, 2)) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: pre.Diagonal(-torch.ones(2, 2)),
        lambda: pre.Diagonal(torch.full((2, 2), math.nan)),
        lambda: pre.Kronecker(torch.ones(2, 3), torch.eye(3)),
        lambda: pre.Kronecker(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.eye(3)),
        lambda: pre.Kronecker(torch.full((2, 2), math.nan), torch.eye(3)),
        lambda: pre.Dense(torch.ones(2, 3)),
    ],
)
def test_what_is_no_preconditioner_is_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def _covariances(m, n):
    generator = torch.Generator().manual_seed(1)
    factors = (torch.randn(k, 2 * k, dtype=torch.float64, generator=generator) for k in (m, n))
    return [F @ F.mT for F in factors]


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("power", [0.0, 0.125, 0.3])
def test_whitened_polar_is_steepest_descent_in_its_norm(shape, power):
    G = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    L, R = _covariances(*shape)
    P = pre.whitened_polar(G, L, R, power)
    step = P.solve(G)
    dual = Spectral("svd").dual_norm(pre.symmetric_power(L, -power) @ G @ pre.symmetric_power(R, -power))
    # <G, nu D> = nu^2, and D has norm 1: the step and the dual norm are those of the norm ||L^g X R^g||_2.
    assert float((G * step).sum() / dual**2) == pytest.approx(1.0, rel=1e-10)
    norm = torch.linalg.matrix_norm(pre.symmetric_power(L, power) @ step @ pre.symmetric_power(R, power), 2)
    assert float(norm / dual) == pytest.approx(1.0, rel=1e-10)
    assert _distance(P.apply(step), G) <= 1e6 * EPS
    if power == 0.0:
        assert _distance(step, Spectral("svd").sharp(G)) <= 1e6 * EPS
    # No other direction of norm 1 has a larger inner product with G.
    for seed in range(20):
        other = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        size = torch.linalg.matrix_norm(pre.symmetric_power(L, power) @ other @ pre.symmetric_power(R, power), 2)
        assert float((G * other).sum() / size) <= float(dual)


def test_the_polar_factor_alone_of_two_sides_may_ascend_and_of_one_side_does_not():
    """polar(P G Q) without the outer roots: <G, U> = tr(A H B) for positive definite A, H, B, which has no sign."""
    G = torch.diag(torch.tensor([1.0, 1 / 32], dtype=torch.float64))
    P = torch.tensor([[16.0, 21.0], [21.0, 31.0]], dtype=torch.float64)
    Q = torch.tensor([[4.0, -12.0], [-12.0, 50.0]], dtype=torch.float64)
    assert min(torch.linalg.eigvalsh(S)[0] for S in (P, Q)) > 0
    U = Spectral("svd").lmo(P @ G @ Q)
    assert float((G * U).sum() / Spectral("svd").dual_norm(G)) < -0.3
    eye = torch.eye(2, dtype=torch.float64)
    for left, right in ((P, eye), (eye, Q)):
        assert (G * Spectral("svd").lmo(left @ G @ right)).sum() > 0
    assert (G * pre.whitened_polar(G, P @ P, Q @ Q, -0.5).solve(G)).sum() > 0
