"""Newton-Schulz and Polar Express: the very steps of torch.optim.Muon, and the classes that schedules declare."""

import math

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from polargrad.linalg import NewtonSchulz, PolarExpress, Status, polar, polar_factor
from polargrad.linalg.coefficients import MUON_QUINTIC, map_interval
from polargrad.linalg.newton_schulz import iterate_polynomials, normalize_frobenius
from tests.matrices import make, with_singular_values

MUON = (3.4445, -4.7750, 2.0315)


def _compare_with_muon(A, coefficients):
    """||ours - theirs|| and what the rounding of bfloat16 may make of it, both relative to ||theirs||.

    A CPU may sum a product in any order, so the two may round to different neighbours in each of the 5 steps, and the
    later steps amplify that: no multiple of eps alone bounds it. The same 5 steps in float64 from the same bfloat16
    matrix tell by how much: their distance to torch's result is the accumulated rounding e of one run. Two runs with
    independent roundings would differ by sqrt(2) e; these share most of theirs.
    """
    theirs = _zeropower_via_newtonschulz(A.clone(), coefficients, 5, 1e-7).double()
    ours = polar_factor(A, NewtonSchulz.muon()).double()
    X = A.bfloat16().double()[None]
    exact = iterate_polynomials(normalize_frobenius(X if X.shape[-2] >= X.shape[-1] else X.mT), (coefficients,) * 5)[0]
    rounding = (theirs - (exact if exact.shape == theirs.shape else exact.mT)).norm()
    return float((ours - theirs).norm() / theirs.norm()), math.sqrt(2) * float(rounding / theirs.norm())


@pytest.mark.parametrize(("m", "n"), [(64, 64), (96, 32), (32, 96), (40, 1), (1, 1), (130, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muons_schedule_in_bfloat16_is_the_factor_of_torch_muon(m, n, dtype):
    torch.manual_seed(m + n)
    difference, rounding = _compare_with_muon(torch.randn(m, n).to(dtype), MUON)
    assert difference <= rounding
    assert rounding <= 8 * torch.finfo(torch.bfloat16).eps  # otherwise the reference would be that of other steps


def test_the_comparison_with_muon_notices_other_coefficients():
    difference, rounding = _compare_with_muon(torch.randn(64, 32), (3.4, -4.7, 2.0))
    assert difference > 2 * rounding


@pytest.mark.parametrize(
    "method",
    [
        NewtonSchulz(dtype=None),
        NewtonSchulz.cubic(12),
        NewtonSchulz.quintic(8),
        NewtonSchulz.cans(1e-3, 7),
        NewtonSchulz.cans(1e-2, 8, degree=3),
        NewtonSchulz.polar_express(1e-3, 6, dtype=None),
        PolarExpress(5),
        PolarExpress(8, 1e-4, 1.001),
    ],
    ids=str,
)
def test_singular_values_follow_the_scalar_polynomials(method):
    """U = P p(Sigma) Q^H: every singular value is the composed polynomial of its own, in float64 to rounding."""
    sigma = torch.logspace(0, -4, 12, dtype=torch.float64)
    A = with_singular_values(20, 12, sigma)
    x = sigma / sigma.norm()
    for a, b, c in method.schedule(torch.float64):
        x = x * (a + x * x * (b + c * x * x))
    U = polar_factor(A, method)
    assert torch.allclose(torch.linalg.svdvals(U), x.sort(descending=True).values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_declared_class_holds_from_the_floor_on(dtype):
    for method in (NewtonSchulz(dtype=None), NewtonSchulz.cubic(), PolarExpress(), PolarExpress(5)):
        low, high = map_interval(method.schedule(dtype), method.sigma_floor(dtype))
        deviation = method.tolerance(dtype, 1)
        assert 1 - deviation <= low <= high <= 1 + deviation
        assert map_interval(method.schedule(dtype), 0.0)[1] <= 1 + deviation


def test_polar_express_takes_the_steps_that_an_accuracy_needs():
    steps = [PolarExpress().with_accuracy(a, torch.float32).max_steps for a in (0.5, 1e-1, 1e-3, "full")]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1] <= 8
    A = with_singular_values(30, 20, torch.logspace(0, -2, 20, dtype=torch.float64)).float()
    for accuracy in (1e-1, 1e-3):
        sigma = torch.linalg.svdvals(polar_factor(A, "polar-express", accuracy=accuracy))
        assert float((sigma - 1).abs().max()) <= accuracy
    with pytest.raises(ValueError, match="coarser than accuracy"):
        PolarExpress(dtype="bfloat16").with_accuracy(1e-4, torch.float32)


@pytest.mark.parametrize("lower", [1e-2, 1e-4, 1e-6])
def test_polar_express_reaches_any_lower_bound(lower):
    sigma = torch.logspace(0, 0, 16, dtype=torch.float64)
    sigma[-1] = 1.5 * lower * 4  # ||A||_F is about 4
    A = with_singular_values(16, 16, sigma)
    method = PolarExpress(lower_bound=lower, safety=1.001).with_accuracy("full", torch.float64)
    result = polar(A, method)
    assert result.status == Status.CONVERGED
    assert float((torch.linalg.svdvals(result.unitary) - 1).abs().max()) < 1e-12


def test_one_matrix_and_a_batch_take_the_same_steps():
    A = torch.randn(3, 24, 16, dtype=torch.float64)
    X = normalize_frobenius(A)
    together = iterate_polynomials(X, MUON_QUINTIC * 5)
    for x, u in zip(X, together, strict=True):
        assert torch.allclose(iterate_polynomials(x[None], MUON_QUINTIC * 5)[0], u, rtol=1e-12, atol=1e-12)


def test_stopped_short_of_the_class_it_says_so():
    A = with_singular_values(8, 8, torch.logspace(0, -6, 8, dtype=torch.float64))
    assert polar(A, PolarExpress()).status == Status.STEP_LIMIT


@pytest.mark.parametrize("name", ["powers-of-two", "one-dominant", "rank-deficient", "zero", "ones"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
def test_nothing_ends_above_the_class(name, dtype):
    A = make(name, 12, 7)
    for method in (NewtonSchulz(dtype=dtype), NewtonSchulz.polar_express(dtype=dtype), PolarExpress(dtype=dtype)):
        top = float(torch.linalg.matrix_norm(polar_factor(A, method), 2))
        assert top <= 1 + method.tolerance(method.working_dtype(A.dtype), 7)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 0},
        {"max_steps": True},
        {"max_steps": 2.0},
        {"dtype": "float32"},
        {"coefficients": ()},
        {"coefficients": ((1.0, 2.0),)},
    ],
)
def test_newton_schulz_checks_its_options(options):
    with pytest.raises(ValueError, match=r"got|non-empty"):
        NewtonSchulz(**options)


@pytest.mark.parametrize(
    "options", [{"max_steps": 0}, {"lower_bound": 0.0}, {"lower_bound": 1.0}, {"safety": 0.9}, {"dtype": "float64"}]
)
def test_polar_express_checks_its_options(options):
    with pytest.raises(ValueError, match="got"):
        PolarExpress(**options)
