"""The torchtitan-style container: its state is by name, knows no cut into parts, and counts no step that never was."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim.lr_scheduler import LambdaLR

from polargrad.integrations.torchtitan import OptimizersContainer, build_lr_schedulers, build_optimizers

RULES = [("output.weight", "head")]
OPTIONS = {
    "hidden": {"lr": 0.02, "scale": "adaptive-nuclear", "method": "qdwh"},
    "embedding": {"lr": 0.03},
    "head": {"lr": 0.01},
}


class Part(nn.Module):
    """Layers of a chain, by their names in the whole of it."""

    def __init__(self, names):
        super().__init__()
        torch.manual_seed(0)
        made = {"embedding": nn.Embedding(9, 4), **{f"layer{i}": nn.Linear(4, 4) for i in range(2)}}
        made["output"] = nn.Linear(4, 9)
        for name in names:
            setattr(self, name, made[name])


WHOLE = ("embedding", "layer0", "layer1", "output")
CUTS = {"one": [WHOLE], "two": [WHOLE[:2], WHOLE[2:]], "three": [WHOLE[:1], WHOLE[1:3], WHOLE[3:]]}


def build(cut):
    parts = [Part(names) for names in CUTS[cut]]
    return parts, build_optimizers(parts, rules=RULES, **OPTIONS)


def give_gradients(parts, step, without=()):
    for part in parts:
        for name, p in part.named_parameters():
            seed = 100 * step + sum(map(ord, name))
            draw = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            p.grad = None if name in without else draw


def run(parts, optimizers, steps, without=()):
    for step in steps:
        give_gradients(parts, step, without)
        optimizers.step()
        optimizers.zero_grad()


def weights(parts):
    return {name: p.detach().clone() for part in parts for name, p in part.named_parameters()}


def load_weights(parts, saved):
    for part in parts:
        part.load_state_dict({name: saved[name] for name in part.state_dict()})


def assert_same(left, right, *, exactly=True):
    """Equal to the last bit; or to rounding, since layers of one part are decomposed in one batch."""
    assert left.keys() == right.keys()
    for name in left:
        atol = 0.0 if exactly else 100 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(
            left[name], right[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_it_keeps_the_published_contract():
    parts, optimizers = build("two")
    assert isinstance(optimizers, torch.optim.Optimizer)
    assert isinstance(optimizers, Stateful)
    assert isinstance(build_lr_schedulers(optimizers, lambda _: 1.0), Stateful)
    assert len(optimizers) == len(list(optimizers)) == 2
    assert optimizers.model_parts == parts
    seen = []
    optimizers.register_step_post_hook(lambda *_: seen.append("stepped"))
    run(parts, optimizers, [0])
    assert seen == ["stepped"]
    assert [g["role"] for g in optimizers.param_groups] == ["hidden", "embedding", "vector", "hidden", "head", "vector"]


def test_names_and_values_are_flat():
    parts, optimizers = build("two")
    run(parts, optimizers, [0])
    state = optimizers.state_dict()
    assert all(key.startswith(("state.", "param_groups.")) for key in state)
    assert torch.equal(
        state["state.layer1.weight.momentum_buffer"],
        optimizers.optimizers[1].state[parts[1].layer1.weight]["momentum_buffer"],
    )
    assert state["param_groups.output.weight.role"] == "head"
    assert state["param_groups.layer0.weight.lr"] == 0.02
    assert not any("param_names" in key for key in state)


@pytest.mark.parametrize("after", CUTS)
@pytest.mark.parametrize("before", CUTS)
def test_any_cut_goes_on_where_another_was(before, after):
    parts, optimizers = build(before)
    run(parts, optimizers, range(6))
    expected = weights(parts)

    parts, optimizers = build(before)
    run(parts, optimizers, range(3))
    saved, state = weights(parts), copy.deepcopy(optimizers.state_dict())
    parts, optimizers = build(after)
    load_weights(parts, saved)
    optimizers.load_state_dict(state)
    run(parts, optimizers, range(3, 6))
    assert_same(weights(parts), expected, exactly=before == after)


def test_the_comparison_can_fail():
    parts, optimizers = build("one")
    run(parts, optimizers, range(3))
    saved = weights(parts)
    run(parts, optimizers, range(3, 6))
    other, forgetful = build("one")
    load_weights(other, saved)
    run(other, forgetful, range(3, 6))
    with pytest.raises(AssertionError):
        assert_same(weights(other), weights(parts), exactly=False)


def test_asking_for_the_state_changes_nothing():
    parts, optimizers = build("two")
    give_gradients(parts, 0)
    before = optimizers.state_dict()
    assert "state.layer0.weight.momentum_buffer" in before
    optimizers.step()
    asked = weights(parts)
    parts, optimizers = build("two")
    give_gradients(parts, 0)
    optimizers.step()
    assert_same(weights(parts), asked)
    assert optimizers.optimizers[0].state[parts[0].layer0.bias]["step"] == 1


def test_a_state_is_loaded_beside_gradients_too():
    parts, optimizers = build("two")
    run(parts, optimizers, range(3))
    state = copy.deepcopy(optimizers.state_dict())
    parts, optimizers = build("two")
    give_gradients(parts, 7)
    optimizers.load_state_dict(state)
    loaded = optimizers.optimizers[0].state[parts[0].layer0.weight]["momentum_buffer"]
    assert torch.equal(loaded, state["state.layer0.weight.momentum_buffer"])
    assert parts[0].layer0.weight.grad is not None


def test_a_parameter_that_was_never_stepped_starts_afresh():
    parts, optimizers = build("one")
    run(parts, optimizers, range(3), without=("output.weight",))
    saved, state = weights(parts), copy.deepcopy(optimizers.state_dict())
    assert not any(key.startswith("state.output.weight.") for key in state)
    run(parts, optimizers, range(3, 6))
    expected = weights(parts)
    parts, optimizers = build("one")
    load_weights(parts, saved)
    optimizers.load_state_dict(state)
    run(parts, optimizers, range(3, 6))
    assert_same(weights(parts), expected)


def test_an_option_that_the_state_does_not_know_stays():
    parts, optimizers = build("two")
    run(parts, optimizers, [0])
    state = {key: value for key, value in optimizers.state_dict().items() if not key.endswith(".workspace")}
    parts, optimizers = build("two")
    optimizers.param_groups[0]["workspace"] = 12345
    optimizers.load_state_dict(state)
    assert optimizers.param_groups[0]["workspace"] == 12345


def test_what_cannot_be_one_state_is_refused():
    _, optimizers = build("two")
    state = {key: value for key, value in optimizers.state_dict().items() if ".layer1." not in key}
    with pytest.raises(ValueError, match=r"has no entries of layer1\.weight, layer1\.bias"):
        optimizers.load_state_dict(state)
    with pytest.raises(ValueError, match="parts 0 and 1 both have a parameter 'weight'"):
        build_optimizers([nn.Linear(3, 3), nn.Linear(3, 3)])
    with pytest.raises(ValueError, match="no model part"):
        build_optimizers([])


def test_rates_of_every_part_and_role_survive_another_cut():
    def schedule(step):
        return 1 / (1 + step)

    def rates(optimizers):
        return {g["role"]: g["lr"] for g in optimizers.param_groups}

    parts, optimizers = build("one")
    schedulers = build_lr_schedulers(optimizers, schedule)
    for step in range(3):
        run(parts, optimizers, [step])
        schedulers.step()
    parts, other = build("two")
    again = build_lr_schedulers(other, schedule)
    again.load_state_dict(copy.deepcopy(schedulers.state_dict()))
    assert rates(other) == rates(optimizers) == {"hidden": 0.005, "embedding": 0.0075, "head": 0.0025, "vector": 0.015}
    for step in range(3, 5):
        run(parts, other, [step])
        again.step()
    assert rates(other)["head"] == pytest.approx(0.01 / 6)
    assert [scheduler.get_last_lr()[0] for scheduler in again] == [g["lr"] for g in other.param_groups[::3]]


def test_a_scheduler_over_the_container_sees_every_group():
    parts, optimizers = build("two")
    scheduler = LambdaLR(optimizers, lambda step: 0.5**step)
    run(parts, optimizers, [0])
    scheduler.step()
    assert [g["lr"] for o in optimizers for g in o.param_groups] == [
        g["initial_lr"] / 2 for g in optimizers.param_groups
    ]
    optimizers.load_state_dict(optimizers.state_dict())
    own = [g for optimizer in optimizers for g in optimizer.param_groups]
    assert [id(g) for g in optimizers.param_groups] == [id(g) for g in own]


def test_a_closure_is_evaluated_once():
    parts, optimizers = build("two")
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        give_gradients(parts, 0)
        return 3.0

    assert optimizers.step(closure) == 3.0
    assert calls == [True]


def test_one_optimizer_for_each_part_is_wanted():
    parts, optimizers = build("two")
    with pytest.raises(ValueError, match="2 model parts and 1 optimizers"):
        OptimizersContainer(parts, optimizers.optimizers[:1])
