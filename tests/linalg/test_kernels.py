"""The structured products against their plain twins, above and below the size where they start to be blocked."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import polargrad
from polargrad.linalg.kernels import (
    gram,
    gram_plain,
    hermitian_product,
    product,
    solve_with_gram,
    solve_with_gram_plain,
    tiled,
)
from polargrad.linalg.kernels.symmetric import row_panels
from tests.assertions import assert_close, assert_unmodified

SHAPES = [(1, 7, 5), (3, 40, 33), (1, 700, 257), (2, 300, 300), (1, 5000, 260)]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def double(dtype):
    return torch.complex128 if dtype.is_complex else torch.float64


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gram_is_its_plain_twin_in_either_precision(shape, dtype):
    X = torch.randn(shape, dtype=dtype)
    before = X.clone()
    for work in (dtype, double(dtype)):
        G = gram(X, work)
        assert G.dtype == work
        assert_close(G, gram_plain(X, work), shape[-1])
    assert_unmodified(X, before)


def test_gram_takes_a_transposed_view():
    X = torch.randn(1, 300, 900).mT
    assert_close(gram(X, torch.float64), gram_plain(X, torch.float64), 300)


def test_gram_in_double_keeps_what_single_loses():
    X = torch.randn(1, 400, 300)
    exact = gram_plain(X, torch.float64)
    single = (gram(X).double() - exact).norm() / exact.norm()
    assert (gram(X, torch.float64) - exact).norm() / exact.norm() < 1e-14 < single


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_product_of_commuting_hermitian_matrices(n, dtype):
    G = gram_plain(torch.randn(2, n + 5, n, dtype=dtype))
    C = hermitian_product(G, G)
    assert_close(C, G @ G)
    assert_close(C, C.mH)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_a_product_with_a_double_factor_rounds_once(shape, dtype):
    X = torch.randn(shape, dtype=dtype)
    S = torch.randn(shape[0], shape[2], 4, dtype=double(dtype))
    assert torch.equal(product(X, S), (X.to(S.dtype) @ S).to(dtype)) or shape[2] > 256
    assert_close(product(X, S), X.to(S.dtype) @ S, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_the_solve_is_its_plain_twin_and_hands_back_the_gram_matrix_of_its_result(shape, dtype):
    X = torch.randn(shape, dtype=dtype)
    n = shape[-1]
    R = torch.randn(shape[0], n, n, dtype=dtype).triu() / n + torch.eye(n)
    Y, G = solve_with_gram(X, R)
    plain, _ = solve_with_gram_plain(X, R)
    assert_close(Y, plain)
    assert_close(Y @ R, X)
    assert_close(G, Y.mH @ Y)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1000, 1000), (50304, 768), (5, 2000), (99991, 300)])
def test_row_panels_cover_every_row_once(m, n):
    panels = row_panels(m, n, 8)
    assert [panel.start for panel in panels[1:]] == [panel.stop for panel in panels[:-1]]
    assert (panels[0].start, panels[-1].stop) == (0, m)


def test_blocks_without_a_safe_inverse_are_solved_by_substitution():
    """Pairs of nearly equal columns: with inverted diagonal blocks the residual was 1e3 times as large."""
    A = torch.randn(1, 1200, 300)
    A[..., 1::2] = A[..., ::2] + 1e-5 * torch.randn(1, 1200, 150)
    R = torch.linalg.cholesky(gram(A, torch.float64), upper=True).float()
    Y, _ = solve_with_gram(A, R)
    residual = (Y.double() @ R.double() - A.double()).norm() / A.double().norm()
    assert residual <= 1e-6


# Run where TRITON_INTERPRET is set before Triton is imported. Its interpreter multiplies no bfloat16.
INTERPRETED = """
import itertools, torch
from polargrad.linalg.kernels import tiled

torch.manual_seed(0)
shapes = ((2, 96, 80), (3, 70, 33), (1, 64, 64), (2, 130, 100))
for dtype, (k, m, n), depth in itertools.product((torch.float32, torch.float16), shapes, (16, 32)):
    cut = tiled.Tiling(32, depth, 4, 2)
    X = torch.randn(k, m, n).to(dtype)
    C = tiled.symmetric_product(X.mT, X, tiling=cut)
    R = (C / C.float().norm()).to(dtype)
    P = tiled.symmetric_product(R, R.mT, R.mT, beta=-4.775, alpha=2.03, tiling=cut)
    Y = torch.randn(k, 2 * m, n).to(dtype)[:, ::2]
    Q = tiled.symmetric_product(Y.mT, Y, tiling=cut)
    wide = 2.03 * R.double() @ R.double() - 4.775 * R.double()
    for found, wide in ((C, X.double().mT @ X.double()), (Q, Y.double().mT @ Y.double()), (P, wide)):
        assert (found.double() - wide).norm() <= torch.finfo(dtype).eps * wide.norm()
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, as in a CUDA build of torch")
def test_the_tiles_by_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter does not know this NumPy")
    assert done.returncode == 0, done.stderr


def test_every_tile_on_and_below_the_diagonal_is_counted():
    assert [tiled.tiles(n, 128) for n in (1, 128, 129, 768, 1024)] == [1, 1, 3, 21, 36]


def test_the_kernel_takes_nothing_on_a_cpu():
    assert not tiled.can_tile(torch.randn(1, 1024, 1024, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGPU:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("shape", [(3, 700, 640), (1, 1024, 1024), (24, 1030, 1000), (1, 512, 4096)], ids=str)
    def test_products_are_those_in_double_rounded_once(self, shape, dtype, monkeypatch):
        monkeypatch.setattr(tiled, "LEAST_WORK", 0)
        monkeypatch.setattr(tiled, "LEAST_TILES", 0)
        monkeypatch.setattr(tiled, "LEAST_COLUMNS", 0)
        X = torch.randn(shape, device="cuda").to(dtype)
        for Y in (X, X.mT, X[:, ::2]):
            assert tiled.can_tile(Y)
            C, wide = gram(Y), Y.double().mT @ Y.double()
            assert (C.double() - wide).norm() <= torch.finfo(dtype).eps * wide.norm()
            R = (C.float() / torch.linalg.matrix_norm(C.float(), keepdim=True)).to(dtype)
            P = hermitian_product(R, R, R, beta=-4.775, alpha=2.03)
            wide = 2.03 * R.double() @ R.double() - 4.775 * R.double()
            assert (P.double() - wide).norm() <= torch.finfo(dtype).eps * wide.norm()

    @pytest.mark.parametrize("method", ["newton-schulz", "gram-newton-schulz"])
    @pytest.mark.parametrize("shape", [(20, 1024, 768), (16, 1024, 1024), (20, 800, 3000)], ids=str)
    def test_factors_are_those_of_the_plain_products(self, shape, method, monkeypatch):
        A, made = torch.randn(shape, device="cuda"), []
        kernel = tiled.symmetric_product
        monkeypatch.setattr(tiled, "symmetric_product", lambda *args, **kw: made.append(1) or kernel(*args, **kw))
        U = polargrad.polar_factor(A, method)
        assert made
        monkeypatch.setattr(tiled, "can_tile", lambda *X: False)
        plain = polargrad.polar_factor(A, method)
        error = torch.linalg.matrix_norm(U - plain) / torch.linalg.matrix_norm(plain)
        assert (error <= 8 * torch.finfo(torch.bfloat16).eps).all()
