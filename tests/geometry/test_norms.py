"""Every geometry: its oracle maximizes the inner product on the unit ball, its dual norm is that maximum."""

import pytest
import torch

from polargrad.geometry import Columns, Entrywise, Frobenius, LeftPolar, RightPolar, Rows, Spectral, inner

EPS = torch.finfo(torch.float64).eps
# The norm of X, written out by itself, and a matrix shape that the geometry takes.
NORMS = {
    "spectral": (Spectral("svd"), lambda X: torch.linalg.matrix_norm(X, 2), (7, 5)),
    "right-polar": (RightPolar(), lambda X: torch.linalg.matrix_norm(X, 2), (7, 5)),
    "left-polar": (LeftPolar(), lambda X: torch.linalg.matrix_norm(X, 2), (5, 7)),
    "entrywise": (Entrywise(), lambda X: X.abs().amax((-2, -1)), (7, 5)),
    "frobenius": (Frobenius(), torch.linalg.matrix_norm, (7, 5)),
    "rows": (Rows(), lambda X: X.norm(dim=-1).amax(-1), (7, 5)),
    "columns": (Columns(), lambda X: X.norm(dim=-2).amax(-1), (7, 5)),
}
everyone = pytest.mark.parametrize("name", NORMS)


def _case(name, count=3):
    geometry, norm, shape = NORMS[name]
    return geometry, norm, torch.randn(count, *shape, dtype=torch.float64)


@everyone
def test_the_oracle_is_on_the_unit_sphere_and_its_product_is_the_dual_norm(name):
    geometry, norm, G = _case(name)
    D = geometry.lmo(G)
    torch.testing.assert_close(norm(D), torch.ones(3, dtype=torch.float64), rtol=0, atol=100 * EPS)
    torch.testing.assert_close(inner(G, D), geometry.dual_norm(G), rtol=100 * EPS, atol=0)
    torch.testing.assert_close(geometry.sharp(G), geometry.dual_norm(G)[:, None, None] * D, rtol=100 * EPS, atol=0)


@everyone
def test_nothing_in_the_unit_ball_does_better(name):
    geometry, norm, G = _case(name, count=1)
    X = torch.randn(500, *G.shape[1:], dtype=torch.float64)
    near = geometry.lmo(G) + 0.1 * X
    for candidates in (X, near):
        candidates = candidates / norm(candidates)[:, None, None]
        assert (inner(G.expand_as(candidates), candidates) <= geometry.dual_norm(G) * (1 + 100 * EPS)).all()


@everyone
def test_length_scale_and_zero(name):
    geometry, _, G = _case(name)
    lengths = geometry.lmo(G).square().sum((-2, -1))
    torch.testing.assert_close(lengths, torch.full_like(lengths, geometry.squared_length(*G.shape[1:])))
    for factor in (1e-150, 1e150):
        torch.testing.assert_close(geometry.lmo(factor * G), geometry.lmo(G), rtol=0, atol=1e3 * EPS)
    assert not geometry.lmo(torch.zeros_like(G)).any()
    assert not geometry.sharp(torch.zeros_like(G)).any()


@everyone
def test_a_batch_is_its_matrices(name):
    geometry, _, G = _case(name, count=4)
    batched = geometry.lmo(G.reshape(2, 2, *G.shape[1:]))
    for single, together in zip(G, batched.flatten(0, 1), strict=True):
        torch.testing.assert_close(geometry.lmo(single), together, rtol=0, atol=100 * EPS)


def _with_spectrum(values, m, dtype=torch.float64):
    n = len(values)
    P, Q = torch.linalg.qr(torch.randn(m, n, dtype=torch.float64))[0], torch.linalg.qr(torch.randn(n, n).double())[0]
    return (P * torch.tensor(values, dtype=torch.float64) @ Q.mT).to(dtype), (P @ Q.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_one_sided_is_the_polar_factor(dtype):
    G = torch.randn(2, 40, 9, dtype=dtype)
    U = Spectral("svd").lmo(G)
    limit = 40 * 9 * torch.finfo(dtype).eps
    assert (RightPolar().lmo(G) - U).abs().max() <= limit
    assert (LeftPolar().lmo(G.mH) - U.mH).abs().max() <= limit
    assert RightPolar().lmo(G).dtype == dtype


def test_one_sided_resolves_all_that_float32_holds():
    """Singular values down to 1e-6 of the largest: the square of 1e-6 is far above rounding in float64.

    Forming and diagonalizing the Gram matrix moves its n = 4 eigenvalues by up to n eps ||G||^2, and sigma(U) by half
    the relative change of an eigenvalue.
    """
    G, U = _with_spectrum([1.0, 1e-2, 1e-4, 1e-6], 30, torch.float32)
    sigma = torch.linalg.svdvals(RightPolar().lmo(G).double())
    assert (sigma - 1).abs().max() < 4 * EPS / 1e-6**2 / 2
    G, U = _with_spectrum([1.0, 1e-2, 1e-4, 1e-6], 30)
    assert (RightPolar().lmo(G) - U).abs().max() < 1e-3


def test_one_sided_drops_what_its_square_root_of_eps_cannot_tell_from_zero():
    """The stated limit in float64, where the polar factor by singular values still sees the direction."""
    G, U = _with_spectrum([1.0, 0.5, 1e-10], 30)
    found = torch.linalg.svdvals(RightPolar().lmo(G))
    assert found[-1] < 0.5
    assert (found[:2] - 1).abs().max() < 1e-6
    assert (Spectral("svd").lmo(G) - U).abs().max() < 1e-4


def test_one_sided_of_rank_deficient_gradients_is_a_partial_isometry():
    """Few tokens in a batch: most rows of an embedding's gradient are zero, and the rank is their number."""
    G = torch.zeros(200, 16)
    G[[3, 50, 121]] = torch.randn(3, 16)
    U = RightPolar().lmo(G)
    torch.testing.assert_close(U[[3, 50, 121]] @ U[[3, 50, 121]].mT, torch.eye(3), rtol=0, atol=1e-5)
    assert not U[[0, 1, 2, 199]].any()


def test_one_sided_nonfinite_stays_in_its_matrix():
    G = torch.randn(3, 8, 4)
    G[1, 0, 0] = torch.inf
    U = RightPolar().lmo(G)
    assert U[1].isnan().all()
    assert U[[0, 2]].isfinite().all()


def test_one_sided_refuses_the_other_side():
    with pytest.raises(ValueError, match="use 'left-polar'"):
        RightPolar().lmo(torch.ones(3, 4))
    with pytest.raises(ValueError, match="use 'right-polar'"):
        LeftPolar().lmo(torch.ones(4, 3))
