import sys

import pytest
import torch

from polargrad.lab.lm import decoder
from polargrad.lab.recipes import RECIPES, optimizer_for
from polargrad.lab.run.build import build_optimizer, foreign_rule
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import LoopConfig
from polargrad.optim.roles import roles

SIZES = {"hidden_size": 16, "layers": 1, "heads": 2, "mlp": 32}


def spec(recipe, changes=()):
    model = LanguageModel(**SIZES, kv_heads=2, vocabulary=64)
    options = optimizer_for(recipe, set(roles(model.build(device="meta")).values()), changes)
    return RunSpec("x", model, options, loop=LoopConfig(3))


def after_steps(recipe):
    model = decoder(**SIZES, vocabulary=64)
    optimizer = build_optimizer(spec(recipe), model)
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        tokens = torch.randint(0, 64, (4, 17), generator=torch.Generator().manual_seed(step % 2))
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns(recipe):
    if recipe in ("soap", "shampoo"):
        pytest.importorskip("pytorch_optimizer")
    losses, optimizer = after_steps(recipe)
    assert losses[-1] < losses[0]
    assert {group["role"] for group in optimizer.param_groups} == {"hidden", "embedding", "head", "vector"}


@pytest.mark.parametrize("recipe", ["soap", "shampoo"])
def test_without_the_library_the_error_says_what_to_install(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r"polargrad\[comparators\]"):
        after_steps(recipe)


def test_one_library_steps_a_whole_model():
    assert foreign_rule(spec("soap").optimizer) == "soap"
    assert foreign_rule(spec("muon+adamw").optimizer) is None
    with pytest.raises(ValueError, match="soap steps a whole model and cannot share one with adamw"):
        foreign_rule(spec("soap", ["vector.rule=adamw"]).optimizer)


def test_options_of_the_whole_optimizer_agree():
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValueError, match="precondition_frequency of soap is"):
        build_optimizer(spec("soap", ["head.precondition_frequency=5"]), decoder(**SIZES, vocabulary=64))
