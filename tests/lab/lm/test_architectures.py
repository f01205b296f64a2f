import pytest
import torch

import polargrad
from polargrad.lab.lm import ARCHITECTURES, architecture, decoder


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("demo", 1_895_424),
        ("laptop", 10_618_560),
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("qwen2.5-540m", 540_865_536),
        ("moe-demo", 6_543_168),
    ],
)
def test_models_have_the_published_sizes(name, count):
    assert ARCHITECTURES[name].parameters == count


def test_the_paper_s_model_is_the_paper_s():
    sizes = architecture("qwen2.5-540m").sizes()
    assert sizes == {
        "family": "qwen2",
        "hidden_size": 1024,
        "layers": 12,
        "heads": 16,
        "kv_heads": 16,
        "mlp": 4864,
        "vocabulary": 151936,
        "sequence": 512,
        "experts": 1,
        "experts_per_token": 1,
        "untied": True,
    }


def test_an_unknown_model_names_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown model 'gpt2-smal'; did you mean 'gpt2-small'\? .* 'demo', 'mini', 'laptop'"
    ):
        architecture("gpt2-smal")


@pytest.fixture
def mixture():
    return decoder(
        "mixtral", hidden_size=16, layers=2, heads=2, mlp=24, vocabulary=50, sequence=8, experts=4, experts_per_token=2
    )


def test_experts_are_stepped_as_batches_of_matrices(mixture):
    experts = [group for group in polargrad.parameter_groups(mixture) if group["role"] == "expert"]
    assert [[name.rpartition(".")[2] for name, _ in group["params"]] for group in experts] == [
        ["gate_up_proj"] * 2,
        ["down_proj"] * 2,
    ]
    assert [group.get("split") for group in experts] == [[24, 24], None]
    assert {group["rule"] for group in experts} == {"polar"}
    plain = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "scale": "none", "method": "svd", "max_steps": None}
    optimizer = polargrad.PolarGrad([{**group, **plain} for group in experts])
    before = {name: p.detach().clone() for group in experts for name, p in group["params"]}
    mixture(input_ids=torch.arange(16).reshape(2, 8)).logits.square().mean().backward()
    optimizer.step()
    for group in experts:
        for name, p in group["params"]:
            step = before[name] - p.detach()
            assert step.shape == p.shape == (4, *p.shape[1:])
            for whole, gradients in zip(step, p.grad, strict=True):
                sizes = group.get("split", [len(whole)])
                for one, gradient in zip(whole.split(sizes), gradients.split(sizes), strict=True):
                    torch.testing.assert_close(one, polargrad.polar_factor(gradient, "svd"), rtol=0, atol=1e-5)
                    assert torch.linalg.matrix_norm(one, ord=2).item() == pytest.approx(1.0, abs=1e-4)
    # Negative control: one polar factor of all experts laid side by side is another step.
    name, p = experts[1]["params"][0]
    flat = torch.cat(list(p.grad), dim=0)
    together = polargrad.polar_factor(flat, "svd").reshape(p.shape)
    apart = before[name] - p.detach()
    assert not torch.allclose(together, apart, atol=1e-2)


def test_the_training_loss_balances_the_experts(mixture):
    from polargrad.lab.lm import LanguageModelObjective
    from tests.lab.lm.test_objective import counting

    made = LanguageModelObjective(mixture, counting(200, 50), counting(100, 50), batch_size=4, sequence=8)
    with torch.no_grad():
        loss = made.loss(0).item()
        output = mixture(input_ids=made.batch(0)[:, :-1])
        bare = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), made.batch(0)[:, 1:].flatten()).item()
    assert loss == pytest.approx(bare + mixture.config.router_aux_loss_coef * output.aux_loss.item(), rel=1e-6)
    assert loss > bare


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("qwen2", {"experts": 4}), ("mixtral", {}), ("mixtral", {"experts": 2, "experts_per_token": 3})],
)
def test_experts_belong_to_mixtures(family, sizes):
    with pytest.raises(ValueError, match="'mixtral' takes at least 2 experts"):
        decoder(family, hidden_size=16, layers=1, heads=2, vocabulary=50, sequence=8, **sizes)


def test_a_model_without_storage_costs_nothing():
    model = decoder(hidden_size=16, layers=1, heads=2, vocabulary=50, sequence=8, device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
