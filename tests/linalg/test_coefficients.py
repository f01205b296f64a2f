"""Images of intervals under polynomial schedules, and the accuracy classes read from them."""

import math

import pytest
import torch

from polargrad.linalg.coefficients import (
    CUBIC,
    MUON_QUINTIC,
    QUINTIC,
    check_coefficients,
    evaluate,
    map_interval,
    min_converging_sigma,
    schedule_for,
)
from polargrad.linalg.minimax import composition

MINIMAX = tuple(composition(1e-3, 8))


@pytest.mark.parametrize("schedule", [MUON_QUINTIC * 5, MINIMAX[:5], CUBIC * 3, QUINTIC * 2])
@pytest.mark.parametrize("low", [1e-4, 0.03, 0.5])
def test_the_image_is_what_a_fine_grid_finds(schedule, low):
    x = torch.logspace(math.log10(low), 0, 200_001, dtype=torch.float64)
    for a, b, c in schedule:
        x = x * (a + x * x * (b + c * x * x))
    least, most = map_interval(schedule, low)
    assert least <= float(x.min()) + 1e-12
    assert most >= float(x.max()) - 1e-12
    assert float(x.min()) - least < 1e-3
    assert most - float(x.max()) < 1e-3


def test_reach_is_where_the_image_meets_the_deviation():
    schedule = MUON_QUINTIC * 5
    x = min_converging_sigma(schedule, 0.32)
    assert map_interval(schedule, 1.01 * x)[0] >= 0.68
    assert map_interval(schedule, 0.99 * x)[0] < 0.68
    assert min_converging_sigma(((0.1, 0.0, 0.0),), 0.1) == 1.0


def test_the_classical_polynomials_are_truncated_series():
    """(1 - e)^(-1/2) = 1 + e/2 + 3 e^2/8 + ..., e = 1 - x^2: the rest is of the next order."""
    for row, order in ((CUBIC[0], 2), (QUINTIC[0], 3)):
        errors = [abs(1 - evaluate(row, 1 - h)) for h in (1e-2, 1e-3)]
        assert errors[0] / errors[1] == pytest.approx(10.0**order, rel=0.05)


def test_a_short_table_goes_on_with_its_last_row():
    assert schedule_for(MINIMAX, 10)[-3:] == MINIMAX[-1:] * 3
    assert schedule_for(MINIMAX, 2) == MINIMAX[:2]


@pytest.mark.parametrize("bad", [(), ((1.0, 2.0),), [(1.0, 2.0, 3.0)], ((1.0, math.nan, 0.0),), ("abc",), None])
def test_bad_coefficients_are_refused(bad):
    with pytest.raises(ValueError, match="non-empty tuple of rows"):
        check_coefficients(bad)
