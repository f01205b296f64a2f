"""Every algorithm holds no more memory than it declares."""

import pytest
import torch

from polargrad.lab.studies.peak_memory import peak_bytes
from polargrad.linalg import available_methods, polar_factor, resolve_method
from tests.matrices import random_orthonormal

SHAPES = [(16, 64, 64), (16, 96, 64), (16, 64, 96), (1, 64, 64), (8, 300, 8), (4, 20, 20), (1, 300, 300)]
DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def matrices(shape, kind):
    """A batch of well-conditioned, ill-conditioned, or half rank-deficient and half Gaussian matrices."""
    *_, m, n = shape
    k = min(m, n)
    gaussian = torch.randn(shape, dtype=torch.float64)
    if kind == "gaussian":
        return gaussian
    sigma = torch.logspace(0, -7, k) if kind == "ill-conditioned" else (torch.arange(k) < k // 2).double()
    A = (random_orthonormal(m, k) * sigma) @ random_orthonormal(n, k, seed=1).mT + torch.zeros_like(gaussian)
    if kind == "mixed":
        A[::2] = gaussian[::2]
    return A


def measured_peak(A, method):
    """The peak of `polar_factor` in sizes of A in the dtype in which the method works."""
    itemsize = resolve_method(method).on(A.device).working_dtype(A.dtype).itemsize
    return peak_bytes(lambda: polar_factor(A, method)) / (A.numel() * itemsize)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", available_methods())
def test_a_method_stays_within_its_peak_memory(method, dtype):
    for kind in ("gaussian", "ill-conditioned", "mixed"):
        for shape in SHAPES:
            A = matrices(shape, kind).to(dtype)
            assert measured_peak(A, method) <= resolve_method(method).peak_memory, (shape, kind)


@pytest.mark.parametrize("method", available_methods())
def test_the_declared_peak_is_no_idle_bound(method):
    worst = max(measured_peak(matrices(shape, "mixed").to(d), method) for shape in SHAPES for d in DTYPES)
    assert worst > resolve_method(method).peak_memory / 2.5


def test_what_is_freed_does_not_count():
    A = torch.ones(1000)
    assert peak_bytes(lambda: [(A + i).sum().item() for i in range(9)]) < 2 * 4004
    assert peak_bytes(lambda: [A + i for i in range(9)]) == 9 * 4000
