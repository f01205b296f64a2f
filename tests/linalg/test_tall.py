import pytest
import torch

from polargrad.linalg.kernels import gram
from polargrad.linalg.tall import is_tall, preconditioned_qr, sketch
from tests.assertions import assert_close, assert_orthonormal
from tests.matrices import with_singular_values


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize(("m", "n"), [(90, 30), (2000, 300)])
def test_the_second_pass_makes_up_for_the_condition(condition, m, n):
    sigma = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    A = with_singular_values(m, n, sigma, torch.float32, seed=0)[None].float()
    R = torch.linalg.cholesky(gram(A, torch.float64), upper=True)
    Y, S = preconditioned_qr(A, R)
    S = S.double()
    Q = Y.double() @ torch.linalg.inv(S)
    assert_orthonormal(Q.float())
    assert_close(Q @ S @ R, A)


def test_one_pass_alone_would_not_do():
    """The negative control: at condition 1e6 the first pass is far from orthonormal."""
    sigma = torch.logspace(0, -6, 30, dtype=torch.float64)
    A = with_singular_values(90, 30, sigma, torch.float32, seed=0)[None].float()
    R = torch.linalg.cholesky(gram(A, torch.float64), upper=True)
    Y, _ = preconditioned_qr(A, R)
    with pytest.raises(AssertionError):
        assert_orthonormal(Y)


def test_tall_is_a_matter_of_the_ratio():
    assert is_tall(torch.empty(1, 50, 10))
    assert not is_tall(torch.empty(1, 11, 10))


def test_the_factor_of_a_sketch_preconditions():
    sigma = torch.logspace(0, -5, 100, dtype=torch.float64)
    A = with_singular_values(5000, 100, sigma, torch.float64, seed=0)[None]
    Y = sketch(A)
    assert 400 <= Y.shape[-2] <= 500
    R = torch.linalg.qr(Y).R
    preconditioned = torch.linalg.svdvals(torch.linalg.solve_triangular(R, A, upper=True, left=False))
    assert preconditioned.max() < 2.5
    assert preconditioned.min() > 0.5
