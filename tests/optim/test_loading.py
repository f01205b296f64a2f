"""States and groups that come from elsewhere: what is refused, before anything is installed."""

import copy
import math

import pytest
import torch

import polargrad


def stepped(optimizer, parameters):
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


def parameters():
    return [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(5))]


def polar(W, b, **options):
    return polargrad.PolarGrad([{"params": [W]}, {"params": [b], "rule": "adamw"}], lr=0.1, **options)


def frozen(optimizer):
    return copy.deepcopy(optimizer.state_dict())


def assert_same(optimizer, before):
    now = optimizer.state_dict()
    assert now["param_groups"] == before["param_groups"]
    torch.testing.assert_close(now["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize("other", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Muon])
def test_the_state_of_another_optimizer_is_refused(other):
    W = torch.nn.Parameter(torch.randn(4, 3))
    saved = stepped(other([W], lr=0.1), [W]).state_dict()
    optimizer = stepped(polargrad.PolarGrad([W], lr=0.3), [W])
    before = frozen(optimizer)
    with pytest.raises(ValueError, match="another optimizer"):
        optimizer.load_state_dict(saved)
    assert_same(optimizer, before)


@pytest.mark.parametrize("change", [
    lambda saved: saved["state"][0].update(momentum_buffer=torch.zeros(5, 5)),
    lambda saved: saved["state"][1].update(exp_avg=torch.zeros(2)),
    lambda saved: saved["state"][1].pop("exp_avg_sq"),
    lambda saved: saved["param_groups"][0].update(lr=math.nan),
    lambda saved: saved["param_groups"][0].update(scale="bogus"),
], ids=["shape", "shape of AdamW", "missing of AdamW", "rate", "scale"])  # fmt: skip
def test_a_damaged_state_is_refused_and_nothing_is_loaded(change):
    W, b = parameters()
    optimizer = stepped(polar(W, b), [W, b])
    saved = frozen(optimizer)
    change(saved)
    stepped(optimizer, [W, b])
    before = frozen(optimizer)
    with pytest.raises(ValueError, match=r"shape|finite|one of"):
        optimizer.load_state_dict(saved)
    assert_same(optimizer, before)


def test_a_parameter_without_state_loads():
    W, b = parameters()
    optimizer = polar(W, b)
    polar(W, b).load_state_dict(frozen(optimizer))


@pytest.mark.parametrize("lr", [math.nan, math.inf, -1.0])
def test_a_rate_that_became_impossible_stops_before_anything_is_stepped(lr):
    W, b = parameters()
    optimizer = stepped(polar(W, b), [W, b])
    optimizer.param_groups[1]["lr"] = lr
    before = [W.detach().clone(), b.detach().clone()]
    with pytest.raises(ValueError, match="lr of group 1"):
        optimizer.step()
    assert torch.equal(W, before[0])
    assert torch.equal(b, before[1])


def test_what_frameworks_keep_in_groups_stays():
    W = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = polargrad.PolarGrad([{"params": [W], "name": "hidden", "lr_scale": 0.5, "layer_id": 3}], lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    other = polargrad.PolarGrad([W], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert {"name": "hidden", "lr_scale": 0.5, "layer_id": 3}.items() <= other.param_groups[0].items()


@pytest.mark.parametrize("option", ["momentun", "weightdecay", "ns_steps", "learning_rate", "epsilon", "nestrov"])
def test_an_option_that_would_do_nothing_is_refused(option):
    W = torch.nn.Parameter(torch.randn(4, 3))
    with pytest.raises(ValueError, match=f"unknown option '{option}'"):
        polargrad.PolarGrad([{"params": [W], option: 0.5}], lr=0.1)


@pytest.mark.parametrize("option", ["ns_step", "wd", "decay", "learning", "warmup", "scaling", "rows"])
@pytest.mark.parametrize("rule", ["polar", "adamw"])
def test_an_option_like_no_other_does_nothing_and_says_so(option, rule):
    W = torch.nn.Parameter(torch.randn(4, 3))
    with pytest.warns(UserWarning, match=f"'{option}' in a parameter group with rule='{rule}' does nothing") as said:
        optimizer = polargrad.PolarGrad([{"params": [W], "rule": rule, option: 0.5}], lr=0.1)
    assert len(said) == 1
    stepped(optimizer, [W])  # silent, since warnings are errors here
    other = polargrad.PolarGrad([{"params": [W], "rule": rule, "name": "all", "max_lr": 0.5}], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match=f"'{option}'"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.eye(2))], option: 0.5})


def test_one_cycle_turns_the_momentum_of_polar_groups():
    W = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = polargrad.PolarGrad([W], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=10, base_momentum=0.8, max_momentum=0.9
    )
    seen = []
    for _ in range(5):
        stepped(optimizer, [W])
        schedule.step()
        seen.append(optimizer.param_groups[0]["momentum"])
    assert min(seen) < 0.85 < max(seen)
