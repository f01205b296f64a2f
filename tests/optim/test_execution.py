"""Any executor gives the same step; stacks stay within their bound."""

import pytest
import torch

import polargrad
from polargrad.optim.execution import Executor, apply_lmo
from polargrad.optim.update import GeometryLMO

SHAPES = [(4, 3), (3, 4), (4, 3), (5, 4, 3), (4, 3, 1, 1)]


class Overlapped(Executor):
    """Draws every request before it computes the first, last request first: as far ahead as an executor may go."""

    def __init__(self):
        self.agreed = 0

    def max_bucket(self, count):
        return 1

    def compute_directions(self, requests, lmo, workspace):
        drawn = list(requests)
        found = [next(super(Overlapped, self).compute_directions([r], lmo, workspace)) for r in drawn[::-1]]
        yield from found[::-1]

    def finite_mask(self, *request, masked):
        self.agreed += 1
        return super().finite_mask(*request, masked=True)


def _run(executor=None, **options):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]
    optimizer = polargrad.PolarGrad(parameters, method="svd", **options)
    if executor is not None:
        optimizer._executor = executor
    for _ in range(4):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return parameters


@pytest.mark.parametrize("order", ["momentum-first", "polar-first", "heavy-ball"])
@pytest.mark.parametrize(
    "options", [{}, {"scale": "adaptive-nuclear", "scope": "group"}, {"workspace": 1}, {"normalize_rows": 0.9}], ids=str
)
def test_the_protocol_leaves_room_for_overlap(options, order):
    executor = Overlapped()
    ours = _run(executor, momentum_order=order, **options)
    assert executor.agreed
    for p, q in zip(ours, _run(momentum_order=order, **options), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("workspace", [1, 1248, 2600, 1248 * 5, 2**28])
def test_stacks_stay_within_the_workspace(workspace):
    seen = []
    inner = GeometryLMO(polargrad.geometry.Spectral("svd"), squared_lengths=True)

    class Watched(GeometryLMO):
        def __call__(self, M, scale=None):
            seen.append((len(M), M[0].numel() * self.held(M.dtype, M.device)))
            return super().__call__(M, scale)

    batches = [torch.randn(k, 4, 3, dtype=torch.float64) for k in (1, 3, 2)] + [torch.randn(2, 3, 4)]
    results = apply_lmo(Watched(inner.geometry, squared_lengths=True), batches, workspace)
    assert all(count == 1 or count * size <= workspace for count, size in seen)
    assert sum(count for count, _ in seen) == 8
    for batch, result in zip(batches, results, strict=True):
        expected = inner(batch)
        for ours, theirs in zip(result, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_same_shapes_go_through_the_engine_as_one_batch(monkeypatch):
    seen = []
    factor = polargrad.polar_factor
    monkeypatch.setattr(
        polargrad.geometry.spectral,
        "unwidened_factor",
        lambda G, **more: seen.append(tuple(G.shape)) or factor(G, **more),
    )
    parameters = [torch.nn.Parameter(torch.randn(s)) for s in [(4, 3)] * 6 + [(2, 5)] * 3]
    optimizer = polargrad.PolarGrad(parameters)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert seen == [(6, 4, 3), (3, 2, 5)]
