"""Preconditioned Newton-Schulz: what the growth polynomial does, and convergence from any lower bound."""

import pytest
import torch

from polargrad.linalg import NewtonSchulz, PreconditionedNewtonSchulz, Status, polar, polar_factor
from polargrad.linalg.coefficients import CUBIC, map_interval
from polargrad.linalg.preconditioned_newton_schulz import growth_polynomial
from tests.assertions import assert_polar_factor
from tests.matrices import make, with_singular_values


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.3])
def test_growth_keeps_values_in_place(threshold):
    """At most 1 everywhere, and never back below the threshold from above it."""
    row = growth_polynomial(threshold)
    assert map_interval((row,), 0.0)[1] == pytest.approx(1.0, abs=1e-14)
    assert map_interval((row,), threshold)[0] >= threshold


def test_growth_beats_the_cubic():
    lower = 1e-5
    ours = len(PreconditionedNewtonSchulz(lower_bound=lower).schedule(torch.float64))
    low, cubic = lower, 0
    while low < 1 - 1e-15:
        low, cubic = map_interval(CUBIC, low)[0], cubic + 1
    assert ours < 0.6 * cubic + 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("spectrum", ["log-1e3", "powers-of-two", "one-small", "clustered", "rank-deficient"])
def test_it_converges_to_the_factor(dtype, spectrum):
    A = make(spectrum, 14, 9, dtype)
    U = polar_factor(A, "precond-newton-schulz")
    assert_polar_factor(A, U)
    assert float(torch.linalg.matrix_norm(U.to(torch.complex128), 2)) <= 1 + 30 * 14 * torch.finfo(dtype).eps


def test_a_larger_lower_bound_is_shorter_and_holds_there():
    method = PreconditionedNewtonSchulz(lower_bound=1e-2)
    assert len(method.schedule(torch.float32)) < len(PreconditionedNewtonSchulz().schedule(torch.float32))
    A = with_singular_values(10, 6, torch.linspace(1, 0.1, 6, dtype=torch.float64)).float()
    assert polar(A, method).status == Status.CONVERGED


def test_stopped_early_it_declares_what_it_reaches():
    method = PreconditionedNewtonSchulz(max_steps=10, lower_bound=1e-3)
    A = with_singular_values(8, 8, torch.logspace(0, -2, 8, dtype=torch.float64))
    sigma = torch.linalg.svdvals(polar_factor(A, method))
    assert float((sigma - 1).abs().max()) <= method.tolerance(torch.float64, 8)
    assert method.tolerance(torch.float64, 8) > 1e-3


def test_the_schedule_is_that_of_the_options():
    rows = PreconditionedNewtonSchulz(lower_bound=1e-3, threshold=0.2).schedule(torch.float32)
    growth = growth_polynomial(0.2)
    phase = rows.index(CUBIC[0])
    assert set(rows[:phase]) == {growth}
    assert set(rows[phase:]) == {CUBIC[0]}
    A = torch.randn(6, 4, dtype=torch.float64)
    method = PreconditionedNewtonSchulz(lower_bound=1e-3)
    same = NewtonSchulz(method.schedule(torch.float64), len(method.schedule(torch.float64)), dtype=None)
    assert torch.equal(polar_factor(A, method), polar_factor(A, same))


@pytest.mark.parametrize(
    "options", [{"max_steps": 0}, {"lower_bound": 1.5}, {"lower_bound": 0.0}, {"threshold": 0.5}, {"dtype": "half"}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="got"):
        PreconditionedNewtonSchulz(**options)
