"""Equivariance and the laws by which steps scale, on drawn matrices."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polargrad
from tests.assertions import SAFETY, rounding
from tests.matrices import random_orthonormal

ORDERS = ["momentum-first", "polar-first", "heavy-ball"]
SCALES = ["nuclear", "mean-singular", "none", "spectral", "rms", "adaptive-nuclear"]
LR = 0.5

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
seeds = st.integers(0, 2**20)
factors = st.floats(-30, 30).map(lambda e: 2.0**e)


def gradients_of(shape, seed, steps=3):
    """Drawn gradients, well conditioned so that rounding stays near eps * dimension."""
    generator = torch.Generator().manual_seed(seed)
    k = min(shape)
    P = [random_orthonormal(shape[0], k, seed=seed + 2 * t) for t in range(steps)]
    Q = [random_orthonormal(shape[1], k, seed=seed + 2 * t + 1) for t in range(steps)]
    sigma = [1 + torch.rand(k, generator=generator, dtype=torch.float64) for _ in range(steps)]
    return [(p * s) @ q.mT for p, s, q in zip(P, sigma, Q, strict=True)]


def update(gradients, *, group=None, **options):
    """What the weights have moved by after steps with these gradients, with options of the group and others."""
    W = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    method = {"method": "svd"} if options.get("geometry", "spectral") == "spectral" else {}
    optimizer = polargrad.PolarGrad([{"params": [W], **(group or {})}], lr=LR, **{**method, **options})
    for gradient in gradients:
        W.grad = gradient
        optimizer.step()
    return W.detach()


def distance(A, B):
    return float((A - B).norm() / B.norm())


# A sum of orthonormal terms may have a small singular value; 1e3 covers the drawn ones.
CLOSE = 1e3 * rounding(torch.float64, 6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scale", SCALES)
@given(shape=shapes, seed=seeds)
def test_spectral_is_equivariant_on_both_sides(order, scale, shape, seed):
    P, Q = (random_orthonormal(n, n, seed=seed + 100 + i) for i, n in enumerate(shape))
    G = gradients_of(shape, seed)
    options = {"momentum_order": order, "scale": scale, "nesterov": True, "momentum": 0.5}
    plain = update(G, **options)
    assert distance(update([P @ g for g in G], **options), P @ plain) < CLOSE
    assert distance(update([g @ Q for g in G], **options), plain @ Q) < CLOSE
    if scale != "spectral":
        assert distance(update([g.mT for g in G], **options), plain.mT) < CLOSE


def test_sign_descent_is_not_equivariant():
    P, G = random_orthonormal(4, 4, seed=100), gradients_of((4, 3), 0)
    turned, plain = update([P @ g for g in G], geometry="entrywise"), update(G, geometry="entrywise")
    assert distance(turned, P @ plain) > 1e3 * CLOSE


# How a step changes when every gradient is multiplied by c: by c to the power of ...
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("options", "power"),
    [
        ({"scale": "nuclear"}, 1.0),
        ({"scale": "nuclear", "scope": "group"}, 1.0),
        ({"scale": {"name": "nuclear", "alpha": 0.5}}, 0.5),
        ({"scale": "mean-singular"}, 1.0),
        ({"scale": "none"}, 0.0),
        ({"scale": "spectral"}, 0.0),
        ({"scale": "rms"}, 0.0),
        ({"scale": "adaptive-nuclear"}, 0.0),
        ({"scale": {"name": "adaptive-nuclear", "alpha": 0.5}, "scope": "group"}, 0.0),
        ({"momentum": 0.0, "step_rule": {"name": "smoothness", "smoothness": 3.0}}, 1.0),
    ],
    ids=str,
)
@given(shape=shapes, seed=seeds, c=factors)
def test_scale_of_the_gradient(order, options, power, shape, seed, c):
    G = gradients_of(shape, seed)
    options = {"momentum_order": order, **options}
    if power != 1.0 or "scope" in options:
        options["group"] = {"norm_floor": 0.0}  # at which the law would end
    assert distance(update([c * g for g in G], **options), c**power * update(G, **options)) < CLOSE


@given(shape=shapes, seed=seeds)
def test_lengths_of_the_first_step(shape, seed):
    m, n = shape
    G = gradients_of(shape, seed, steps=1)
    sigma = torch.linalg.svdvals(G[0])
    spectral_norm = {
        "nuclear": float(sigma.sum()),
        "mean-singular": float(sigma.mean()),
        "none": 1.0,
        "spectral": math.sqrt(max(1.0, m / n)),
        "rms": 0.2 * math.sqrt(max(m, n)),
        "adaptive-nuclear": 0.2 * math.sqrt(max(m, n)),
    }
    for scale, expected in spectral_norm.items():
        moved = update(G, scale=scale, momentum=0.0)
        assert math.isclose(float(torch.linalg.svdvals(moved)[0]), LR * expected, rel_tol=CLOSE)
    for geometry in ("spectral", "rows", "columns", "entrywise", "frobenius"):
        moved = update(G, scale="rms", momentum=0.0, geometry=geometry)
        rms = float(moved.norm()) / math.sqrt(m * n)
        assert math.isclose(rms, 0.2 * LR, rel_tol=SAFETY * CLOSE), geometry


@given(shape=shapes, seed=seeds, c=st.floats(0.01, 0.99))
def test_adaptive_steps_vanish_with_the_gradient(shape, seed, c):
    (G,) = gradients_of(shape, seed, steps=1)
    before = update([G] * 5, scale={"name": "adaptive-nuclear", "beta": 0.9}, momentum=0.0)
    after = update([G] * 5 + [c * G], scale={"name": "adaptive-nuclear", "beta": 0.9}, momentum=0.0)
    # v after 5 steps of size 1 and one of size c, with bias correction.
    beta = 0.9
    mean_square = (beta * (1 - beta**5) + (1 - beta) * c * c) / (1 - beta**6)
    expected = 0.2 * math.sqrt(max(shape)) * c / math.sqrt(mean_square)
    length = float(torch.linalg.svdvals(before - after)[0])
    assert math.isclose(length, LR * expected, rel_tol=10 * CLOSE)


@given(shape=shapes, seed=seeds)
def test_a_group_of_copies_shares_their_sum(shape, seed):
    G = gradients_of(shape, seed)
    weights = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for _ in range(3)]
    optimizer = polargrad.PolarGrad(weights, lr=LR, scope="group", method="svd")
    for gradient in G:
        for W in weights:
            W.grad = gradient.clone()
        optimizer.step()
    for W in weights:
        assert distance(W.detach(), 3 * update(G)) < CLOSE


@given(shape=shapes, seed=seeds)
def test_maximize_mirrors(shape, seed):
    G = gradients_of(shape, seed)
    assert torch.equal(update(G, maximize=True), -update(G))
