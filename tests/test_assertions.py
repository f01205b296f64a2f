"""Negative controls: every assertion helper rejects a planted wrong answer."""

import pytest
import torch

from tests.assertions import (
    assert_close,
    assert_orthonormal,
    assert_polar_factor,
    assert_psd,
    assert_unmodified,
    rounding,
    unit_scale,
)
from tests.matrices import GALLERY, make, random_orthonormal, singular_values, with_singular_values


def _pair(m=12, n=8, dtype=torch.float64):
    """A matrix of condition 1e3 and its exact factor."""
    P, Q = random_orthonormal(m, n, dtype), random_orthonormal(n, n, dtype, 1)
    sigma = singular_values("log-1e3", n)
    return (P * sigma.to(dtype)) @ Q.mH, P @ Q.mH


def _flip_column(U):
    return torch.cat([-U[:, :1], U[:, 1:]], dim=1)


def _rotate(U, angle=0.01):
    c, s = torch.cos(torch.tensor(angle, dtype=U.dtype)), torch.sin(torch.tensor(angle, dtype=U.dtype))
    return torch.cat([c * U[:, :1] + s * U[:, 1:2], c * U[:, 1:2] - s * U[:, :1], U[:, 2:]], dim=1)


def _flip_smallest(U):
    """-1 in place of 1 for the smallest singular value: orthonormal, and wrong by 1e-3 ||A|| in H alone."""
    q = random_orthonormal(8, 8, seed=1)[:, -1:]
    return U - 2 * (U @ q) @ q.mH


WRONG = {
    "sign of a column": _flip_column,
    "sign of the smallest singular value": _flip_smallest,
    "scaled by 1.01": lambda U: 1.01 * U,
    "rotated by one percent": _rotate,
    "columns swapped": lambda U: U[:, [1, 0, *range(2, U.shape[1])]],
    "negated": lambda U: -U,
    "another isometry": lambda U: random_orthonormal(*U.shape, seed=99),
    "zero": torch.zeros_like,
    "NaN": lambda U: U * float("nan"),
    "a column lost": lambda U: torch.cat([torch.zeros_like(U[:, :1]), U[:, 1:]], dim=1),
}


def test_the_exact_factor_passes():
    A, U = _pair()
    assert_polar_factor(A, U)
    assert_orthonormal(U)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_factor_is_rejected(name):
    A, U = _pair()
    with pytest.raises(AssertionError):
        assert_polar_factor(A, WRONG[name](U))


@pytest.mark.parametrize("name", [name for name in WRONG if name != "rotated by one percent"])
def test_a_wrong_factor_is_rejected_even_by_a_coarse_class(name):
    """A tolerance of 1e-3 still tells 1.01 from 1."""
    A, U = _pair()
    with pytest.raises(AssertionError):
        assert_polar_factor(A, WRONG[name](U), tolerance=1e-4, floor=1e-6)


def test_a_factor_above_one_is_rejected_below_the_floor():
    A = with_singular_values(8, 8, torch.tensor([1.0] * 7 + [1e-20]).double())
    P, _, Qh = torch.linalg.svd(A)
    f = torch.tensor([1.0] * 7 + [1.2]).double()
    with pytest.raises(AssertionError, match="sigma_max"):
        assert_polar_factor(A, (P * f) @ Qh)
    f[-1] = 0.3
    assert_polar_factor(A, (P * f) @ Qh)


def test_a_shape_or_a_dtype_is_rejected():
    A, U = _pair()
    with pytest.raises(AssertionError, match="dtype"):
        assert_polar_factor(A, U.float())
    with pytest.raises(AssertionError, match="shape"):
        assert_polar_factor(A, U.mT)


def test_only_zero_is_the_factor_of_zero():
    assert_polar_factor(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(AssertionError, match="zero"):
        assert_polar_factor(torch.zeros(3, 2), torch.eye(3, 2))


def test_one_wrong_matrix_of_a_batch_is_rejected():
    A, U = _pair()
    with pytest.raises(AssertionError):
        assert_polar_factor(torch.stack([A, A]), torch.stack([U, 1.01 * U]))


def test_assert_close_tells_rounding_from_error():
    x = torch.randn(5, 5, dtype=torch.float64)
    assert_close(x * (1 + 1e-16), x)
    assert_close(x.float(), x)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_close(x * (1 + 1e-12), x)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(x[:1], x)
    with pytest.raises(AssertionError):
        assert_close(torch.full((2,), float("nan")), torch.zeros(2))


def test_assert_psd_rejects():
    H = torch.diag(torch.tensor([2.0, 1.0]).double())
    assert_psd(H)
    assert_psd(torch.zeros(3, 3))
    with pytest.raises(AssertionError, match="lambda_min"):
        assert_psd(torch.diag(torch.tensor([2.0, -1e-6]).double()))
    with pytest.raises(AssertionError, match="Hermitian"):
        assert_psd(H + torch.tensor([[0.0, 1e-6], [0.0, 0.0]]))


def test_assert_orthonormal_rejects():
    with pytest.raises(AssertionError):
        assert_orthonormal(torch.eye(4) * (1 + 1e-4))


def test_assert_unmodified_rejects():
    A = torch.tensor([1.0, float("nan")])
    assert_unmodified(A, A.clone())
    with pytest.raises(AssertionError):
        assert_unmodified(A, torch.tensor([1.0 + 1e-7, float("nan")]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [5e-324, 1e-309, 1e-300, 1.0, 1e308])
def test_unit_scale_reaches_every_number(dtype, size):
    A = torch.zeros(2, 3, 2, dtype=dtype)
    A[0, 0, 0] = size
    scaled = unit_scale(A).abs().amax((-2, -1))
    assert 0.5 <= float(scaled[0]) < 1.0
    assert float(scaled[1]) == 0.0


def test_rounding_is_c_eps_dimension():
    assert rounding(torch.float64, 3, c=2.0) == 6 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize(("m", "n"), [(6, 6), (7, 3), (3, 7), (1, 1)])
def test_the_gallery_is_finite_and_not_all_zero(name, m, n):
    for dtype in (torch.float16, torch.float32, torch.complex128):
        A = make(name, m, n, dtype, batch=(2,))
        assert A.shape == (2, m, n)
        assert A.dtype == dtype
        assert A.isfinite().all()
        assert A.any() or name in ("zero", "nilpotent", "zero-column")
