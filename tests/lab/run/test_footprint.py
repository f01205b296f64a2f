import pytest
import torch

from polargrad.lab.lm import decoder
from polargrad.lab.recipes import optimizer_for
from polargrad.lab.run.build import build_optimizer
from polargrad.lab.run.footprint import footprint
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import LoopConfig
from polargrad.optim.roles import roles


def spec(recipe="muon+adamw", **changed):
    model = LanguageModel(**{"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 2, "mlp": 64, **changed})
    module = model.build(device="meta")
    return RunSpec("x", model, optimizer_for(recipe, set(roles(module).values())), loop=LoopConfig(steps=3))


@pytest.mark.parametrize("recipe", ["adamw", "muon+adamw", "muon+polargrad", "rownorm"])
def test_weights_and_state_are_counted_exactly(recipe):
    made = spec(recipe)
    need = footprint(made)
    model = decoder(hidden_size=32, layers=2, heads=2, mlp=64)
    optimizer = build_optimizer(made, model)
    model(input_ids=torch.arange(32).reshape(2, 16)).logits.square().mean().backward()
    optimizer.step()
    held = sum(p.numel() * p.element_size() + p.grad.numel() * p.grad.element_size() for p in model.parameters())
    assert need.weights == held
    state = sum(
        value.numel() * value.element_size()
        for p in model.parameters()
        for value in optimizer.state[p].values()
        if isinstance(value, torch.Tensor) and value.shape == p.shape
    )
    assert need.optimizer == state


def test_parts_and_devices_divide_what_is_kept():
    whole = footprint(spec(batch=16))
    parts, devices = footprint(spec(batch=16, accumulation=4)), footprint(spec(batch=16), devices=4)
    assert parts.logits == devices.logits == whole.logits // 4
    assert parts.activations == whole.activations // 4
    assert parts.model_flops == whole.model_flops
    assert devices.seconds(4, 1e12, 1e12) < whole.seconds(1, 1e12, 1e12)
    with pytest.raises(ValueError, match="3 devices times 2 parts do not divide the batch of 16"):
        footprint(spec(batch=16, accumulation=2), devices=3)


def test_activation_checkpointing_trades_time_for_memory():
    usual, lean = footprint(spec()), footprint(spec(activation_checkpointing=True))
    assert lean.activations < usual.activations
    assert lean.model_flops == pytest.approx(4 / 3 * usual.model_flops)


def test_pure_bfloat16_halves_what_is_held():
    usual, half = footprint(spec()), footprint(spec(precision="bfloat16"))
    assert half.weights * 2 == usual.weights
    assert half.optimizer * 2 == usual.optimizer


def test_a_mixture_computes_with_the_experts_that_a_token_goes_to():
    sizes = {"family": "mixtral", "experts": 8}
    one, two = (footprint(spec(**sizes, experts_per_token=count)) for count in (1, 2))
    assert one.parameters == two.parameters
    assert one.model_flops < two.model_flops


def test_flops_are_six_for_each_weight_and_token():
    made = spec()
    need = footprint(made)
    named = dict(made.objective.build(device="meta").named_parameters())
    weights = sum(p.numel() for name, p in named.items() if "embed_tokens" not in name)
    attention = 12 * 2 * 32 * made.objective.sequence
    assert need.tokens == 3 * 16 * 128
    assert need.model_flops == (6 * weights + attention) * need.tokens
