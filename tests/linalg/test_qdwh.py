import pytest
import torch

from polargrad.linalg import QDWH, Status, polar, polar_factor
from polargrad.linalg.qdwh import halley_weights, polar_by_halley
from tests.assertions import assert_close, assert_orthonormal, assert_polar_factor
from tests.matrices import make, with_singular_values


def halley(x, weights):
    for a, b, c in weights:
        x = x * (a + b * x**2) / (1 + c * x**2)
    return x


@pytest.mark.parametrize("lower", [1e-16, 1e-7, 1e-3, 0.5])
def test_the_weights_bring_the_lower_bound_to_one_and_nothing_above_it(lower):
    weights = halley_weights(lower, 1e-10)
    x = torch.logspace(torch.tensor(lower).log10().item(), 0, 1001, dtype=torch.float64).clamp_min(lower)
    y = halley(x, weights)
    assert y.min() >= 1 - 1e-9
    assert y.max() <= 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", ["hilbert", "kahan", "graded", "log-1e6", "log-1e12", "one-dominant", "zero"])
@pytest.mark.parametrize(("m", "n"), [(48, 48), (64, 48), (200, 150)])
def test_any_condition(name, dtype, m, n):
    """Hilbert matrices made the QR steps lose four digits before they went to the transposed triangular factor."""
    A = make(name, m, n, dtype)
    assert_polar_factor(A, polar_factor(A, "qdwh"))


@pytest.mark.parametrize("name", ["log-1e6", "kahan", "rank-deficient"])
@pytest.mark.parametrize("m", [300, 600])
def test_sizes_at_which_the_products_are_blocked(name, m):
    A = make(name, m, 300)
    assert_polar_factor(A, polar_factor(A, "qdwh"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("m", [40, 120])
def test_limited_steps_are_the_halley_map_with_one_cubic_polish(dtype, m):
    n = 40
    sigma = torch.logspace(0, -2, n, dtype=torch.float64)
    A = with_singular_values(m, n, sigma, torch.float64, seed=3).to(dtype)
    size = A.abs()
    bound = float((size.sum(0).max() * size.sum(1).max()).sqrt())
    for steps in (1, 2):
        weights = halley_weights(torch.finfo(dtype).eps, 1e-6)[:steps]
        x = halley(sigma / bound, weights)
        expected = (1.5 * x - 0.5 * x**3).sort(descending=True).values
        assert_close(torch.linalg.svdvals(polar_factor(A, QDWH(max_steps=steps))), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("name", ["log-1e6", "rank-deficient", "hilbert", "graded", "zero"])
@pytest.mark.parametrize(("m", "n"), [(500, 100), (300, 5), (700, 260)])
def test_short_runs_on_tall_matrices_follow_the_map_at_any_condition(name, dtype, m, n):
    """They go by X^H X in double precision, which leaves an error of about 1e-16 / sigma^2 in small singular values."""
    A = make(name, m, n, dtype)
    V, sigma, Wh = torch.linalg.svd(A.to(torch.complex128 if dtype.is_complex else torch.float64), full_matrices=False)
    size = A.abs()
    bound = float((size.sum(0).max() * size.sum(1).max()).sqrt()) or 1.0
    x = halley(sigma / bound, halley_weights(torch.finfo(dtype).eps, 1e-6)[:2])
    expected = (V * (1.5 * x - 0.5 * x**3)) @ Wh
    error = torch.linalg.matrix_norm(polar_factor(A, QDWH(max_steps=2)) - expected, 2)
    assert error <= 1e-3


def test_two_steps_in_single_precision_leave_the_range_of_the_paper():
    A = with_singular_values(60, 60, torch.logspace(0, -6, 60, dtype=torch.float64), torch.float64, seed=5).float()
    result = polar(A, QDWH(max_steps=2))
    sigma = torch.linalg.svdvals(result.unitary)
    assert 0.6 < sigma.min() < 0.9
    assert sigma.max() <= 1 + 1e-5
    assert result.status == Status.STEP_LIMIT


def test_converges_in_few_steps_and_says_so():
    assert polar(torch.randn(30, 30), "qdwh").stats["steps"] <= 5
    assert polar(torch.randn(30, 30, dtype=torch.float64), "qdwh").stats["steps"] <= 7


@pytest.mark.parametrize("m", [300, 600])
def test_a_singular_value_of_1e_minus_6_converges_beside_many_large_ones(m):
    """The norm bound of such a matrix is 10 times too large; scaled by it, 1e-6 would lie below eps."""
    sigma = torch.ones(300, dtype=torch.float64)
    sigma[-1] = 1e-6
    A = with_singular_values(m, 300, sigma, torch.float64, seed=0).float()
    assert_orthonormal(polar_factor(A, "qdwh"), 1e-6)


def test_singular_values_below_the_bound_end_between_zero_and_one():
    A = with_singular_values(30, 30, torch.logspace(0, -8, 30, dtype=torch.float64), torch.float64, seed=2)
    sigma = torch.linalg.svdvals(polar_factor(A, QDWH(lower_bound=1e-3)))
    assert sigma.max() <= 1 + 1e-12
    assert sigma.min() < 0.1


def test_a_lower_bound_that_is_too_high_costs_steps_and_no_accuracy():
    A = with_singular_values(30, 30, torch.logspace(0, -3, 30, dtype=torch.float64), torch.float64, seed=2)[
        None
    ].float()
    trusting, few = polar_by_halley(A, 0.05)
    checking, more = polar_by_halley(A, 0.05, extra_steps=12)
    assert more > few
    assert_orthonormal(checking)
    with pytest.raises(AssertionError):
        assert_orthonormal(trusting)


@pytest.mark.parametrize("options", [{"max_steps": 0}, {"lower_bound": 0.0}, {"lower_bound": 1.0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="must"):
        QDWH(**options)
