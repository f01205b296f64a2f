import math

import pytest
import torch

from polargrad.diagnostics import matrix_metrics
from polargrad.diagnostics.metrics import goes_by_gram, singular_values_by_gram


def matrix(singular_values, m=7, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(m, n, dtype=torch.float64, generator=generator))
    V, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return (U * torch.tensor(singular_values, dtype=torch.float64) @ V.mT).to(dtype)


def test_metrics_of_known_singular_values():
    found = matrix_metrics(matrix([4.0, 2.0, 2.0, 1.0, 0.5]))
    assert found == pytest.approx(
        {
            "condition_number": 8.0,
            "nuclear_norm": 9.5,
            "stable_rank": 25.25 / 16,
            "alignment": 9.5 / math.sqrt(25.25 * 5),
        },
        rel=1e-12,
    )


def test_alignment_is_the_cosine_with_the_polar_factor():
    G = matrix([3.0, 2.0, 1.0, 0.5, 0.1])
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(G.flatten(), (U @ Vh).flatten(), dim=0)
    assert matrix_metrics(G)["alignment"] == pytest.approx(cosine.item(), rel=1e-12)


def test_alignment_counts_only_the_numerical_rank():
    assert matrix_metrics(matrix([2.0, 2.0, 0.0, 0.0, 0.0], dtype=torch.float32))["alignment"] == pytest.approx(
        1.0, rel=1e-6
    )


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scale_changes_the_nuclear_norm_alone(scale):
    base = matrix_metrics(matrix([4.0, 2.0, 2.0, 1.0, 0.5], dtype=torch.float32))
    found = matrix_metrics(scale * matrix([4.0, 2.0, 2.0, 1.0, 0.5], dtype=torch.float32))
    assert found.pop("nuclear_norm") == pytest.approx(scale * base.pop("nuclear_norm"), rel=1e-5)
    assert found == pytest.approx(base, rel=1e-5)


def test_orientation_and_complex_entries_do_not_matter():
    G = matrix([4.0, 2.0, 2.0, 1.0, 0.5])
    assert matrix_metrics(G.mT) == pytest.approx(matrix_metrics(G), rel=1e-12)
    assert matrix_metrics(1j * G) == pytest.approx(matrix_metrics(G), rel=1e-12)


def test_matrices_without_these_metrics():
    assert matrix_metrics(torch.ones(3, 1).repeat(1, 2) * torch.tensor([1.0, 0.0]))["condition_number"] == math.inf
    zero = matrix_metrics(torch.zeros(3, 2))
    assert zero.pop("nuclear_norm") == 0.0
    assert all(math.isnan(value) for value in zero.values())
    broken = torch.eye(3)
    broken[1, 1] = math.inf
    assert all(math.isnan(value) for value in matrix_metrics(broken).values())
    for shape in [(3,), (2, 3, 3), (0, 3)]:
        with pytest.raises(ValueError, match="takes a matrix"):
            matrix_metrics(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(200, 12), (12, 200), (12, 12), (1, 5), (5, 1), (50000, 4)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_values_by_the_gram_matrix_are_those_of_the_svd(shape, scale, dtype):
    G = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype) * torch.logspace(0, -5, shape[1])
    G = (scale * G).to(torch.complex128 if dtype.is_complex else torch.float64)
    wanted = torch.linalg.svdvals(G)
    found = singular_values_by_gram(G)
    resolution = math.sqrt(max(shape) * torch.finfo(torch.float64).eps) * wanted[0]
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= resolution
    large = wanted > 30 * resolution
    assert (found / wanted - 1)[large].abs().max() <= 1e-3
    assert (found[1:] <= found[:-1]).all()


def test_what_the_gram_matrix_does_not_resolve_is_zero():
    assert singular_values_by_gram(matrix([1.0, 1e-4, 1e-6, 1e-9, 0.0]))[3:].tolist() == [0.0, 0.0]
    assert singular_values_by_gram(matrix([1.0, 1e-4, 1e-6, 1e-7, 1e-9]))[3] == pytest.approx(1e-7, rel=0.1)
    for shape in ((200_000, 2), (50_257, 3), (4, 50_000)):  # rank 1, and sums over many rows
        row = torch.randn(max(shape), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        G = torch.outer(row, torch.ones(min(shape), dtype=torch.float64))
        assert singular_values_by_gram(G if shape[0] > shape[1] else G.mT)[1:].tolist() == [0.0] * (min(shape) - 1)


@pytest.mark.parametrize(
    ("device", "dtype", "by_gram"),
    [
        ("cpu", torch.float32, False),
        ("meta", torch.float32, True),
        ("meta", torch.bfloat16, True),
        ("meta", torch.float64, False),
    ],
)
def test_devices_other_than_the_cpu_go_by_the_gram_matrix(device, dtype, by_gram):
    assert goes_by_gram(torch.empty(4, 3, dtype=dtype, device=device)) == by_gram
