"""Inputs and options at the ends of their range: each was wrong once, or is next to one that was."""

import math

import pytest
import torch

from polargrad.linalg import (
    QDWH,
    Newton,
    PolarExpress,
    PreconditionedNewtonSchulz,
    Status,
    ZoloPD,
    nearest_rotation,
    polar,
    polar_factor,
)
from tests.assertions import assert_orthonormal, eps_of
from tests.matrices import with_singular_values

# Condition numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("power", [1, 1.5, 2, 2.5, 3, 4, 5, 8, 15, 19])
@pytest.mark.parametrize("shape", [(3, 3), (7, 3), (3, 7)], ids=str)
def test_newton_at_any_condition_number(power, shape, dtype):
    """It once overshot far below eps^2: singular values of 55.8."""
    least = eps_of(dtype) ** power
    if least < torch.finfo(dtype).tiny:
        pytest.skip("not a number of this dtype")
    A = torch.zeros(shape, dtype=dtype)
    A[0, 1], A[1, 0], A[2, 2] = 1.0, -0.5, least
    result = polar(A, Newton())
    assert result.status == Status.CONVERGED
    assert float((torch.linalg.svdvals(result.unitary) - 1).abs().max()) <= 20 * eps_of(dtype)


# Options


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lower", [1e-100, 1e-50, 1e-30, 1e-10, 0.5, 0.99, 0.9999, 0.999999999, 1.0 - 2.0**-53])
@pytest.mark.parametrize("kind", [QDWH, ZoloPD, PolarExpress, PreconditionedNewtonSchulz])
def test_a_lower_bound_is_right_for_what_lies_above_it_or_refused(kind, lower, dtype):
    """||A||_F is at most 1 / lower times the smallest singular value of these matrices."""
    try:
        method = kind(lower_bound=lower)
    except ValueError as error:
        assert f"lower_bound must lie in [{'1e-50' if kind is QDWH else '1e-100'}, 1)" in str(error)  # noqa: PT017
        assert kind in (QDWH, ZoloPD)
        assert lower < 1e-49
        return
    n = 1 if lower > 0.7 else 2
    A = with_singular_values(5, n, torch.tensor([2.0, 2.0][:n], dtype=torch.float64)).to(dtype)
    result = polar(A, method)
    assert result.status == Status.CONVERGED
    deviation = float((torch.linalg.svdvals(result.unitary.double()) - 1).abs().max())
    assert deviation <= method.tolerance(dtype, n)


@pytest.mark.parametrize("lower", [0, 0.0, 1, 1.0, 1.5, -1e-3, math.nan, math.inf, -math.inf, True, "small", 1e-320])
@pytest.mark.parametrize("kind", [QDWH, ZoloPD])
def test_any_other_lower_bound_is_refused(kind, lower):
    with pytest.raises(ValueError, match=r"lower_bound must lie in \[1e-\d+, 1\), got"):
        kind(lower_bound=lower)


# The end of the range


@pytest.mark.parametrize("method", ["svd", "auto", "qdwh", "zolo-pd", "newton", "polar-express", "newton-schulz"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.float32], ids=str)
def test_near_overflow_forward_and_backward(method, dtype):
    """The modulus of a complex entry overflows where its parts do not; the gradient is that of a scaled matrix."""
    torch.manual_seed(0)
    base = torch.randn(4, 3, dtype=dtype)
    base = base / 2 ** math.ceil(math.log2(float(base.abs().max())))
    exponent = int(math.log2(torch.finfo(dtype).max)) - 1
    G = torch.randn(4, 3, dtype=dtype)
    half = exponent // 2

    def gradient(A):
        A = A.clone().requires_grad_()
        U = polar_factor(A, method)
        return U.detach(), torch.autograd.grad(U, A, G)[0]

    U, derivative = gradient(base * 2.0**half * 2.0 ** (exponent - half))
    V, plain = gradient(base)
    assert torch.allclose(U, V, atol=1e3 * eps_of(dtype) if method != "newton-schulz" else 1e-2)
    scaled = derivative * 2.0**half * 2.0 ** (exponent - half)
    assert torch.linalg.vector_norm(scaled - plain) <= 0.05 * torch.linalg.vector_norm(plain)


# Half precision


@pytest.mark.parametrize("method", ["auto", "qdwh", "newton-schulz"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_numbers_of_half_precision_describe_the_factor_that_is_returned(method, dtype):
    A = with_singular_values(60, 20, torch.linspace(1, 0.2, 20, dtype=torch.float64)).to(dtype)
    result = polar(A, method)
    U = result.unitary.double()
    H = (U.mT @ A.double() + A.double().mT @ U) / 2
    defect = torch.linalg.matrix_norm(U.mT @ U - torch.eye(20)) / 20**0.5
    error = torch.linalg.matrix_norm(A.double() - U @ H) / torch.linalg.matrix_norm(A.double())
    assert float(result.stats["orthogonality"]) == pytest.approx(float(defect), rel=1e-3)
    assert float(result.stats["backward_error"]) == pytest.approx(float(error), rel=1e-3)
    assert float(defect) > 0.1 * eps_of(dtype)  # which an unrounded factor would not show


@pytest.mark.parametrize("n", [4, 33, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_full_accuracy_of_half_precision_is_the_rounding_of_the_exact_factor(n, dtype):
    A = with_singular_values(2 * n, n, torch.linspace(1, 0.1, n, dtype=torch.float64)).to(dtype)
    U, exact = polar_factor(A, "polar-express", accuracy="full"), polar_factor(A.double())
    assert float((U.double() - exact).abs().max()) <= 0.51 * eps_of(dtype) * float(exact.abs().max())


# Rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("m", "n"), [(3, 3), (8, 8), (20, 8), (8, 20), (33, 33), (66, 33), (70, 70)], ids=str)
@pytest.mark.parametrize("batch", [(), (40,)], ids=str)
def test_the_rank_of_an_exact_integer_matrix(m, n, batch, dtype):
    """Once 7 instead of 1 in float64: the cut-off lay below LAPACK's own error."""
    for rank in {1, 2, min(m, n) // 2, min(m, n) - 1, min(m, n)} - {0}:
        generator = torch.Generator().manual_seed(rank)
        L, R = (torch.randint(-4, 5, (*batch, *shape), generator=generator) for shape in ((m, rank), (rank, n)))
        A = (L @ R).to(dtype)
        sigma = torch.linalg.svdvals(A.double())
        expected = (sigma > 1e-11 * sigma[..., :1]).sum(-1)
        for method in ("svd", "auto"):
            result = polar(A, method)
            counted = result.unitary.double().square().sum((-2, -1))
            assert torch.allclose(counted, expected.double(), atol=1e-3), (rank, method)
            assert (result.status == Status.CONVERGED).all()


def test_gaussian_matrices_are_not_singular():
    """Of 3 x 3 matrices in float32 one in two million is singular to the rounding of its entries; completed, none."""
    A = torch.randn(200_000, 3, 3, generator=torch.Generator().manual_seed(0))
    assert_orthonormal(polar_factor(A))
    assert_orthonormal(polar_factor(A, completed=True))


@pytest.mark.slow
def test_of_a_million_rotations_none_is_lost():
    A = torch.randn(1_000_000, 3, 3, generator=torch.Generator().manual_seed(1))
    assert_orthonormal(polar_factor(A, completed=True))
    R = nearest_rotation(A)
    assert_orthonormal(R)
    assert (torch.linalg.det(R) > 0).all()
    lost = (polar_factor(A).square().sum((-2, -1)) - 3).abs() > 0.5
    assert int(lost.sum()) <= 3


# Very tall


@pytest.mark.parametrize("method", ["auto", "svd", "qdwh", "zolo-pd", "newton", "polar-express", "gram-polynomials"])
@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_a_million_rows(method, condition):
    """Sums over so many rows in single precision are off by 1e-5 to 1e-3; SciPy's factor by 6e-7."""
    if method == "polar-express" and condition > 1e3:
        pytest.skip("below its floor")
    scale = torch.logspace(0, -math.log10(condition), 4)
    A = torch.randn(1_000_000, 4, generator=torch.Generator().manual_seed(0)) * scale
    result = polar(A, method, hermitian=False)
    U = result.unitary.double()
    assert result.status == Status.CONVERGED
    assert float((U.mT @ U - torch.eye(4)).abs().max()) < 2e-6
