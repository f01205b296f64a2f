"""Matrices with cut rows are decomposed where they are, as well as in one place."""

import pytest
import torch

from tests.assertions import assert_polar_factor, eps_of
from tests.distributed.tall import factors, gallery, sent
from tests.distributed.worlds import spawn


def _returned(results):
    for result in results:
        assert result is not None
        assert result[0] == "returned", result[1]
    return [result[1] for result in results]


def _kept(A):
    """The exact partial isometry of A over singular values above 4 eps, and the nuclear norm."""
    P, sigma, Qh = torch.linalg.svd(A.double(), full_matrices=False)
    kept = sigma > 4 * eps_of(A.dtype) * sigma[0]
    return P[:, kept] @ Qh[kept], sigma.sum()


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("world", "layout"), [(2, "rows"), pytest.param(4, "hsdp", marks=pytest.mark.slow)])
def test_factors_are_backward_stable_at_every_condition(world, layout, dtype, tmp_path):
    first, *others = _returned(spawn(world, tmp_path, factors, layout, dtype))
    for key, U in first.items():
        for other in others:
            assert torch.equal(U, other[key]), key
    eps, d = eps_of(dtype), 20
    for name, A in gallery(dtype).items():
        _, nu = _kept(A)
        for transposed in (False, True):
            U, step = (first[name, transposed, scale].double() for scale in ("none", "nuclear"))
            # A partial isometry (U U^T U = U) that is the polar factor of a matrix near A: U H = A, H psd.
            assert (U @ U.mT @ U - U).norm() <= 30 * eps * d, name
            H = U.mT @ A.double()
            size = A.double().norm()
            assert (H - H.mT).norm() <= 30 * eps * d * size, name
            assert (U @ H - A).norm() <= 30 * eps * d * size, name
            assert torch.linalg.eigvalsh((H + H.mT) / 2).min() >= -30 * eps * d * size, name
            assert (step - nu * U).norm() <= 30 * eps * d * nu * max(1.0, U.norm()), name


def test_the_gallery_has_what_breaks_one_pass():
    """A single Cholesky-QR pass fails these tests, which shows that they can fail."""
    A = gallery(torch.float64)["log-1e12"]
    values, V = torch.linalg.eigh(A.mT @ A)
    B = A @ V / values.clamp_min(1e-300).sqrt()
    with pytest.raises(AssertionError):
        assert_polar_factor(A, B @ V.mT)


@pytest.mark.parametrize("shape", [(4096, 64), pytest.param((50304, 768), marks=pytest.mark.slow)])
def test_only_small_gram_matrices_travel(shape, tmp_path):
    d = shape[1]
    for collectives in _returned(spawn(4, tmp_path, sent, shape, torch.float32, timeout=600.0)):
        passes = [one for one in collectives if one.name == "all_reduce" and one.elements >= d]
        assert len(passes) == 2
        assert all(one.elements <= 3 * d**2 for one in passes)
        rest = sum(one.elements for one in collectives) - sum(one.elements for one in passes)
        assert rest <= 64
