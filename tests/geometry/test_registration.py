"""A geometry made elsewhere is an option of the optimizer, on one process and on many, priced as it declares."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import polargrad
from polargrad.distributed.cost import operations
from polargrad.distributed.layout import Layout
from polargrad.distributed.strategy import Strategy, choose_strategy
from polargrad.geometry import GEOMETRIES, Frobenius
from polargrad.lab.estimate import optimizer_step
from polargrad.lab.studies.peak_memory import peak_bytes
from polargrad.optim.matrix_view import matrix_view
from tests.geometry.outside import RankOne


def step(**options):
    W = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    optimizer = polargrad.PolarGrad([W], lr=1.0, momentum=0.0, **options)
    W.grad = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))[:, :2].contiguous()
    optimizer.step()
    return optimizer, W.detach()


@pytest.mark.parametrize("geometry", ["rank-one", {"name": "rank-one"}, RankOne()], ids=str)
def test_by_name_and_as_an_object(geometry):
    _, W = step(geometry=geometry)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    expected[0, 0] = -3.0  # its dual norm, the spectral norm of the gradient, times u v^T
    assert torch.allclose(W, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("geometry", [{"name": "rank-one", "rank": 2}, RankOne(2)], ids=str)
def test_its_options(geometry):
    optimizer, W = step(geometry=geometry, scale="mean-singular")
    assert optimizer.state_dict()["param_groups"][0]["geometry"] == {"name": "rank-one", "rank": 2}
    assert torch.allclose(W.diagonal(), torch.full((2,), -2.5, dtype=torch.float64), rtol=0, atol=1e-14)
    with pytest.raises(
        ValueError, match=r"geometry='rank-one' does not use 'order'; leave it out \(its options are rank"
    ):
        step(geometry={"name": "rank-one", "order": 2})
    with pytest.raises(ValueError, match="method='svd' is used by geometry='spectral', not by geometry='rank-one'"):
        step(geometry=geometry, method="svd")


def test_one_that_is_not_registered():
    @dataclass(frozen=True)
    class Unknown(Frobenius):
        name: ClassVar[str] = "unknown"

    with pytest.raises(ValueError, match=r"geometry must be one of .*'spectral'.*, got 'unknown'"):
        step(geometry="unknown")
    step(geometry=Unknown())  # the object brings its class along
    assert GEOMETRIES.pop("unknown") is Unknown

    class Impostor(Frobenius):
        name: ClassVar[str] = "spectral"

    with pytest.raises(ValueError, match=r"'spectral' is taken by Spectral; choose another name"):
        step(geometry=Impostor())


def test_it_is_priced_and_placed_as_it_declares():
    view, layout = matrix_view((640, 8)), Layout((640, 8), (4,), (0,))
    assert operations(RankOne(), 640, 8, torch.float32).single == 1000.0 * 640 * 8
    assert choose_strategy(view, layout, RankOne()) is Strategy.GRAM
    W = torch.nn.Parameter(torch.empty(64, 64, device="meta"))
    planned = optimizer_step(
        polargrad.PolarGrad([W], geometry="rank-one").param_groups, {W: Layout((64, 64), (4,), (0,))}
    )
    assert planned.costs[0].strategy is Strategy.OWNER
    assert planned.operations.single == 1000.0 * 64 * 64


@pytest.mark.parametrize("geometry", sorted(GEOMETRIES))
def test_every_geometry_declares_its_cost(geometry):
    made = GEOMETRIES[geometry]()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert made.operations(8, 8, dtype) > 0.0
        assert made.operations(16, 16, dtype) > made.operations(8, 8, dtype)
        assert made.working_dtype(dtype).is_floating_point
        assert made.bytes_per_entry(dtype, torch.device("cpu")) >= 2.0 * dtype.itemsize


@pytest.mark.parametrize("geometry", ["right-polar", "left-polar"])
def test_a_geometry_that_takes_products_on_a_device_declares_what_they_hold(geometry, monkeypatch):
    made, shape = GEOMETRIES[geometry](), (16, 24, 24)
    G = torch.randn(shape)
    here, there = (made.bytes_per_entry(G.dtype, torch.device(kind)) for kind in ("cpu", "cuda"))
    assert peak_bytes(lambda: made.lmo(G)) <= here * G.numel()
    monkeypatch.setattr("polargrad.geometry.onesided.on_host", lambda _: False)
    monkeypatch.setattr("polargrad.linalg.decomposition.on_host", lambda _: False)
    assert here * G.numel() < peak_bytes(lambda: made.lmo(G)) <= there * G.numel()


@pytest.mark.parametrize("geometry", sorted(GEOMETRIES))
def test_every_reduction_is_true(geometry):
    """What a geometry declares of its oracle holds on a drawn matrix."""
    made = GEOMETRIES[geometry]()
    G = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    G = G.mT if geometry == "left-polar" else G
    D = made.lmo(G)
    if made.reduction == "gram":
        B, _ = torch.linalg.qr(torch.randn(9, 6, dtype=torch.float64))
        longer, expected = (G @ B.mT, D @ B.mT) if geometry == "left-polar" else (B @ G, B @ D)
        assert torch.allclose(made.lmo(longer), expected, rtol=0, atol=1e-12)
        return
    assert made.reduction is not None
    lengths = {
        "entries": G.abs(),
        "rows": G.norm(dim=1, keepdim=True),
        "columns": G.norm(dim=0, keepdim=True),
        "matrix": G.norm(),
    }[made.reduction]
    assert torch.allclose(D, G / lengths, rtol=0, atol=1e-14)
