"""ZOLO-PD: Zolotarev's functions against mpmath, and the factor by every arithmetic it uses."""

import mpmath
import pytest
import torch

from polargrad.linalg import Status, ZoloPD, polar, polar_factor
from polargrad.linalg.qdwh import halley_weights
from polargrad.linalg.zolo import _cholesky_terms, _qr_terms
from polargrad.linalg.zolotarev import zolotarev, zolotarev_schedule
from tests.assertions import assert_close, assert_polar_factor
from tests.matrices import make, with_singular_values

CASES = [(0.5, 1), (1e-2, 2), (1e-4, 3), (1.2e-7, 3), (1.2e-7, 8), (2.2e-16, 6), (2.2e-16, 8)]


def product_form(x, lower, degree):
    """Z(x) / Z(1) in mpmath by the product over the zeros and poles, from the definition by elliptic functions."""
    l, x = mpmath.mpf(lower), mpmath.mpf(x)
    m = 1 - l**2
    K = mpmath.ellipk(m)
    value = x
    for i in range(1, 2 * degree + 1):
        u = i * K / (2 * degree + 1)
        c = (l * mpmath.ellipfun("sn", u, m=m) / mpmath.ellipfun("cn", u, m=m)) ** 2
        ratio = (x**2 + c) / (1 + c)
        value = value * ratio if i % 2 == 0 else value / ratio
    return value


def partial_fractions(step, x):
    return step.scale * x * (1 + sum(w / (x * x + c) for w, c in zip(step.weights, step.shifts, strict=True)))


@pytest.mark.parametrize(("lower", "degree"), CASES)
def test_the_partial_fractions_are_the_function(lower, degree):
    """In double precision, at points over the whole interval and below it, against 80 digits."""
    step = zolotarev(lower, degree)
    with mpmath.workdps(80):
        for exponent in torch.linspace(1.2, 0, 25).tolist():
            x = float(lower**exponent)
            exact = product_form(x, lower, degree)
            assert abs(partial_fractions(step, x) / exact - 1) < 1e-13
        assert abs(step.lower / product_form(lower, lower, degree) - 1) < 1e-13


def test_the_comparison_notices_a_wrong_weight():
    step = zolotarev(1e-4, 3)
    wrong = step._replace(weights=(step.weights[0], step.weights[1] * (1 + 1e-9), step.weights[2]))
    with mpmath.workdps(80):
        assert abs(partial_fractions(wrong, 1e-2) / product_form(1e-2, 1e-4, 3) - 1) > 1e-11


@pytest.mark.parametrize(("lower", "degree"), CASES[:5])
def test_the_error_equioscillates(lower, degree):
    """Best approximation: 2 degree + 2 alternations between the minimum Z(lower) and the maximum 1 over [lower, 1]."""
    step = zolotarev(lower, degree)
    x = torch.logspace(float(mpmath.log10(lower)), 0, 400_001, dtype=torch.float64)
    z = step.scale * x * (1 + sum(w / (x * x + c) for w, c in zip(step.weights, step.shifts, strict=True)))
    assert float(z.max()) == pytest.approx(1.0, abs=1e-9)
    assert float(z.min()) == pytest.approx(step.lower, rel=1e-9)
    middle = (1 + step.lower) / 2
    at_extreme = (z - middle)[(z - middle).abs() > (1 - middle) * (1 - 1e-3)].sign()
    assert 1 + int((at_extreme[1:] != at_extreme[:-1]).sum()) == 2 * degree + 2


@pytest.mark.parametrize("lower", [1e-10, 1e-3, 0.3])
def test_degree_one_is_the_step_of_qdwh(lower):
    """x (a + b x^2) / (1 + c x^2) = (b / c) x (1 + (a / b - 1 / c) / (x^2 + 1 / c))."""
    a, b, c = halley_weights(lower, 1e-3)[0]
    step = zolotarev(lower, 1)
    assert step.scale == pytest.approx(b / c, rel=1e-6)
    assert step.weights[0] == pytest.approx(a / b - 1 / c, rel=1e-6)
    assert step.shifts[0] == pytest.approx(1 / c, rel=1e-6)


def test_two_steps_are_one_of_the_product_of_the_types():
    first = zolotarev(1e-3, 1)
    second = zolotarev(first.lower, 1)
    whole = zolotarev(1e-3, 4)  # 3 * 3 = 2 * 4 + 1
    for x in (1e-5, 1e-3, 0.02, 0.5, 1.0):
        assert partial_fractions(second, partial_fractions(first, x)) == pytest.approx(partial_fractions(whole, x))


def test_degrees_by_condition():
    """Nakatsukasa and Freund, table 3.1: two steps of degree 8 for 1e16, and fewer for better conditions."""
    degrees = [len(zolotarev_schedule(1.0 / kappa, 1e-15)[0].shifts) for kappa in (1.5, 1e2, 1e5, 1e7, 1e16)]
    assert degrees == sorted(degrees)
    assert degrees[-1] == 8
    assert degrees[0] <= 2
    assert all(len(zolotarev_schedule(1.0 / kappa, 1e-15)) <= 2 for kappa in (1.5, 1e2, 1e5, 1e7, 1e16))


def test_terms_by_qr_and_by_cholesky_are_the_same():
    torch.manual_seed(0)
    X = torch.randn(2, 10, 6, dtype=torch.complex128) / 6
    step = zolotarev(1e-2, 2)
    by_cholesky, failed = _cholesky_terms(X.mH @ X, step)
    assert not failed.any()
    assert_close(_qr_terms(X, step), X @ by_cholesky, c=1e3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(9, 9), (30, 9), (9, 30), (1, 1), (6, 1), (1, 6)])
@pytest.mark.parametrize("spectrum", ["log-1e6", "powers-of-two", "one-dominant", "rank-deficient"])
def test_it_converges_to_the_factor(dtype, shape, spectrum):
    A = make(spectrum, *shape, dtype)
    result = polar(A, "zolo-pd")
    assert result.stats["steps"] == 2
    assert_polar_factor(A, result.unitary)
    assert (
        float(torch.linalg.matrix_norm(result.unitary.to(torch.complex128), 2)) <= 1 + 30 * 30 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("condition", [1, 4, 8, 12, 15])
def test_double_precision_at_every_condition_number(condition):
    A = with_singular_values(20, 20, torch.logspace(0, -condition, 20, dtype=torch.float64))
    result = polar(A, ZoloPD())
    assert result.status == Status.CONVERGED
    assert float((torch.linalg.svdvals(result.unitary) - 1).abs().max()) < 1e-13
    assert_polar_factor(A, result.unitary)


@pytest.mark.parametrize("name", ["hilbert", "kahan", "graded"])
@pytest.mark.parametrize("shape", [(64, 48), (30, 30)])
def test_graded_rows_do_no_harm(name, shape):
    """By QR of the triangular factor itself rather than of its adjoint, Hilbert's 64 x 48 loses six digits."""
    A = make(name, *shape, torch.complex128, seed=398)
    assert_polar_factor(A, polar_factor(A, "zolo-pd"))


@pytest.mark.parametrize("lower_bound", [1e-12, 1e-30, 1e-100])
def test_lower_bounds_below_what_cholesky_can_take(lower_bound):
    A = with_singular_values(10, 10, torch.logspace(0, -5, 10, dtype=torch.float64))
    for dtype in (torch.float32, torch.float64):
        assert_polar_factor(A.to(dtype), polar_factor(A.to(dtype), ZoloPD(lower_bound=lower_bound)))


def test_accuracy_is_bought_with_degree():
    methods = [ZoloPD().with_accuracy(a, torch.float64) for a in (0.5, 1e-2, 1e-6)]
    degrees = [method.degree for method in methods]
    assert degrees == sorted(degrees)
    assert degrees[0] < degrees[-1]
    assert ZoloPD().with_accuracy("full", torch.float64) == ZoloPD()
    A = with_singular_values(12, 12, torch.logspace(0, -9, 12, dtype=torch.float64))
    for method, accuracy in zip(methods, (0.5, 1e-2, 1e-6), strict=True):
        assert float((torch.linalg.svdvals(polar_factor(A, method)) - 1).abs().max()) <= accuracy


def test_one_step_of_a_schedule_declares_what_it_reaches():
    method = ZoloPD(max_steps=1)
    A = with_singular_values(12, 8, torch.logspace(0, -9, 8, dtype=torch.float64))
    sigma = torch.linalg.svdvals(polar_factor(A, method))
    assert float(sigma[0]) <= 1 + 1e-12
    assert float(1 - sigma[-1]) <= method.tolerance(torch.float64, 8)


def test_a_given_degree_takes_the_steps_it_needs():
    A = with_singular_values(8, 8, torch.logspace(0, -9, 8, dtype=torch.float64))
    for degree in (1, 3, 8):
        result = polar(A, ZoloPD(degree=degree))
        assert result.status == Status.CONVERGED
        assert result.stats["steps"] == len(zolotarev_schedule(2.0**-52, 0.5 * 2.0**-26, degree))


def test_batches_hold_their_matrices_apart():
    A = torch.stack([torch.zeros(6, 4), torch.randn(6, 4), 1e-12 * torch.randn(6, 4)])
    U = polar_factor(A, "zolo-pd")
    assert not U[0].any()
    for a, u in zip(A[1:], U[1:], strict=True):
        assert torch.allclose(polar_factor(a, "zolo-pd"), u, atol=2e-6)


@pytest.mark.parametrize(
    "options", [{"degree": 0}, {"degree": 9}, {"max_steps": 0}, {"lower_bound": 0.0}, {"lower_bound": 1.0}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="got"):
        ZoloPD(**options)


@pytest.mark.parametrize("arguments", [(0.0, 2), (1.0, 2), (0.1, 0), (0.1, 9)])
def test_arguments_of_the_function_are_checked(arguments):
    with pytest.raises(ValueError, match="got"):
        zolotarev(*arguments)
