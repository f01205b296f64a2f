"""The exact factor through the float64 Gram matrix: every one of its ways, at the seams between them."""

import pytest
import torch

from polargrad.linalg import double_gram, polar_factor
from polargrad.linalg.double_gram import DoubleGram
from tests.assertions import assert_close, assert_polar_factor, rounding
from tests.matrices import GALLERY, make, with_singular_values

BLOCKED = ["gaussian", "log-1e6", "log-1e12", "one-dominant", "one-small", "rank-deficient", "hilbert", "graded"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(40, 40), (44, 40), (160, 40), (40, 90)], ids=str)
@pytest.mark.parametrize("name", GALLERY)
def test_the_gallery(name, shape, dtype):
    A = make(name, shape[0], shape[1], dtype, (2,))
    assert_polar_factor(A, polar_factor(A, DoubleGram()))


@pytest.mark.parametrize("shape", [(300, 300), (1200, 300)], ids=str)
@pytest.mark.parametrize("name", BLOCKED)
def test_sizes_at_which_the_products_are_blocked(name, shape):
    A = make(name, shape[0], shape[1])
    U = polar_factor(A, DoubleGram())
    assert_polar_factor(A, U)
    H = U.mH.double() @ A.double()
    assert torch.linalg.matrix_norm(H - H.mH) <= 1e-6 * 2 * torch.linalg.matrix_norm(A.double())


@pytest.mark.parametrize("ratio", [8, 2.0**-8, 2.0**-30])
def test_a_power_of_two_changes_nothing(ratio):
    A = torch.randn(2, 50, 40)
    assert torch.equal(polar_factor(A * ratio, DoubleGram()), polar_factor(A, DoubleGram()))


def test_singular_values_around_the_cutoff():
    """4 eps = 4.8e-7: what is 10% off on either side goes to 1 or to 0, and what is at it goes no further than that."""
    sigma = torch.ones(50, dtype=torch.float64)
    sigma[-4:] = 4 * torch.finfo(torch.float32).eps * torch.tensor([1.5, 1.3, 0.7, 0.5])
    A = with_singular_values(60, 50, sigma, torch.float64, seed=0).float()
    kept = torch.linalg.svdvals(polar_factor(A, DoubleGram()).double())
    assert_close(kept[:48], torch.ones(48, dtype=torch.float64), c=1e9)
    assert kept[48] < 1e-3


@pytest.mark.parametrize("rank", [0, 1, 20, 39])
def test_a_partial_isometry_for_any_rank(rank):
    sigma = (torch.arange(40) < rank).double()
    A = with_singular_values(100, 40, sigma, torch.float64, seed=1).float()
    U = polar_factor(A, DoubleGram()).double()
    G = U.mH @ U
    assert torch.linalg.matrix_norm(G @ G - G) <= rounding(torch.float32, 40)
    assert round(G.trace().item()) == rank


def test_a_batch_of_mixed_rank_gives_what_each_matrix_gives_alone():
    A = torch.stack([make(name, 60, 40) for name in ("gaussian", "rank-deficient", "log-1e6", "zero", "ones")])
    together = polar_factor(A, DoubleGram())
    for a, u in zip(A, together, strict=True):
        assert_polar_factor(a, u)


def test_a_large_batch_goes_one_by_one():
    A = torch.randn(3, 250, 200)
    U = polar_factor(A, DoubleGram())
    assert torch.equal(U[1], polar_factor(A[1], DoubleGram()))


@pytest.mark.parametrize("name", ["gaussian", "log-1e6", "log-1e12", "rank-deficient", "zero", "one-dominant"])
@pytest.mark.parametrize("shape", [(40, 40), (160, 40)], ids=str)
def test_the_fixed_sequence_for_other_devices(name, shape):
    A = make(name, shape[0], shape[1], torch.float32, (3,))
    U = DoubleGram()._by_eigenvalues(A, A.double().mH @ A.double())
    assert_polar_factor(A, U)


def test_only_single_precision_has_a_wider_one():
    with pytest.raises(TypeError, match="float64"):
        DoubleGram().iterate(torch.randn(1, 4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="cutoff"):
        DoubleGram(cutoff=1e-9)


def tall_case(name):
    m, n = 4000, 200
    few = torch.zeros(m, n)
    few[torch.randperm(m)[: 2 * n]] = torch.randn(2 * n, n) * torch.logspace(0, -4, n)
    diagonal = torch.zeros(m, n)
    diagonal[:n] = torch.diag(torch.logspace(0, -5, n))
    deficient = torch.zeros(m, n)
    deficient[: n // 2] = torch.randn(n // 2, n)
    return {
        "log-1e6": make("log-1e6", m, n),
        "columns graded": torch.randn(m, n) * torch.logspace(0, -5, n),
        "few rows": few,
        "gaussian": torch.randn(m, n),
        "rows graded": torch.randn(m, n) * torch.logspace(0, -6, m)[:, None],
        "diagonal": diagonal,
        "deficient": deficient,
        "zero": torch.zeros(m, n),
    }[name]


@pytest.mark.parametrize("name", ["log-1e6", "columns graded", "few rows"])
def test_very_tall_matrices_are_preconditioned_by_a_sketch(name):
    A = tall_case(name)
    assert DoubleGram()._from_sketch(A[None]) is not None
    assert_polar_factor(A, polar_factor(A, DoubleGram()))


@pytest.mark.parametrize("name", ["gaussian", "rows graded", "diagonal", "deficient", "zero"])
def test_where_a_sketch_gains_nothing_or_fails_it_is_dropped(name):
    A = tall_case(name)
    assert DoubleGram()._from_sketch(A[None]) is None
    assert_polar_factor(A, polar_factor(A, DoubleGram()))


def test_a_batch_of_many_small_matrices_is_that_of_its_parts(monkeypatch):
    A = torch.randn(7, 5, 3)
    A[2], A[4, :, 1] = 0.0, A[4, :, 0]
    U = DoubleGram().iterate(A).unitary
    monkeypatch.setattr(double_gram, "_PART_BYTES", 2 * 9 * 8)
    assert_close(DoubleGram().iterate(A).unitary, U)
