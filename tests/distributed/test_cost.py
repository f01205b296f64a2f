"""The cost model against what is really sent, and against what is known beforehand."""

import dataclasses

import pytest
import torch
from torch import nn

import polargrad
from polargrad.distributed.cost import Machine, gram_is_cheaper, gram_traffic, operations
from polargrad.distributed.layout import Layout
from polargrad.distributed.strategy import Strategy, choose_strategy
from polargrad.geometry import Rows, Spectral
from polargrad.lab.estimate import optimizer_step
from polargrad.optim.matrix_view import matrix_view
from tests.distributed.layouts import Place, arguments_of
from tests.distributed.traffic import counted
from tests.distributed.worlds import spawn

MESHES = {
    "ddp": ((4,), (None,)),
    "rows": ((4,), (0,)),
    "columns": ((4,), (1,)),
    "hsdp": ((2, 2), (None, 0)),
    "rows-by-columns": ((2, 2), (0, 1)),
}
SHAPES = {
    "square": [(96, 96)] * 5,
    "tall": [(2051, 48)],
    "wide": [(60, 144), (60, 144)],
    "experts": [(8, 40, 24)],
    "few rows": [(3, 64)],
}


def placed(tensor, layout, world):
    """A whole tensor on a layout."""
    return Place(tensor.shape, layout, world).put(tensor)


def layout_of(shape, name):
    """How a shape lives on four ranks; dimensions that it does not have are not cut."""
    mesh, dims = MESHES[name]
    return Layout(shape, mesh, tuple(None if d is not None and d >= len(shape) else d for d in dims))


def steps(layout, world, options):
    """A model of the shapes above, stepped once and then once more, counted: bytes by rank, and the plan."""
    parameters, layouts, groups = [], {}, []
    for name, shapes in SHAPES.items():
        own = [nn.Parameter(placed(torch.randn(shape), layout, world)) for shape in shapes]
        groups.append({"params": [(f"{name}{i}", p) for i, p in enumerate(own)], **options})
        parameters += own
    vector = nn.Parameter(placed(torch.ones(10), layout, world))
    groups.append({"params": [("vector", vector)], "rule": "adamw"})
    optimizer = polargrad.PolarGrad(groups, **arguments_of(layout))
    for p in (*parameters, vector):
        layouts[p] = layout_of(tuple(p.shape), layout)
        p.grad = placed(torch.randn(p.shape), layout, world)
    optimizer.step()
    with counted() as traffic:
        optimizer.step()
    made = optimizer_step(optimizer.param_groups, layouts)
    return traffic.bytes(), made.sent, {cost.name: cost.strategy.value for cost in made.costs if cost.strategy}


def compare(rank, world, names):
    """For each layout and options: what was sent from here, and what the model says."""
    found = {}
    others = {
        "rows": {"geometry": "rows"},
        "frobenius": {"geometry": "frobenius"},
        "smoothness": {"method": "svd", "momentum": 0.0, "step_rule": {"name": "smoothness", "smoothness": 10.0}},
    }
    for name in names:
        muon = {"method": "newton-schulz", "max_steps": 5}
        even = {"normalized rows": {**muon, "normalize_rows": 0.9}}
        cases = {"polar": muon, **(others if name in ("ddp", "hsdp") else even)}
        for label, options in cases.items():
            torch.manual_seed(0)
            sent, planned, routes = steps(name, world, options)
            found[name, label] = (sent, planned[rank], routes)
    return found


def test_the_model_is_within_a_twentieth_of_the_bytes_really_sent(tmp_path):
    results = spawn(4, tmp_path, compare, list(MESHES))
    routes = set()
    for result in results:
        assert result is not None
        assert result[0] == "returned", result[1]
        for case, (sent, planned, chosen) in result[1].items():
            assert sent == pytest.approx(planned, rel=0.05), case
            assert sent > 0
            routes |= set(chosen.values())
    assert routes == {"owner", "gram", "reduce", "replicated"}


def test_the_gram_strategy_sends_at_most_three_d_squared_a_pass():
    layout = Layout((50304, 768), (4,), (0,))
    traffic = gram_traffic(layout, torch.float32)
    passes = traffic.collectives - 1
    assert max(traffic.sent) / 8 <= 3 * 768**2 * passes


def test_operations_of_muon():
    muon = Spectral("newton-schulz", max_steps=5)
    assert operations(muon, 3072, 768, torch.float32).half == 5 * (4 * 3072 * 768**2 + 2 * 768**3)
    assert operations(muon, 768, 3072, torch.float32) == operations(muon, 3072, 768, torch.float32)
    assert operations(Rows(), 10, 10, torch.float32) == (0.0, Rows().operations(10, 10))
    exact = operations(Spectral("qdwh", max_steps=5), 3072, 768, torch.float32)
    assert exact.half == 0.0
    assert exact.single > 0.0


def test_a_thousand_ranks_on_paper():
    parameters = [nn.Parameter(torch.empty(768, 768, device="meta")) for _ in range(8)]
    parameters.append(nn.Parameter(torch.empty(50304, 768, device="meta")))
    optimizer = polargrad.PolarGrad(parameters, method="newton-schulz", max_steps=5)
    made = optimizer_step(optimizer.param_groups, {p: Layout(tuple(p.shape), (16, 64), (None, 0)) for p in parameters})
    assert made.world == len(made.sent) == 1024
    assert [cost.strategy for cost in made.costs] == [Strategy.OWNER] * 8 + [Strategy.GRAM]
    assert sum(made.sent) == sum(made.received)
    assert made.seconds > 0
    owners = [
        rank
        for rank, work in enumerate(zip(*(cost.operations for cost in made.costs[:8]), strict=True))
        if any(one.half for one in work)
    ]
    assert len(owners) == 8
    slower = optimizer_step(
        optimizer.param_groups,
        {p: Layout(tuple(p.shape), (16, 64), (None, 0)) for p in parameters},
        Machine(bandwidth=4e9),
    )
    assert slower.seconds > made.seconds


def test_alone_nothing_travels():
    W = nn.Parameter(torch.empty(64, 64, device="meta"))
    made = optimizer_step(polargrad.PolarGrad([W]).param_groups, {W: Layout((64, 64), (1,), (None,))})
    assert made.costs[0].strategy is Strategy.REPLICATED
    assert made.sent == (0.0,)
    assert made.collectives == 0


def test_running_figures_of_rows_live_with_the_rows():
    W = nn.Parameter(torch.empty(64, 16, device="meta"))
    held = {}
    for dims in ((0,), (1,), (None,)):
        layouts = {W: Layout((64, 16), (4,), dims)}
        plain, even = (
            optimizer_step(polargrad.PolarGrad([W], normalize_rows=b).param_groups, layouts) for b in (None, 0.9)
        )
        assert sum(even.sent) - sum(plain.sent) == (4 * 2 * (3 / 4) * 8 * 64 if dims == (1,) else 0)
        assert even.collectives - plain.collectives == (dims == (1,))
        held[dims] = even.state - plain.state
    assert held == {(0,): 4 * 16, (1,): 4 * 64, (None,): 4 * 64}


def test_impossible_machines_and_mixed_meshes_are_refused():
    for entry in dataclasses.fields(Machine):
        with pytest.raises(ValueError, match=entry.name):
            Machine(**{entry.name: 0.0})
    pair = [nn.Parameter(torch.empty(8, 8)) for _ in range(2)]
    layouts = {pair[0]: Layout((8, 8), (2,), (0,)), pair[1]: Layout((8, 8), (4,), (0,))}
    with pytest.raises(ValueError, match=r"meshes of \[2, 4\] ranks"):
        optimizer_step(polargrad.PolarGrad(pair).param_groups, layouts)


def test_the_model_sends_embeddings_through_gram_matrices_and_hidden_ones_to_owners():
    exact, muon = Spectral("qdwh", max_steps=5), Spectral("newton-schulz", max_steps=5)
    for geometry in (exact, muon):
        for shape, alike, cheaper in (((50304, 768), 1, True), ((3072, 768), 1, False), ((3072, 768), 12, False)):
            layout, view = Layout(shape, (4,), (0,)), matrix_view(shape)
            assert gram_is_cheaper(view, layout, geometry, torch.float32, alike) is cheaper
            assert choose_strategy(view, layout, geometry, alike=alike) is (
                Strategy.GRAM if cheaper else Strategy.OWNER
            )
    # Where sending costs nothing and there are owners enough, even these would be faster in one place; they stay apart.
    free = Machine(bandwidth=1e18, latency=1e-12)
    layout, view = Layout((8192, 1024), (64,), (0,)), matrix_view((8192, 1024))
    assert not gram_is_cheaper(view, layout, muon, torch.float32, 64, free)
    assert choose_strategy(view, layout, muon, alike=64) is Strategy.GRAM
