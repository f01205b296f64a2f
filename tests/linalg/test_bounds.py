import pytest
import torch

from polargrad.linalg import Status, available_methods, polar, resolve_method
from polargrad.linalg.bounds import (
    _start,
    gram_norm_bound,
    largest_eigenvalue,
    norm_bound,
    smallest_eigenvalue,
    spectral_norm,
)
from polargrad.linalg.double_gram import DoubleGram
from tests.matrices import GALLERY, make, with_singular_values

NAMES = [name for name in GALLERY if "underflow" not in name and "subnormal" not in name and "overflow" not in name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_bounds_lie_on_their_side(name, dtype):
    A = make(name, 60, 40, dtype, (2,))
    A = A / A.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    sigma = torch.linalg.svdvals(A)
    slack = 1e-12
    assert (norm_bound(A) >= sigma[:, 0] * (1 - slack)).all()
    for largest in (largest_eigenvalue(A.mH @ A).sqrt(), spectral_norm(A)):
        assert (largest <= sigma[:, 0] * (1 + slack)).all()
        assert (largest >= 0.8 * sigma[:, 0]).all()


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6])
@pytest.mark.parametrize("n", [1, 3, 200])
def test_the_smallest_is_found_within_a_fifth(condition, n):
    sigma = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    A = with_singular_values(n + 10, n, sigma, torch.float64, seed=1)
    R = torch.linalg.cholesky(A.mH @ A, upper=True)[None]
    estimate = smallest_eigenvalue(R).sqrt().item()
    assert sigma[-1] * (1 - 1e-3) <= estimate <= 1.2 * sigma[-1]


def test_a_singular_factor_gives_nothing_to_rely_on():
    assert not smallest_eigenvalue(torch.diag(torch.tensor([1.0, 0.0]))[None]).item() > 0.0


def test_a_zero_matrix_has_zero_bounds():
    assert norm_bound(torch.zeros(1, 3, 2)).item() == 0.0
    assert largest_eigenvalue(torch.zeros(1, 3, 3)).item() == 0.0


# Certainty: a bound is never below the norm, and an estimate that is far off does no harm


def _adversarial(m, n, size, seed, dtype=torch.float64, side="largest"):
    """Isometry plus rank one, with the odd direction orthogonal to the vectors from which the estimates start."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(m, n, generator=generator, dtype=torch.float64)).Q
    starts = torch.linalg.qr(_start(n, 8, torch.float64, torch.device("cpu"))).Q
    starts = torch.cat([starts, _start(n, 1, torch.float64, torch.device("cpu"))], -1)
    starts = torch.linalg.qr(starts).Q
    v = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    for _ in range(3):
        v = v - starts @ (starts.mT @ v)
    v = v / v.norm()
    return (Q + (size - 1.0) * (Q @ v) @ v.mT).to(dtype)


def _hard(n, seed):
    """Matrices on which norms, power iteration or rounding are at their worst."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(n, n, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (n, n), generator=generator).double() * 2 - 1
    spike = torch.zeros(n, n, dtype=torch.float64)
    spike[seed % n, (3 * seed) % n] = 1.0
    return torch.stack(
        [
            gaussian,
            gaussian.exp(),  # positive: the bounds are nearly the norm
            torch.ones(n, n, dtype=torch.float64),
            gaussian[:, :1] @ gaussian[:1],
            signs,
            spike,
            spike + 1e-3 * gaussian,
            torch.linalg.qr(gaussian).Q,
            torch.diag(torch.logspace(0, -12, n, dtype=torch.float64)),
            gaussian * torch.logspace(0, -6, n, dtype=torch.float64),
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_a_bound_is_never_below_the_norm(n, dtype):
    slack = 1 - 4 * n * torch.finfo(dtype).eps
    for seed in range(25):
        A = _hard(n, seed).to(dtype)
        A = A * (0.6 + 0.8j) if dtype.is_complex else A
        wide = A.to(torch.complex128 if dtype.is_complex else torch.float64)
        norm = torch.linalg.matrix_norm(wide, 2)
        assert (norm_bound(A).double() >= slack * norm).all()
        assert (
            norm_bound(A[:, :, : n // 2 + 1]).double() >= slack * torch.linalg.matrix_norm(wide[:, :, : n // 2 + 1], 2)
        ).all()
        if dtype != torch.bfloat16:  # whose Gram matrices nobody forms
            assert (gram_norm_bound(A.mH @ A).double() >= slack * norm).all()


def test_an_estimate_is_no_bound():
    """The negative control: of such a matrix it sees nothing of the largest singular value."""
    A = _adversarial(300, 300, 3.0, seed=0)[None]
    assert largest_eigenvalue(A.mH @ A).sqrt() < 1.1
    assert gram_norm_bound(A.mH @ A) >= 3.0


EXACT = [*(m for m in available_methods() if resolve_method(m).tolerance(torch.float64, 1) < 1e-6), DoubleGram()]


@pytest.mark.parametrize("size", [1e-4, 0.1, 0.5, 1.5, 3.0, 8.0, 1e3])
@pytest.mark.parametrize(("m", "n"), [(256, 256), (400, 256), (5300, 256)], ids=str)
@pytest.mark.parametrize("method", EXACT, ids=lambda method: resolve_method(method).name)
def test_no_method_trusts_an_estimate_that_is_off(method, m, n, size):
    if m > 1000 and resolve_method(method).name in ("svd", "newton", "zolo-pd", "precond-newton-schulz"):
        pytest.skip("uses no estimate, and takes long")
    if resolve_method(method).sigma_floor(torch.float32) * n**0.5 > min(size, 1 / size):
        pytest.skip("below the floor of the method")
    result = polar(_adversarial(m, n, size, seed=1, dtype=torch.float32), method)
    assert result.status == Status.CONVERGED
    assert float((torch.linalg.svdvals(result.unitary.double()) - 1).abs().max()) < 1e-4
