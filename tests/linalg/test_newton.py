"""Scaled Newton: steps by condition number, tall matrices by QR, singular ones by status."""

import math

import pytest
import torch

from polargrad.linalg import Newton, Status, polar, polar_factor
from polargrad.linalg.newton import newton_ranges
from tests.assertions import assert_polar_factor
from tests.matrices import make, with_singular_values


def test_ranges_are_the_images_of_the_scalar_iteration():
    lower = 1e-5
    x = torch.logspace(-5, 0, 100_001, dtype=torch.float64)
    zeta = 1 / math.sqrt(lower)
    for h in newton_ranges(lower, 1e-6):
        x = (zeta * x + 1 / (zeta * x)) / 2
        assert float(x.max()) == pytest.approx(h, rel=1e-10)
        assert float(x.min()) >= 1 - 1e-12
        zeta = 1 / math.sqrt(h)


def test_nine_steps_at_any_condition_number():
    assert len(newton_ranges(1e-16, 1e-15)) == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(9, 9), (30, 9), (9, 30), (1, 1), (1, 6)])
@pytest.mark.parametrize("spectrum", ["log-1e6", "powers-of-two", "one-dominant", "clustered", "arithmetic"])
def test_it_converges_to_the_factor(dtype, shape, spectrum):
    A = make(spectrum, *shape, dtype)
    result = polar(A, "newton")
    assert result.status == Status.CONVERGED
    assert result.stats["steps"] <= 8
    assert_polar_factor(A, result.unitary)


@pytest.mark.parametrize("name", ["hilbert", "kahan", "frank", "graded"])
def test_numerically_singular_matrices_are_backward_stable(name):
    """Through the triangular factor; with LU for the first inverse, the H of Hilbert's matrix is not Hermitian."""
    assert_polar_factor(make(name, 16, 16, torch.float64), polar_factor(make(name, 16, 16, torch.float64), "newton"))


def test_singular_matrices_break_down_and_zero_gives_zero():
    A = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 0.0, 2.0])), torch.zeros(3, 3)])
    U, _, status, _ = polar(A, "newton")
    assert status.tolist() == [Status.CONVERGED, Status.BREAKDOWN, Status.CONVERGED]
    assert torch.allclose(U[0], torch.eye(3), atol=1e-6)
    assert U[1].isnan().all()
    assert not U[2].any()


def test_better_conditioned_takes_fewer_steps():
    def steps(condition):
        sigma = torch.logspace(0, -condition, 8, dtype=torch.float64)
        return polar(with_singular_values(8, 8, sigma), "newton").stats["steps"]

    assert steps(0.5) < steps(12) <= 8


def test_a_step_limit_stops_and_is_declared():
    A = with_singular_values(8, 8, torch.logspace(0, -6, 8, dtype=torch.float64))
    result = polar(A, Newton(max_steps=3))
    assert result.stats["steps"] == 3
    assert float((torch.linalg.svdvals(result.unitary) - 1).abs().max()) <= Newton(3).tolerance(torch.float64, 8)
    assert polar(A, Newton(max_steps=50)).status == Status.CONVERGED
    with pytest.raises(ValueError, match="max_steps"):
        Newton(0)
