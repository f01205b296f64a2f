"""Every method on CUDA tensors without a GPU: what it would launch, what it would wait for, and on which device."""

import pytest
import torch

from polargrad.linalg import QDWH, PolarExpress, available_methods, polar, polar_factor
from tests.fake_cuda import Operations, fake_cuda

SHAPES = [(64, 32), (32, 64), (4, 48, 48), (2, 3, 5, 7), (300, 1), (1, 9)]


def run(method, shape, dtype, **options):
    with fake_cuda(), Operations() as seen:
        A = torch.empty(shape, dtype=dtype, device="cuda")
        seen.counts.clear()
        U = polar_factor(A, method, **options)
        assert (U.device.type, U.dtype, tuple(U.shape)) == ("cuda", dtype, shape)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", available_methods())
def test_no_method_but_the_svd_reads_from_the_device_or_mixes_devices(method, shape, dtype):
    assert bool(run(method, shape, dtype).host_reads) == (method == "svd")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_limited_methods_and_asked_accuracies(shape):
    assert not run("qdwh", shape, torch.float32, max_steps=2).host_reads
    assert not run("auto", shape, torch.float32, accuracy=0.3).host_reads
    assert not run("auto", shape, torch.float32, accuracy=1e-3).host_reads
    assert not run(QDWH(lower_bound=1e-4), shape, torch.float32).host_reads
    assert not run(PolarExpress(dtype="bfloat16"), shape, torch.float32).host_reads


def test_the_certificate_is_left_on_the_device():
    with fake_cuda(), Operations() as seen:
        result = polar(torch.empty(3, 20, 10, device="cuda"))
        assert result.status.device.type == "cuda"
    assert not seen.host_reads


def test_the_default_factors_nothing_and_is_one_sequence_for_a_whole_batch():
    one, many = (run("auto", (k, 256, 128), torch.float32) for k in (1, 100))
    assert one.counts == many.counts
    assert one.total <= 120, one.counts
    assert not {name for name in one.counts if "linalg" in name and "norm" not in name}


@pytest.mark.parametrize("shape", [(1024, 1024), (768, 3072), (12, 3072, 768)], ids=str)
def test_muons_factor_is_its_products_and_little_else(shape):
    """Two norms, three operations for a scale, two passes that scale, a clamp; memory and float32 for the result."""
    seen = run("newton-schulz", shape, torch.float32)
    products = sum(count for name, count in seen.counts.items() if name in ("mm", "bmm", "addmm", "baddbmm"))
    assert products == 15
    assert seen.total - products <= 10, seen.counts


def test_a_read_and_a_mixture_of_devices_are_noticed():
    with fake_cuda(), Operations() as seen:
        A = torch.empty(3, device="cuda")
        _ = A.cpu()
    assert seen.host_reads
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        _ = torch.empty(3, device="cuda") + torch.empty(3)
