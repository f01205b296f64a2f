"""The minimax polynomials: equioscillation, the published table, closed forms, and optimality."""

import math

import mpmath
import pytest
import torch

from polargrad.linalg.coefficients import CUBIC, QUINTIC, evaluate, map_interval
from polargrad.linalg.minimax import composition, minimax_odd, with_safety

# Amsel, Persson, Musco, Gower, The Polar Express (arXiv 2505.16932): the published table for singular values in
# [1e-3, 1], before the safety factor.
PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)

INTERVALS = [(1e-6, 1.0), (1e-3, 1.0), (0.1, 1.0), (0.5, 1.5), (0.9, 1.1), (0.02, 1.98)]


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_the_error_equioscillates(low, high, degree):
    """Chebyshev: p is the best one if and only if 1 - p takes its extreme value with alternating sign often enough."""
    row = minimax_odd(low, high, degree)
    x = torch.linspace(low, high, 400_001, dtype=torch.float64)
    error = 1 - x * (row[0] + x * x * (row[1] + row[2] * x * x))
    size = float(error.abs().max())
    at_extreme = error[error.abs() > size * (1 - 1e-3)].sign()
    alternations = 1 + int((at_extreme[1:] != at_extreme[:-1]).sum())
    assert alternations == (degree + 1) // 2 + 1


def test_the_equioscillation_check_notices_another_polynomial():
    x = torch.linspace(0.1, 1.0, 1001, dtype=torch.float64)
    error = 1 - x * (1.5 - 0.5 * x * x)
    at_extreme = error[error.abs() > float(error.abs().max()) * (1 - 1e-3)].sign()
    assert 1 + int((at_extreme[1:] != at_extreme[:-1]).sum()) < 3


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_degree_three_has_a_closed_form(low, high):
    """p ~ 3 e^2 x - x^3 with e^2 = (l^2 + l u + u^2) / 3, where p(l) = p(u) and the maximum is at e."""
    a, b, c = minimax_odd(low, high, degree=3)
    square = (low**2 + low * high + high**2) / 3
    assert c == 0.0
    assert -a / b == pytest.approx(3 * square, rel=1e-12)
    assert evaluate((a, b, c), math.sqrt(square)) - 1 == pytest.approx(1 - evaluate((a, b, c), low), rel=1e-9)


def test_the_published_table_is_generated():
    """Its authors computed in double precision; where the interval is 1e-6 wide that cost them five digits."""
    for ours, published in zip(composition(1e-3, 8), PUBLISHED, strict=True):
        assert ours == pytest.approx(published, rel=1e-10)


def test_without_cushion_no_step_is_better():
    """Each polynomial is the best on the interval that the one before it left."""
    low, high = 1e-2, 1.0
    for row in composition(1e-2, 5, cushion=0.0):
        best = minimax_odd(low, high)
        assert row == pytest.approx(best, rel=1e-9)
        low, high = map_interval((row,), low, high)
        assert low + high == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize("lower", [1e-7, 1e-4, 0.3])
def test_schedules_converge_and_end_in_newton_schulz(lower, degree):
    rows = composition(lower, 30, degree=degree, cushion=0.0)
    low, high = map_interval(rows, lower)
    assert abs(low - 1) < 1e-14
    assert abs(high - 1) < 1e-14
    assert rows[-1] == (QUINTIC if degree == 5 else CUBIC)[0]


@pytest.mark.parametrize("safety", [1.0, 1.001, 1.01])
def test_safety_holds_what_overshoots(safety):
    """A start above 1 by less than the safety stays in the basin of 1."""
    rows = with_safety(composition(1e-3, 12), safety)
    x = mpmath.mpf(1) + (safety - 1) * 0.99
    for row in rows:
        x = evaluate(row, x)
        assert 0 < x < 2.1
    assert abs(x - 1) < 1e-12


def test_schedules_are_kept():
    assert composition(2e-3, 6) is composition(2e-3, 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: minimax_odd(0.0, 1.0),
        lambda: minimax_odd(1.0, 0.5),
        lambda: minimax_odd(0.1, 1.0, 7),
        lambda: composition(0.0, 5),
        lambda: composition(1.0, 5),
        lambda: composition(0.1, 0),
        lambda: composition(0.1, 5, cushion=1.0),
    ],
)
def test_arguments_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="got"):
        call()
