import pytest
import torch

from polargrad.linalg.bounds import largest_eigenvalue, norm_bound, smallest_eigenvalue, spectral_norm
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
