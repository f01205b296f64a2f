"""The exact factor by products alone: its table, its accuracy, and that it reads nothing and factors nothing."""

from itertools import pairwise

import mpmath
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polargrad.linalg import GramPolynomials, gram_polynomials, polar_factor
from polargrad.linalg.gram_polynomials import _BLOCK_ROWS, FIRST_PASS, SECOND_PASS, _gram
from tests.assertions import assert_close, assert_polar_factor
from tests.matrices import GALLERY, make, with_singular_values

FULL_RANK = ["gaussian", "log-1e6", "one-dominant", "one-small", "graded", "scaled-1e30", "scaled-1e-30"]


def _value(row, x):
    z = x * x
    return x * row.e * (z * z + row.r * z + row.s) * (z * z + row.t * z + row.u)


def _minimax(low, high):
    """Remez exchange for min max |1 - p(x)| on [low, high] over odd p of degree 9, scaled to an image around 1."""
    inner = [low + (high - low) * (1 - mpmath.cos(mpmath.pi * j / 5)) / 2 for j in range(1, 5)]
    while True:
        nodes = [low, *inner, high]
        system = mpmath.matrix([[*(x ** (2 * i + 1) for i in range(5)), (-1) ** j] for j, x in enumerate(nodes)])
        row = list(mpmath.lu_solve(system, mpmath.matrix([1] * 6)))[:5]
        slopes = [(2 * i + 1) * c for i, c in enumerate(row)]
        roots = mpmath.polyroots(slopes[::-1], maxsteps=500, extraprec=400)
        before, inner = inner, sorted(mpmath.sqrt(z.real) for z in roots)
        if max(abs(x - y) for x, y in zip(inner, before, strict=True)) < mpmath.mpf(10) ** -20:
            break
    values = [sum(c * x ** (2 * i + 1) for i, c in enumerate(row)) for x in nodes]
    centre = (min(values) + max(values)) / 2
    return (
        lambda x: sum(c * x ** (2 * i + 1) for i, c in enumerate(row)) / centre,
        min(values) / centre,
        max(values) / centre,
    )


def test_the_table_is_the_greedy_composition_of_minimax_polynomials():
    with mpmath.workdps(50):
        low, high = mpmath.mpf("2e-7"), mpmath.mpf(1)
        for row in (*FIRST_PASS, *SECOND_PASS):
            points = [low + (high - low) * i / 7 for i in range(8)]
            polynomial, low, high = _minimax(low, high)
            for x in points:
                assert abs(_value(row, x) - polynomial(x)) < 1e-12
        assert 1 - low < 3.2e-8


def test_a_wrong_table_is_noticed():
    row = FIRST_PASS[0]._replace(r=FIRST_PASS[0].r * (1 + 1e-9))
    with mpmath.workdps(50):
        polynomial, _, _ = _minimax(mpmath.mpf("2e-7"), mpmath.mpf(1))
    assert abs(_value(row, mpmath.mpf("0.9")) - polynomial(mpmath.mpf("0.9"))) > 1e-12


@pytest.fixture(params=["polynomials", "Halley"])
def first_pass(request, monkeypatch):
    """Both ways of the first pass at small sizes."""
    if request.param == "Halley":
        monkeypatch.setattr(gram_polynomials, "_HALLEY_FROM", 1)


@pytest.mark.usefixtures("first_pass")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 1), (40, 40), (160, 40), (40, 90), (300, 200)], ids=str)
@pytest.mark.parametrize("name", FULL_RANK)
def test_the_gallery(name, shape, dtype):
    if dtype == torch.bfloat16 and name.startswith(("scaled", "one-small", "log", "graded")):
        pytest.skip("rounding to bfloat16 makes another matrix of it")
    A = make(name, shape[0], shape[1], dtype, (2,))
    assert_polar_factor(A, polar_factor(A, "gram-polynomials"))


@pytest.mark.usefixtures("first_pass")
@pytest.mark.parametrize("name", GALLERY)
def test_every_matrix_gives_a_contraction_and_small_backward_error(name):
    A = make(name, 120, 60).double()
    U = polar_factor(A.float(), "gram-polynomials").double()
    assert torch.linalg.svdvals(U).max() <= 1 + 8 * torch.finfo(torch.float32).eps
    K = U.mH @ A
    error = torch.linalg.matrix_norm(A - U @ (K + K.mH) / 2)
    # Null directions are left somewhere in [0, 1]: they cost at most the singular values below the floor.
    assert error <= 16 * torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(A)


@pytest.mark.usefixtures("first_pass")
@pytest.mark.parametrize("sigma", [1.0, 1e-2, 1e-4, 1e-6, 6e-7])
def test_singular_values_above_the_floor_reach_one(sigma):
    spectrum = torch.ones(50, dtype=torch.float64)
    spectrum[25:] = sigma
    A = with_singular_values(70, 50, spectrum / 5, torch.float64, seed=3).float()
    U = polar_factor(A, "gram-polynomials").double()
    assert_close(torch.linalg.svdvals(U), torch.ones(50, dtype=torch.float64), c=1e9)


@pytest.mark.usefixtures("first_pass")
def test_a_zero_matrix_gives_zero_and_a_bad_one_nan():
    A = torch.randn(3, 6, 4)
    A[0], A[1, 2, 3] = 0.0, torch.nan
    U = polar_factor(A, "gram-polynomials")
    assert not U[0].any()
    assert U[1].isnan().all()
    assert torch.equal(U[2], polar_factor(A[2], "gram-polynomials")) or torch.allclose(U[2], polar_factor(A[2]))


def test_the_gram_matrix_of_a_tall_matrix_by_block_rows():
    X = torch.randn(1, 4000, 400, dtype=torch.float64)
    G = _gram(X)
    assert_close(G, X.mH @ X, c=64)
    assert_close(G, G.mT)  # a product's diagonal block is symmetric to the bit on some processors alone
    across = G.clone()
    for start, end in pairwise(400 * i // _BLOCK_ROWS for i in range(_BLOCK_ROWS + 1)):
        across[:, start:end, start:end] = 0.0
    assert torch.equal(across, across.mT)


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_no_factorization_and_no_number_read():
    with _Operations() as seen:
        GramPolynomials().iterate(torch.randn(2, 30, 20))
    assert "bmm" in seen.names
    wrong = {
        "_local_scalar_dense",
        "linalg_eigh",
        "_linalg_eigh",
        "_linalg_svd",
        "linalg_qr",
        "linalg_cholesky_ex",
        "nonzero",
    }
    assert not wrong & seen.names


def test_double_precision_gets_what_its_gram_matrix_resolves():
    A = with_singular_values(70, 50, torch.logspace(0, -5, 50, dtype=torch.float64), torch.float64, seed=3)
    sigma = torch.linalg.svdvals(polar_factor(A, "gram-polynomials"))
    assert (sigma - 1).abs().max() <= GramPolynomials().tolerance(torch.float64, 1)
