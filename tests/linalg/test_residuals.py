"""The five residual ratios: small for the exact factor, large where something planted is wrong."""

import math

import pytest
import torch

from polargrad.linalg import Residuals, polar_factor, residuals
from tests.matrices import make, random_orthonormal, singular_values, with_singular_values

LARGE = 1e3  # a planted error; rounding gives ratios near 1


def _pair(m=12, n=8, dtype=torch.float64):
    P, Q = random_orthonormal(m, n, dtype), random_orthonormal(n, n, dtype, 1)
    return (P * singular_values("log-1e3", n).to(dtype)) @ Q.mH, P @ Q.mH


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("transpose", [False, True])
def test_the_exact_factor_has_ratios_near_one(dtype, transpose):
    A, U = _pair(dtype=dtype)
    if transpose:
        A, U = A.mH, U.mH
    for name, ratio in residuals(A, U)._asdict().items():
        assert float(ratio) < 10, name


def _rotated(U, angle=0.01):
    c, s = math.cos(angle), math.sin(angle)
    return torch.cat([c * U[:, :1] + s * U[:, 1:2], c * U[:, 1:2] - s * U[:, :1], U[:, 2:]], dim=1)


def _not_psd(U):
    """-1 in place of 1 for the smallest singular value: H loses its sign, and nothing but that."""
    q = random_orthonormal(8, 8, seed=1)[:, -1:]
    return U - 2 * (U @ q) @ q.mH


def _partly_lost(U):
    """1/2 in place of 1 for the smallest singular value."""
    q = random_orthonormal(8, 8, seed=1)[:, -1:]
    return U - 0.5 * (U @ q) @ q.mH


PLANTED = {
    "wrong sign of a column": (
        lambda U: torch.cat([-U[:, :1], U[:, 1:]], 1),
        {"symmetry", "backward_error", "nuclear_gap"},
    ),
    "H not positive semidefinite": (_not_psd, {"definiteness", "nuclear_gap"}),
    "columns swapped": (
        lambda U: U[:, [1, 0, *range(2, 8)]],
        {"symmetry", "backward_error", "nuclear_gap"},
    ),
    "scaled by 1.01": (lambda U: 1.01 * U, {"orthogonality", "backward_error", "nuclear_gap"}),
    "rotated by one percent": (_rotated, {"symmetry", "backward_error", "nuclear_gap"}),
    "negated": (lambda U: -U, {"definiteness", "nuclear_gap"}),
    "one singular value not converged": (_partly_lost, {"orthogonality", "backward_error", "nuclear_gap"}),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("transpose", [False, True])
def test_a_planted_error_shows_where_it_should(name, transpose):
    A, U = _pair()
    spoil, seen = PLANTED[name]
    wrong = spoil(U)
    if transpose:
        A, wrong = A.mT, wrong.mT
    ratios = residuals(A, wrong)._asdict()
    assert seen <= {figure for figure, ratio in ratios.items() if float(ratio) > LARGE}


def test_each_figure_is_seen_by_some_control():
    assert set().union(*(seen for _, seen in PLANTED.values())) == set(Residuals._fields)


def test_arguments_swapped_are_noticed():
    A, U = _pair()
    assert max(map(float, residuals(U, A))) > LARGE


def test_scale_does_not_matter():
    A, U = _pair()
    for scale in (2.0**-1000, 2.0**1000):
        for one, other in zip(residuals(A * scale, U), residuals(A, U), strict=True):
            torch.testing.assert_close(one, other)


def test_the_dtype_of_the_factor_sets_eps():
    A, U = _pair()
    assert float(residuals(A, U.float()).orthogonality) < 10
    assert float(residuals(A, U.float().double()).orthogonality) > LARGE


def test_batches_and_non_finite_matrices():
    A = make("gaussian", 6, 4, torch.float64, (2, 3))
    U = polar_factor(A)
    A[1, 2, 0, 0] = math.nan
    for figure in residuals(A, U):
        assert figure.shape == (2, 3)
        assert figure.isnan().sum() == 1


def test_zero_and_empty():
    assert float(residuals(torch.zeros(3, 3), torch.eye(3)).backward_error) == 0.0
    assert residuals(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3)).nuclear_gap.tolist() == [0.0, 0.0]


def test_no_graph_is_built():
    A = with_singular_values(4, 4, torch.ones(4).double()).requires_grad_()
    assert not residuals(A, A).orthogonality.requires_grad


@pytest.mark.parametrize(
    ("A", "U", "error"),
    [
        (torch.eye(3), torch.eye(2), ValueError),
        (torch.ones(3), torch.ones(3), ValueError),
        (torch.eye(3), torch.eye(3, dtype=torch.complex64), TypeError),
        (torch.eye(3).long(), torch.eye(3).long(), TypeError),
    ],
)
def test_bad_arguments_are_refused(A, U, error):
    with pytest.raises(error):
        residuals(A, U)
