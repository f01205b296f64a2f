"""Every variant follows reference code in float64 over many steps."""

import itertools

import numpy as np
import pytest
import torch

import polargrad
from tests.optim.reference import Reference, columns, frobenius, problem, rows, sign

STEPS = 20
ORDERS = ["momentum-first", "polar-first", "heavy-ball"]
SCALES = ["nuclear", "mean-singular", "none", "spectral", "rms", "adaptive-nuclear"]


def distance(ours, theirs, *, capturable=False):
    """The largest difference between PolarGrad(**ours) and Reference(**theirs) over the trajectory, relative."""
    weights, gradients = problem()
    parameters = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
    method = {"method": "svd"} if "geometry" not in ours else {}
    optimizer = polargrad.PolarGrad(parameters, **{"lr": 0.01, **method, "capturable": capturable, **ours})
    reference = Reference(weights, **{"lr": 0.01, **theirs})
    worst = 0.0
    for t in range(STEPS):
        for p, g in zip(parameters, gradients([p.detach().numpy() for p in parameters], t), strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()
        reference.step(gradients(reference.W, t))
        for p, w in zip(parameters, reference.W, strict=True):
            assert np.isfinite(w).all()
            worst = max(worst, np.abs(p.detach().numpy() - w).max() / np.abs(w).max())
            assert not np.isnan(worst)
    assert optimizer.skipped == 0
    return worst


# Rounding of one step is a few eps * dimension; the dynamics of 20 steps multiplies it by well under 1e4.
CLOSE = 1e4 * 6 * np.finfo(np.float64).eps


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("order", "scale"), list(itertools.product(ORDERS, SCALES)))
def test_order_and_scale(order, scale, nesterov, capturable):
    ours = {"momentum_order": order, "scale": scale, "nesterov": nesterov, "momentum": 0.9}
    theirs = {"order": order, "scale": scale, "nesterov": nesterov, "beta": 0.9}
    assert distance(ours, theirs, capturable=capturable) < CLOSE


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("scale", ["nuclear", "mean-singular", "adaptive-nuclear"])
@pytest.mark.parametrize("order", ORDERS)
def test_group_scope(order, scale, capturable):
    ours = {"momentum_order": order, "scale": scale, "scope": "group", "lr": 1e-3}
    assert distance(ours, {"order": order, "scale": scale, "scope": "group", "lr": 1e-3}, capturable=capturable) < CLOSE


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_weight_decay_and_maximize(order, maximize, cautious, capturable):
    mode = "cautious" if cautious else "plain"
    ours = {"momentum_order": order, "scale": "rms", "weight_decay": 0.5, "weight_decay_mode": mode}
    theirs = {"order": order, "scale": "rms", "decay": 0.5, "cautious": cautious, "maximize": maximize}
    assert distance({**ours, "maximize": maximize}, theirs, capturable=capturable) < CLOSE


@pytest.mark.parametrize("scope", ["matrix", "group"])
@pytest.mark.parametrize("scale", ["nuclear", "adaptive-nuclear"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_alpha(alpha, scale, scope):
    ours = {"scale": {"name": scale, "alpha": alpha}, "scope": scope}
    assert distance(ours, {"alpha": alpha, "scale": scale, "scope": scope}) < CLOSE


@pytest.mark.parametrize("base", ["none", "spectral"])
def test_base_and_memory_of_the_adaptive_scale(base):
    ours = {"scale": {"name": "adaptive-nuclear", "base": base, "beta": 0.7}}
    assert distance(ours, {"scale": "adaptive-nuclear", "base": base, "scale_beta": 0.7}) < CLOSE


@pytest.mark.parametrize(
    ("geometry", "oracle"), [("entrywise", sign), ("frobenius", frobenius), ("rows", rows), ("columns", columns)]
)
@pytest.mark.parametrize("order", ORDERS)
def test_geometry(geometry, oracle, order):
    ours = {"geometry": geometry, "momentum_order": order, "lr": 1e-3}
    assert distance(ours, {"oracle": oracle, "order": order, "lr": 1e-3}) < CLOSE


@pytest.mark.parametrize("workspace", [1, 6 * 4 * 8, 2 * 6 * 4 * 8, 2**28])
def test_workspace_changes_no_number(workspace):
    for options in ({}, {"scope": "group", "lr": 1e-3}, {"scale": "adaptive-nuclear"}):
        assert distance({**options, "workspace": workspace}, options) < CLOSE


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": 0.949},
        {"order": "polar-first"},
        {"order": "heavy-ball"},
        {"nesterov": True},
        {"scale": "mean-singular"},
        {"scope": "group"},
        {"alpha": 0.99},
        {"decay": 1e-4},
        {"maximize": True},
        {"oracle": sign},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_comparison_tells_variants_apart(wrong):
    assert distance({}, wrong) > 1e3 * CLOSE


def test_a_batch_is_its_matrices_and_a_convolution_its_flattening():
    generator = torch.Generator().manual_seed(0)
    for scale, scope in itertools.product(["nuclear", "adaptive-nuclear", "rms"], ["matrix", "group"]):
        if (scale, scope) == ("rms", "group"):
            continue
        start = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
        batch = torch.nn.Parameter(start.clone())
        kernel = torch.nn.Parameter(start[0].clone().reshape(6, 2, 2, 2))
        singles = [torch.nn.Parameter(matrix.clone()) for matrix in [*start, start[0]]]
        options = {"lr": 0.1, "scale": scale, "scope": scope, "weight_decay": 0.1, "method": "svd"}
        a, b = polargrad.PolarGrad([batch, kernel], **options), polargrad.PolarGrad(singles, **options)
        for _ in range(5):
            gradient = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
            batch.grad, kernel.grad = gradient, gradient[0].reshape(6, 2, 2, 2)
            for p, g in zip(singles, [*gradient, gradient[0]], strict=True):
                p.grad = g.clone()
            a.step()
            b.step()
        together = torch.cat([batch, kernel.reshape(1, 6, 8)])
        torch.testing.assert_close(together, torch.stack(singles), rtol=CLOSE, atol=CLOSE)
