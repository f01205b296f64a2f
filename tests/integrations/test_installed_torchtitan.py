"""The container against torchtitan itself, where it is installed: its configuration, its schedulers, its checkpoints.

`pip install --no-deps torchtitan==0.3.0 spmd_types torchdata torch_checkpointing einops` is enough; its models need
Triton besides, and its trainer a GPU, so that these tests do what the trainer does with both containers.
"""

import copy
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from polargrad import PolarGrad
from polargrad.integrations.torchtitan import build_lr_schedulers, build_optimizers, optimizer_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip("torchtitan.components.optimizer", exc_type=ImportError)

RULES = [("output.weight", "head")]


def model():
    torch.manual_seed(0)
    made = {"tok_embeddings": nn.Embedding(9, 4), "layer": nn.Linear(4, 4), "output": nn.Linear(4, 9, bias=False)}
    return nn.ModuleDict(made)


def steps(part, optimizers, schedulers, numbers):
    for number in numbers:
        draw = torch.Generator().manual_seed(number)
        for p in part.parameters():
            p.grad = torch.randn(p.shape, generator=draw)
        optimizers.step()
        schedulers.step()
        optimizers.zero_grad(set_to_none=True)


def built(part):
    config = optimizer_config(rules=RULES, hidden={"lr": 0.02}, head={"lr": 0.01})
    return config, config.build(model_parts=[part])


def test_the_configuration_is_one_of_torchtitans():
    part = model()
    config, optimizers = built(part)
    assert isinstance(config, theirs.OptimizersContainer.Config)
    assert config.to_dict()["options"]["hidden"] == {"lr": 0.02}
    assert isinstance(copy.deepcopy(config), theirs.OptimizersContainer.Config)
    assert [type(optimizer) for optimizer in optimizers] == [PolarGrad]
    assert {group["role"] for group in optimizers.param_groups} == {"embedding", "hidden", "head", "vector"}
    optimizers.init_cache_state_dict()


def test_it_has_what_torchtitans_own_has():
    own = {name for name in vars(theirs.OptimizersContainer) if not name.startswith("_")} - {"Config"}
    _, optimizers = built(model())
    assert not {name for name in own if not hasattr(optimizers, name)}
    schedulers = {name for name in vars(theirs.LRSchedulersContainer) if not name.startswith("_")} - {"Config"}
    ours = build_lr_schedulers(optimizers, lambda _: 1.0)
    assert not {name for name in schedulers if not hasattr(ours, name)}


def test_torchtitans_schedulers_run_over_it():
    part = model()
    _, optimizers = built(part)
    config = theirs.LRSchedulersContainer.Config(warmup_steps=2, decay_ratio=0.5)
    schedulers = config.build(optimizers=optimizers, training_steps=8)
    rates = []
    for number in range(8):
        rates.append(next(group["lr"] for group in optimizers.param_groups if group["role"] == "hidden"))
        assert schedulers.get_metrics()["lr/PolarGrad/0"] == pytest.approx(optimizers.param_groups[0]["lr"])
        steps(part, optimizers, schedulers, [number])
    assert rates[:3] == pytest.approx([0.01, 0.02, 0.02])
    assert rates[-1] < 0.01
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_run_goes_on_from_a_distributed_checkpoint(tmp_path, whose):
    def made():
        part = model()
        _, optimizers = built(part)
        if whose == "ours":
            return part, optimizers, build_lr_schedulers(optimizers, lambda step: 1.0 / (step + 1))
        config = theirs.LRSchedulersContainer.Config(warmup_steps=2, decay_ratio=0.5)
        return part, optimizers, config.build(optimizers=optimizers, training_steps=12)

    part, optimizers, schedulers = made()
    steps(part, optimizers, schedulers, range(4))
    state = {"model": part, "optimizer": optimizers, "lr_scheduler": schedulers}
    dcp.save({key: value.state_dict() for key, value in state.items()}, checkpoint_id=tmp_path, no_dist=True)
    steps(part, optimizers, schedulers, range(4, 8))

    other, optimizers, schedulers = made()
    before = [p.detach().clone() for p in other.parameters()]
    state = {"model": other, "optimizer": optimizers, "lr_scheduler": schedulers}
    loaded = {key: value.state_dict() for key, value in state.items()}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    for key, value in state.items():
        value.load_state_dict(loaded[key])
    steps(other, optimizers, schedulers, range(4, 8))
    for p, q, start in zip(part.parameters(), other.parameters(), before, strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(q, start)


def test_rates_are_told_by_role():
    _, optimizers = built(model())
    metrics = build_lr_schedulers(optimizers, lambda _: 0.5).get_metrics()
    assert (metrics["lr/hidden"], metrics["lr/head"]) == (0.01, 0.005)


def test_without_torchtitan_the_error_names_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchtitan.components.optimizer", None)
    with pytest.raises(ImportError, match="torchtitan"):
        optimizer_config()
    build_optimizers([model()], rules=RULES)
