"""The step-size rules do what their theorems say."""

import itertools

import pytest
import torch

import polargrad


def quadratic(m=8, n=5, seed=0, count=1):
    """f(W) = 1/2 sum <W - X, H (W - X)>, with its L, mu, and weights at zero."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))
    H = (Q * torch.linspace(1, 20, m, dtype=torch.float64)) @ Q.T
    targets = [torch.randn(m, n, generator=generator, dtype=torch.float64) for _ in range(count)]
    weights = [torch.nn.Parameter(torch.zeros_like(X)) for X in targets]

    def loss():
        return sum(0.5 * ((W - X) * (H @ (W - X))).sum() for W, X in zip(weights, targets, strict=True))

    return weights, loss, 20.0, 1.0


def run(optimizer, loss, steps):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return [optimizer.step(closure).item() for _ in range(steps)]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("scope", ["matrix", "group"])
@pytest.mark.parametrize("method", ["svd", "newton-schulz", "qdwh"])
def test_smoothness_keeps_the_rate_of_the_theorem(method, scope, capturable):
    count = 2 if scope == "group" else 1
    weights, loss, L, mu = quadratic(count=count)
    optimizer = polargrad.PolarGrad(
        weights, lr=1.0, momentum=0.0, method=method, max_steps=5 if method == "newton-schulz" else None,
        step_rule={"name": "smoothness", "smoothness": L}, scope=scope, capturable=capturable,
    )  # fmt: skip
    gaps = run(optimizer, loss, 60)
    # f+ <= f - nu^2 / (2 L ||U||^2) for whatever U, with nu = <G, U> >= ||G||_F ||U||_F c and c^2 >= 1/rank for an
    # exact factor; five quintic steps leave singular values in [0.6, 1.3], so c^2 >= (0.6 / 1.3)^2 / rank.
    exactness = (0.6 / 1.3) ** 2 if method == "newton-schulz" else 1.0
    rate = 1 - exactness * mu / (L * 5 * count)
    for before, after in itertools.pairwise(gaps):
        assert after <= rate * before * (1 + 1e-9) + 1e-20


@pytest.mark.parametrize("scope", ["matrix", "group"])
@pytest.mark.parametrize(("geometry", "r"), [("frobenius", 1), ("rows", 8), ("columns", 5), ("entrywise", 40)])
def test_smoothness_keeps_its_rate_in_every_geometry(geometry, r, scope):
    """f+ <= f - nu^2 / (2 L r) holds for any direction with nu = <G, D> and r = ||D||_F^2, and nu >= ||G||_F here."""
    count = 2 if scope == "group" else 1
    weights, loss, L, mu = quadratic(count=count)
    rule = {"name": "smoothness", "smoothness": L}
    optimizer = polargrad.PolarGrad(weights, lr=1.0, momentum=0.0, geometry=geometry, step_rule=rule, scope=scope)
    gaps = run(optimizer, loss, 60)
    for before, after in itertools.pairwise(gaps):
        assert after <= (1 - mu / (L * r * count)) * before * (1 + 1e-9) + 1e-20


def test_smoothness_is_one_over_L_rank():
    G = torch.zeros(4, 3)
    G[0, 0], G[1, 1] = 3.0, 2.0
    W = torch.nn.Parameter(torch.zeros(4, 3))
    W.grad = G
    rule = {"name": "smoothness", "smoothness": 10.0}
    polargrad.PolarGrad([W], lr=1.0, momentum=0.0, method="svd", step_rule=rule).step()
    expected = torch.zeros(4, 3)
    expected[0, 0] = expected[1, 1] = -5.0 / (10.0 * 2)  # nuclear norm 5, rank 2
    torch.testing.assert_close(W.detach(), expected)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("scope", ["matrix", "group"])
def test_polyak_is_the_gap_over_the_squared_dual_norm(scope, capturable):
    weights, loss, _, _ = quadratic(count=2)
    before = loss().item()
    optimizer = polargrad.PolarGrad(
        weights,
        lr=1.0,
        momentum=0.0,
        method="svd",
        step_rule={"name": "polyak", "minimum": -1.0},
        scope=scope,
        capturable=capturable,
    )
    run(optimizer, loss, 1)
    nu = torch.stack([torch.linalg.svdvals(W.grad).sum() for W in weights])
    slope = nu.sum() ** 2 if scope == "group" else (nu**2).sum()
    for W, own in zip(weights, nu, strict=True):
        length = (before + 1.0) / slope * (nu.sum() if scope == "group" else own)
        P, _, Qh = torch.linalg.svd(W.grad, full_matrices=False)
        torch.testing.assert_close(W.detach(), -length * (P @ Qh))


def test_polyak_finds_the_minimum_faster_than_smoothness():
    ends = {}
    for rule in (
        {"step_rule": {"name": "polyak", "minimum": 0.0}},
        {"step_rule": {"name": "smoothness", "smoothness": 20.0}},
    ):
        weights, loss, _, _ = quadratic()
        ends[rule["step_rule"]["name"]] = run(
            polargrad.PolarGrad(weights, lr=1.0, momentum=0.0, method="svd", **rule), loss, 100
        )
    assert ends["polyak"][-1] < 1e-8 * ends["polyak"][0]
    assert ends["polyak"][-1] < ends["smoothness"][-1]


def test_polyak_takes_a_number_and_refuses_to_go_without():
    W = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = polargrad.PolarGrad([W], lr=1.0, momentum=0.0, step_rule={"name": "polyak", "minimum": 1.0})
    W.grad = torch.eye(2)
    optimizer.step(lambda: 1.0)
    assert torch.equal(W, torch.ones(2, 2))
    optimizer.step(lambda: 5.0)  # gap 4, nuclear norm 2: length 4 / 2^2 * 2 = 2
    torch.testing.assert_close(W.detach(), torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    with pytest.raises(ValueError, match=r"needs the loss: call step\(closure\)"):
        optimizer.step()


@pytest.mark.parametrize("scope", ["matrix", "group"])
def test_a_capped_rate_may_be_wrong_by_six_orders_of_magnitude(scope):
    """min(lr, Polyak): as the fixed rate where that is small, as Polyak where it is large, down at every lr."""

    def ends(lr, rule, steps=40):
        weights, loss, _, _ = quadratic(count=2)
        optimizer = polargrad.PolarGrad(weights, lr=lr, momentum=0.0, method="svd", step_rule=rule, scope=scope)
        return run(optimizer, loss, steps), torch.cat([W.detach() for W in weights])

    capped = {"name": "capped-polyak", "minimum": 0.0}
    assert torch.equal(ends(1e-5, capped)[1], ends(1e-5, "fixed")[1])
    polyak, weights = ends(1.0, {"name": "polyak", "minimum": 0.0})
    assert torch.equal(ends(1e3, capped)[1], weights)
    assert not ends(1.0, "fixed")[0][-1] < 1e3 * polyak[0]  # a fixed rate of 1 diverges
    for lr in (1e-2, 1.0, 1e4):
        gaps = ends(lr, capped)[0]
        assert gaps[-1] < 1e-2 * gaps[0]
    assert torch.equal(ends(1e3, capped)[1], ends(torch.tensor(1e3), capped)[1])
    weights, loss, _, _ = quadratic()
    optimizer = polargrad.PolarGrad(weights, momentum=0.0, step_rule=capped)
    loss().backward()
    with pytest.raises(ValueError, match="step_rule='capped-polyak' needs the loss"):
        optimizer.step()
