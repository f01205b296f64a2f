"""The whitened step: against NumPy in float64, at its limits, and where a matrix cannot be whitened."""

import copy

import numpy as np
import pytest
import torch

import polargrad
from polargrad.distributed.cost import owner_traffic
from polargrad.distributed.layout import Layout
from polargrad.optim.matrix_view import matrix_view
from polargrad.optim.whitening import OneSided, TwoSided
from tests.optim.reference import frobenius, inverse_root
from tests.optim.test_trajectories import CLOSE, distance

SIDES = {"two-sided": lambda m, n: ("left", "right"), "one-sided": lambda m, n: ("left",) if m < n else ("right",)}
# The root amplifies rounding by up to damping^-p, here by 10 for each side.
NEAR = 1e2 * CLOSE


def whiten(name="two-sided", power=0.3, beta=0.9, every=3, damping=1e-3):
    ours = {"name": name, "power": power, "beta": beta, "every": every, "damping": damping}
    return {"whitening": ours}, {"whiten": (SIDES[name], power, beta, every, damping)}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("two-sided", {}),
        ("two-sided", {"nesterov": True, "scale": "rms"}),
        ("two-sided", {"momentum_order": "heavy-ball", "scale": "spectral"}),
        ("one-sided", {"momentum_order": "polar-first", "scale": "rms", "nesterov": True}),
        ("one-sided", {"scale": "adaptive-nuclear", "normalize_rows": 0.8}),
        ("one-sided", {"maximize": True, "weight_decay": 0.1}),
        ("two-sided", {"geometry": "frobenius", "scale": "none"}),
    ],
)
def test_follows_the_reference(name, step):
    ours, theirs = whiten(name)
    names = {"momentum_order": "order", "normalize_rows": "row_beta", "weight_decay": "decay"}
    other = {names.get(key, key): value for key, value in step.items() if key != "geometry"}
    if "geometry" in step:
        other["oracle"] = frobenius
    assert distance({**step, **ours}, {**other, **theirs}) < NEAR
    for changed in ({"power": 0.25}, {"beta": 0.8}, {"every": 2}, {"damping": 1e-2}):
        assert distance({**step, **whiten(name, **changed)[0]}, {**other, **theirs}) > 1e4 * NEAR
    assert distance(step, {**other, **theirs}) > 1e4 * NEAR


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0, "scale": "rms"}])
def test_power_zero_is_no_whitening(options):
    theirs = {"beta": options.get("momentum", 0.95), "scale": options.get("scale", "nuclear")}
    assert distance({**options, **whiten(power=0.0)[0]}, theirs) < CLOSE


def test_the_frobenius_norm_and_a_quarter_are_shampoo():
    """D = L^{-1/4} G R^{-1/4}, normalized; of a single gradient the polar factor over the root of the rank."""
    G = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for geometry, expected in (("frobenius", np.sqrt(3.0)), ("spectral", 1.0)):
        W = torch.nn.Parameter(torch.zeros_like(G))
        W.grad = G
        whitening = {"name": "two-sided", "power": 0.25, "damping": 1e-13, "every": 1}
        optimizer = polargrad.PolarGrad([W], lr=1.0, momentum=0.0, geometry=geometry, scale="none", whitening=whitening)
        optimizer.step()
        assert (W + polargrad.polar_factor(G, "svd") / expected).abs().max() < 1e-6


def test_roots_against_numpy():
    C = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    C = C @ C.mT
    for power in (0.1, 0.3, 0.5):
        roots = TwoSided(power=power).root(C)
        for root, c in zip(roots, C, strict=True):
            assert np.abs(root.numpy() - inverse_root(c.numpy(), power, 1e-5)).max() < 1e-9
    assert torch.equal(TwoSided().root(torch.zeros(1, 3, 3)), torch.eye(3)[None])


def test_the_direction_does_not_depend_on_the_scale_of_the_gradient():
    steps = []
    for scale in (1.0, 1e-6, 1e6):
        W = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
        optimizer = polargrad.PolarGrad([W], lr=1.0, scale="none", whitening="two-sided", method="svd")
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            W.grad = scale * torch.randn(6, 4, dtype=torch.float64, generator=generator)
            optimizer.step()
        steps.append(W.detach().clone())
    assert (steps[1] - steps[0]).abs().max() < 1e-9
    assert (steps[2] - steps[0]).abs().max() < 1e-9


@pytest.mark.parametrize("name", list(SIDES))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30], ids=str)
def test_a_matrix_that_does_not_step_keeps_its_state(name, bad):
    """1e30 is a number, but its square is none in float32."""
    start = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    W = torch.nn.Parameter(start.clone())
    whitening = {"name": name, "every": 1}
    optimizer = polargrad.PolarGrad([W], momentum=0.0, scale="rms", whitening=whitening, method="svd")
    W.grad = torch.randn(3, 4, 2)
    optimizer.step()
    weights, state = W.detach().clone(), copy.deepcopy(optimizer.state[W])
    W.grad = torch.randn(3, 4, 2)
    W.grad[1, 0, 0] = bad
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step()
    assert optimizer.skipped == 1
    assert torch.equal(W.detach()[1], weights[1])
    assert (W.detach()[[0, 2]] != weights[[0, 2]]).all()
    kept = [key for key in state if key.endswith(("covariance", "root"))]
    assert len(kept) == (4 if name == "two-sided" else 2)
    for key in kept:
        before, now = (value.view(3, -1) for value in (state[key], optimizer.state[W][key]))
        assert torch.equal(now[1], before[1])
        assert (now[[0, 2]] != before[[0, 2]]).any(dim=1).all()


@pytest.mark.parametrize("options", [{}, {"momentum_order": "heavy-ball"}, {"momentum_order": "polar-first"}], ids=str)
@pytest.mark.parametrize("cause", ["covariance", "momentum"])
def test_whatever_is_skipped_keeps_all_of_its_state(options, cause):
    """Where the gradient is finite, and what is made of it is not."""
    W = torch.nn.Parameter(torch.eye(4))
    optimizer = polargrad.PolarGrad([W], whitening={"name": "two-sided", "every": 2}, scale="rms", **options)
    for _ in range(2):
        W.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        optimizer.step()
    if cause == "momentum":
        if options:  # the momentum of "polar-first" has no part in the direction
            return
        optimizer.state[W]["momentum_buffer"][0, 0] = torch.nan
    weights, state = W.detach().clone(), copy.deepcopy(optimizer.state[W])
    W.grad = torch.full((4, 4), 1e25 if cause == "covariance" else 0.5)
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step()
    assert torch.equal(W, weights)
    for key, value in optimizer.state[W].items():
        assert torch.equal(value, state[key].nan_to_num(0.0)), key


@pytest.mark.parametrize("whitening", [{"every": 5}, {"every": 3}], ids=str)
def test_a_skipped_step_is_none_for_the_age_of_the_roots(whitening):
    """Of two stacked matrices each goes on as if the other were not there, and its skipped step had not been."""
    options = {"whitening": {"name": "two-sided", **whitening}, "scale": "rms", "momentum": 0.5, "method": "svd"}
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(7, 2, 4, 3, generator=generator)
    stacked, alone = torch.nn.Parameter(torch.zeros(2, 4, 3)), torch.nn.Parameter(torch.zeros(4, 3))
    optimizer, other = (polargrad.PolarGrad([p], **options) for p in (stacked, alone))
    for step, gradient in enumerate(gradients):
        stacked.grad = gradient.clone()
        if step in (0, 3):
            stacked.grad[1, 2, 2] = torch.nan
            with pytest.warns(UserWarning, match="skipped"):
                optimizer.step()
            continue
        alone.grad = gradient[1].clone()
        optimizer.step()
        other.step()
        torch.testing.assert_close(stacked[1], alone, rtol=1e-5, atol=1e-6)
    assert optimizer.state[stacked]["whitening_age"].tolist() == [7, 5]
    fresh = torch.nn.Parameter(torch.zeros(4, 3))
    healthy = polargrad.PolarGrad([fresh], **options)
    for gradient in gradients:
        fresh.grad = gradient[0].clone()
        healthy.step()
    torch.testing.assert_close(stacked[0], fresh, rtol=1e-5, atol=1e-6)


def test_resumed_steps_are_the_same_to_the_last_bit():
    """Between new roots too, and in another process's dtype of the state."""

    def made():
        W = torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
        return W, polargrad.PolarGrad([W], whitening={"name": "two-sided", "every": 3}, momentum_dtype="bfloat16")

    def run(W, optimizer, steps):
        for t in steps:
            W.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(t))
            optimizer.step()

    whole, first = made(), made()
    run(*whole, range(9))
    run(*first, range(4))
    second = made()
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    with torch.no_grad():
        second[0].copy_(first[0])
    run(*second, range(4, 9))
    assert torch.equal(second[0], whole[0])
    for key, value in whole[1].state[whole[0]].items():
        assert torch.equal(second[1].state[second[0]][key], value), key
        assert second[1].state[second[0]][key].dtype == value.dtype


def test_a_state_without_covariances_is_refused():
    W = torch.nn.Parameter(torch.eye(3))
    W.grad = torch.eye(3)
    plain = polargrad.PolarGrad([W])
    plain.step()
    state = plain.state_dict()
    state["param_groups"][0]["whitening"] = "two-sided"
    with pytest.raises(ValueError, match=r"lacks left_covariance, which whitening='two-sided' keeps"):
        polargrad.PolarGrad([W], whitening="two-sided").load_state_dict(state)


@pytest.mark.parametrize("key", ["left_covariance", "right_root"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda held: held.view(3, 3), r"of shape \(3, 3\), where its shape must be \(9,\): it was saved for another"),
        (lambda held: torch.full_like(held, torch.inf), "holds NaN or infinity in"),
        (lambda held: torch.full_like(held, torch.nan), "holds NaN or infinity in"),
    ],
    ids=["shape", "infinity", "NaN"],
)
def test_a_damaged_state_is_refused(key, damage, message):
    W = torch.nn.Parameter(torch.eye(3))
    optimizer = polargrad.PolarGrad([W], whitening="two-sided")
    W.grad = torch.eye(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][key] = damage(saved["state"][0][key])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"whitening": "two-sided"}, {"stack": 2}),
        ({"whitening": "one-sided"}, {"split": (4, 2)}),
        ({"scale": "adaptive-nuclear"}, {"stack": 2}),
        ({"normalize_rows": 0.9}, {"layout": "transposed"}),
    ],
    ids=str,
)
def test_a_parameter_split_otherwise_between_steps_is_refused(options, change):
    W = torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = polargrad.PolarGrad([W], **{"scale": "rms", **options})
    before = {key: optimizer.param_groups[0][key] for key in change}
    W.grad = torch.ones(6, 4)
    optimizer.step()
    weights = W.detach().clone()
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match=r"set those back, or make a new optimizer \(group 0; nothing was stepped\)"):
        optimizer.step()
    assert torch.equal(W, weights)
    optimizer.param_groups[0].update(before)
    optimizer.step()
    assert not torch.equal(W, weights)


@pytest.mark.parametrize("change", [("one-sided", "two-sided"), ("two-sided", None), (None, "two-sided")], ids=str)
def test_whitening_may_be_changed_between_steps(change):
    """What is new begins as it does in a fresh optimizer."""
    W, V = (torch.nn.Parameter(torch.zeros(6, 4)) for _ in range(2))
    optimizer = polargrad.PolarGrad([W], whitening=change[0], scale="rms", momentum=0.0)
    W.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    optimizer.param_groups[0]["whitening"] = change[1]
    fresh = polargrad.PolarGrad([V], whitening=change[1], scale="rms", momentum=0.0)
    with torch.no_grad():
        V.copy_(W)
    V.grad = W.grad
    optimizer.step()
    fresh.step()
    assert not torch.equal(V, torch.zeros_like(V))
    torch.testing.assert_close(W, V, rtol=1e-5, atol=1e-6)


def test_the_long_side_of_a_table_is_refused_and_the_short_one_is_not():
    table = torch.nn.Parameter(torch.empty(50257, 8, device="meta"))
    with pytest.raises(ValueError, match=r"forms the 50257 x 50257 covariance .* use 'one-sided'"):
        polargrad.PolarGrad([table], whitening="two-sided")
    polargrad.PolarGrad([table], whitening="one-sided")
    for name in ("one-sided", "two-sided"):  # one-sided is advised only where it would help
        with pytest.raises(ValueError, match=r"max_side is 7; leave whitening out for this parameter, or raise"):
            polargrad.PolarGrad([table], whitening={"name": name, "max_side": 7})
    assert OneSided().sizes(matrix_view((50257, 8))) == {"right": 64}
    assert TwoSided().sizes(matrix_view((3, 4, 2))) == {"left": 48, "right": 12}


def test_parts_of_the_gradient_travel_too():
    layout, view = Layout((8, 4), mesh=(2,), dims=(0,)), matrix_view((8, 4))
    plain, whole = (owner_traffic(layout, view, [0], 4, whole=flag) for flag in (False, True))
    assert whole.sent[1] == 2 * plain.sent[1]
    assert whole.sent[0] == plain.sent[0]
    assert whole.collectives == plain.collectives + 1
