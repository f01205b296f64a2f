"""Status is honest: for every method, dtype and size it refuses planted wrong factors, and accepts right ones."""

import dataclasses
import functools
import math

import pytest
import torch

from polargrad.linalg import QDWH, Status, available_methods, polar, polar_factor, resolve_method
from polargrad.linalg.double_gram import DoubleGram
from polargrad.linalg.method import IterationResult
from tests.assertions import eps_of
from tests.matrices import make, random_orthonormal, with_singular_values
from tests.polar_cases import LIMITED

METHODS = [*available_methods(), DoubleGram()]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.float16]


@functools.cache
def planting(kind):
    """The class of a method, with its promises, whose factor is what the test puts there."""

    class Planting(kind):
        def on(self, device):
            return self

        def iterate(self, X):
            return IterationResult(self.plant.to(X.dtype).mH if self.wide else self.plant.to(X.dtype), steps=1)

    return Planting


def planted(method, U):
    liar = object.__new__(planting(type(method)))
    for field in dataclasses.fields(method):
        object.__setattr__(liar, field.name, getattr(method, field.name))
    object.__setattr__(liar, "wide", U.shape[-2] < U.shape[-1])
    object.__setattr__(liar, "plant", U if U.ndim > 2 else U[None])
    return liar


def status_of(A, U, method):
    return int(polar(A, planted(method, U), hermitian=False).status)


@functools.cache
def case(m, n, dtype):
    """A well-conditioned matrix, rounded to dtype, and the bases of its exact factor in double precision."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    A = with_singular_values(m, n, torch.linspace(1.0, 0.3, min(m, n), dtype=torch.float64), wide).to(dtype)
    P, _, Qh = torch.linalg.svd(A.to(wide), full_matrices=False)
    return A, P, Qh


def last(n, value):
    sigma = torch.ones(n, dtype=torch.float64)
    sigma[-1] = value
    return sigma


def dishonest(A, P, Qh, tolerance):
    """Wrong factors by name: each differs from the exact one in a single direction, or in nothing but its range."""
    n = Qh.shape[-2]
    lies = {
        "just below the class": last(n, 1.0 - 2.0 * tolerance) if tolerance < 0.49 else None,
        "just above the class": last(n, 1.0 + 2.0 * tolerance),
        "one of .08": last(n, 0.08),
        "one of 2e-4": last(n, 2e-4),
        "lost": last(n, 0.0),
        "reflected": last(n, -1.0),
        "twice": torch.full((n,), 2.0, dtype=torch.float64),
    }
    if n > 1:
        lies["log spectrum"] = torch.logspace(0, -3, n, dtype=torch.float64)
    plants = {name: (P * sigma.to(P.dtype)) @ Qh for name, sigma in lies.items() if sigma is not None}
    if n > 1:
        swapped = list(range(n))
        swapped[0], swapped[-1] = swapped[-1], swapped[0]
        plants["two directions swapped"] = P[:, swapped] @ Qh
        wide = A.to(P.dtype)
        plants["another isometry"] = (
            torch.linalg.qr(wide).Q if A.shape[0] >= A.shape[1] else torch.linalg.qr(wide.mH).Q.mH
        )
        c, s = math.cos(0.6), math.sin(0.6)
        turned = P.clone()
        turned[:, 0], turned[:, -1] = c * P[:, 0] + s * P[:, -1], c * P[:, -1] - s * P[:, 0]
        plants["a plane turned by .6"] = turned @ Qh
    if A.shape[0] > n:
        outside = torch.zeros(A.shape[0], 1, dtype=P.dtype)
        outside[:] = torch.linspace(-1.0, 1.0, A.shape[0], dtype=torch.float64)[:, None]
        outside -= P @ (P.mH @ outside)
        moved = P.clone()
        moved[:, -1:] = 0.5 * P[:, -1:] + 0.75**0.5 * outside / torch.linalg.vector_norm(outside)
        plants["a direction outside of the range"] = moved @ Qh
    plants["nan"] = torch.full_like(P @ Qh, math.nan)
    return plants


def judge(method, m, n, dtype):
    """Every lie that is believed, and every truth that is not."""
    method = resolve_method(method)
    work = method.working_dtype(dtype)
    A, P, Qh = case(m, n, dtype)
    n = min(m, n)
    tolerance = method.tolerance(work, n) + (eps_of(dtype) if eps_of(dtype) > eps_of(work) else 0.0)
    if eps_of(work) == eps_of(torch.float64):  # the certificate's own sums over long columns
        tolerance += 4 * eps_of(work) * max(0, math.isqrt(m) - n)
    wrong = []
    for share in (0.0, 0.5, -0.5):
        U = (P * last(n, 1.0 + share * tolerance).to(P.dtype)) @ Qh
        if status_of(A, U, method) != Status.CONVERGED:
            wrong.append(f"honest to {share} of the tolerance, and refused")
    for name, U in dishonest(A, P, Qh, tolerance).items():
        status = status_of(A, U, method)
        if status == Status.CONVERGED or (name == "nan") != (status == Status.BREAKDOWN):
            wrong.append(f"{name}: {Status(status).name}")
    return wrong


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (2, 2), (3, 3), (40, 3), (30, 30), (70, 30), (900, 12), (20, 33)], ids=str
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: resolve_method(method).name)
def test_lies_are_refused_and_truth_is_accepted(method, m, n, dtype):
    if isinstance(method, DoubleGram) and dtype == torch.float64:
        pytest.skip("single precision alone")
    assert judge(method, m, n, dtype) == []


@pytest.mark.parametrize("method", ["auto", "newton-schulz", "polar-express", "qdwh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_size_hides_no_single_direction(method, dtype):
    assert judge(method, 512, 512, dtype) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "n", "methods"), [(256, 256, available_methods()), (1200, 256, available_methods()), (1024, 1024, ("auto",))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_no_size_hides_a_single_direction(m, n, methods, dtype):
    assert {method: judge(method, m, n, dtype) for method in methods} == {method: [] for method in methods}


def test_one_bad_matrix_of_a_batch_is_the_one_that_is_named():
    A, P, Qh = case(8, 8, torch.float32)
    right, lost = P @ Qh, (P * last(8, 0.0)) @ Qh
    method = planted(resolve_method("qdwh"), torch.stack([right, lost, right]))
    status = polar(A.expand(3, 8, 8), method).status
    assert status.tolist() == [Status.CONVERGED, Status.STEP_LIMIT, Status.CONVERGED]


@pytest.mark.parametrize("kept", [0.02, 1e-4])
def test_a_partial_isometry_must_leave_out_rounding_alone(kept):
    """Sizes at which a mean over columns would not see one direction."""
    n = 200
    P, Q = random_orthonormal(n, n), random_orthonormal(n, n, seed=1)
    sigma = torch.ones(n, dtype=torch.float64)
    sigma[-1] = kept
    A = ((P * sigma) @ Q.mT).float()
    assert status_of(A, P[:, :-1] @ Q[:, :-1].mT, resolve_method("auto")) == Status.STEP_LIMIT
    sigma[-1] = 0.0
    A = ((P * sigma) @ Q.mT).float()
    assert status_of(A, P[:, :-1] @ Q[:, :-1].mT, resolve_method("auto")) == Status.CONVERGED


# Methods as they run: what they say of themselves


@pytest.mark.parametrize("method", LIMITED, ids=str)
@pytest.mark.parametrize("spectrum", ["gaussian", "log-1e3", "log-1e6", "one-small", "equal", "rank-deficient"])
def test_a_limited_method_converges_only_where_it_kept_its_promise(method, spectrum):
    for m, n in ((24, 24), (60, 20)):
        A = make(spectrum, m, n, torch.float64, seed=2)
        result = polar(A, method)
        sigma = torch.linalg.svdvals(result.unitary)
        if result.status == Status.CONVERGED:
            tolerance = method.tolerance(torch.float64, n) + 1e-13
            kept = sigma > 1e-3 if spectrum == "rank-deficient" else sigma >= 0.0
            assert float((sigma[kept] - 1).abs().max()) <= tolerance


@pytest.mark.parametrize("accuracy", [0.3, 0.1, 1e-2, 1e-3, 1e-6, "full"])
@pytest.mark.parametrize("method", [*LIMITED, *available_methods()], ids=str)
def test_a_limited_method_that_is_held_to_an_accuracy_reaches_it_or_refuses(method, accuracy):
    A = with_singular_values(20, 20, torch.linspace(1.0, 0.05, 20, dtype=torch.float64))
    try:
        U = polar_factor(A, method, accuracy=accuracy)
    except ValueError as error:
        assert "accuracy" in str(error)  # noqa: PT017
        return
    bound = 1e-13 if accuracy == "full" and resolve_method(method).name != "gram-polynomials" else accuracy
    bound = 1e-6 if bound == "full" else bound
    assert float((torch.linalg.svdvals(U) - 1).abs().max()) <= bound


def test_one_halley_step_is_not_within_a_thousandth():
    with pytest.raises(ValueError, match=r"accuracy=0\.001"):
        polar_factor(torch.randn(8, 8), QDWH(max_steps=1), accuracy=1e-3)
