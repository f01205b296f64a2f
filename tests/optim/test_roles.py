"""Roles on real transformers models, rules, and what a person reads."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import polargrad
from polargrad.lab.recipes import spec_of
from polargrad.optim import roles as role_module
from polargrad.optim.matrix_view import VIEW_OPTIONS, matrix_view
from polargrad.optim.roles import ROLES, roles

transformers = pytest.importorskip("transformers")


def _meta(name, config, **options):
    with torch.device("meta"):
        return getattr(transformers, name)(getattr(transformers, config)(**options))


SMALL = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
LAYERS = {"num_hidden_layers": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}


def gpt2(tied=True):
    options = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "tie_word_embeddings": tied}
    return _meta("GPT2LMHeadModel", "GPT2Config", **options)


def qwen2():
    return _meta("Qwen2ForCausalLM", "Qwen2Config", **SMALL, **LAYERS)


def mixtral():
    return _meta("MixtralForCausalLM", "MixtralConfig", **SMALL, **LAYERS, num_local_experts=4)


def qwen2_moe():
    sizes = {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    return _meta("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **SMALL, **LAYERS, **sizes)


def gpt_oss():
    return _meta("GptOssForCausalLM", "GptOssConfig", **SMALL, **LAYERS, num_local_experts=4, head_dim=8)


def vit():
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return _meta("ViTForImageClassification", "ViTConfig", **options, image_size=8, patch_size=4)


def t5():
    options = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return _meta("T5ForConditionalGeneration", "T5Config", **options)


def bert():
    return _meta("BertForMaskedLM", "BertConfig", **SMALL, num_hidden_layers=1, max_position_embeddings=8)


MODELS = [gpt2, qwen2, mixtral, qwen2_moe, gpt_oss, vit, t5, bert]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (gpt2, {"transformer.wte.weight": "tied", "transformer.wpe.weight": "position",
                "transformer.h.0.attn.c_attn.weight": "hidden", "transformer.h.0.ln_1.weight": "vector"}),
        (lambda: gpt2(tied=False), {"transformer.wte.weight": "embedding", "lm_head.weight": "head"}),
        (qwen2, {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head",
                 "model.layers.0.self_attn.k_proj.weight": "hidden", "model.layers.0.self_attn.k_proj.bias": "vector"}),
        (mixtral, {"model.layers.0.mlp.experts.gate_up_proj": "expert",
                   "model.layers.0.mlp.experts.down_proj": "expert",
                   "model.layers.0.mlp.gate.weight": "hidden", "lm_head.weight": "head"}),
        (qwen2_moe, {"model.layers.0.mlp.experts.down_proj": "expert",
                     "model.layers.0.mlp.shared_expert.up_proj.weight": "hidden"}),
        (gpt_oss, {"model.layers.0.mlp.experts.gate_up_proj": "expert",
                   "model.layers.0.mlp.experts.gate_up_proj_bias": "vector",
                   "model.layers.0.self_attn.sinks": "vector"}),
        (vit, {"vit.embeddings.cls_token": "vector", "vit.embeddings.position_embeddings": "position",
               "vit.embeddings.patch_embeddings.projection.weight": "conv", "classifier.weight": "head"}),
        (t5, {"shared.weight": "tied", "encoder.block.0.layer.0.SelfAttention.q.weight": "hidden",
              "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "position"}),
        (bert, {"bert.embeddings.word_embeddings.weight": "tied",
                "bert.embeddings.position_embeddings.weight": "position",
                "bert.embeddings.token_type_embeddings.weight": "position",
                "bert.encoder.layer.0.output.dense.weight": "hidden", "cls.predictions.bias": "vector"}),
    ],
)  # fmt: skip
def test_roles_of_transformers_models(model, expected):
    found = roles(model())
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("make", MODELS)
def test_every_parameter_is_in_one_group_and_the_optimizer_takes_them(make):
    model = make()
    groups = polargrad.parameter_groups(model)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(p.ndim >= 2 for group in groups if group["rule"] == "polar" for _, p in group["params"])
    optimizer = polargrad.PolarGrad(groups)
    assert [name for group in optimizer.param_groups for name in group["param_names"]] == names
    order = [ROLES.index(group["role"]) for group in groups]
    assert order == sorted(order)


def test_a_name_says_nothing():
    class Misnamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head = nn.Linear(4, 4, bias=False)
            self.norm = nn.Embedding(5, 4)
            self.embedding = nn.LayerNorm(4)

    assert roles(Misnamed()) == {
        "lm_head.weight": "hidden",
        "norm.weight": "embedding",
        "embedding.weight": "vector",
        "embedding.bias": "vector",
    }


def test_a_table_that_is_a_map_s_weight_is_tied_in_either_order():
    first = nn.ModuleList([nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)])
    first[1].weight = first[0].weight
    last = nn.ModuleList([nn.Linear(4, 5, bias=False), nn.Embedding(5, 4)])
    last[0].weight = last[1].weight
    assert roles(first) == {"0.weight": "tied"}
    assert roles(last) == {"0.weight": "tied"}


def old_style(norm):
    """A convolution under torch's former weight or spectral normalization, which keeps attributes of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(nn.Conv2d(4, 6, 3))


def held(**shapes):
    """A module of bare parameters."""
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.ones(shape)))
    return module


def undecayed():
    module = held(A_log=(8, 4))
    module.A_log._no_weight_decay = True
    return module


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: old_style(nn.utils.weight_norm),
         {"weight_v": ("conv", (1, 6, 36)), "weight_g": ("vector", None), "bias": ("vector", None)}),
        (lambda: old_style(nn.utils.spectral_norm), {"weight_orig": ("conv", (1, 6, 36))}),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
         {"parametrizations.weight.original0": ("vector", None), "parametrizations.weight.original1":
          ("hidden", (1, 6, 4))}),
        (lambda: nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(4, 6, 3)),
         {"parametrizations.weight.original1": ("conv", (1, 6, 12))}),
        (lambda: nn.Conv1d(8, 8, 4, groups=8), {"weight": ("vector", None)}),
        (lambda: nn.Conv1d(8, 12, 4, groups=4), {"weight": ("conv", (4, 3, 8))}),
        (lambda: nn.Conv1d(4, 12, 4, groups=4), {"weight": ("conv", (4, 3, 4))}),
        (lambda: nn.LSTMCell(4, 6), {"weight_ih": ("hidden", (1, 6, 4)), "weight_hh": ("hidden", (1, 6, 6))}),
        (lambda: nn.LSTM(4, 6, proj_size=3), {"weight_ih_l0": ("hidden", (1, 6, 4)), "weight_hr_l0":
                                             ("hidden", (1, 3, 6))}),
        (lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6), {"q_proj_weight": ("hidden", (1, 8, 8)),
                                                              "k_proj_weight": ("hidden", (1, 8, 4))}),
        (lambda: nn.Bilinear(3, 4, 5), {"weight": ("hidden", (1, 5, 12))}),
        (lambda: nn.Bilinear(3, 4, 1), {"weight": ("hidden", (1, 3, 4))}),
        (undecayed, {"A_log": ("vector", None)}),
        (lambda: held(latents=(6, 8)), {"latents": ("position", None)}),
        (lambda: held(q=(8, 2, 3), k=(8, 2, 3), o=(8, 2, 3)), {"q": ("position", None)}),
        (lambda: held(weight=(4, 8)), {"weight": ("hidden", (1, 4, 8))}),
        (lambda: held(gate_up=(4, 12, 8), down=(4, 8, 6), bias=(4, 12)),
         {"gate_up": ("expert", (4, 12, 8)), "down": ("expert", (4, 8, 6)), "bias": ("vector", None)}),
        (lambda: held(gate_up=(4, 8, 12), down=(4, 6, 8)),
         {"gate_up": ("expert", (4, 12, 8)), "down": ("expert", (4, 8, 6))}),
        (lambda: held(up=(4, 6, 8), down=(4, 8, 6)), {"up": ("expert", (4, 6, 8)), "down": ("expert", (4, 8, 6))}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:without an example nothing tells")
def test_roles_and_matrices_by_module(make, expected):
    """Each (count, out, in) is that of the operator of the module; None is stepped by AdamW."""
    groups = polargrad.parameter_groups(make())
    where = {name: (group, p) for group in groups for name, p in group["params"]}
    for name, (role, batch) in expected.items():
        group, p = where[name]
        assert group["role"] == role
        assert (group["rule"] == "polar") == (batch is not None)
        if batch is not None:
            view = matrix_view(p.shape, {key: group[key] for key in VIEW_OPTIONS if key in group})
            assert view.batches[0] == batch


def test_transposed_layouts_are_found():
    layouts = {g["role"]: g.get("layout", "auto") for g in polargrad.parameter_groups(gpt2()) if g["rule"] == "polar"}
    assert layouts == {"hidden": "transposed", "tied": "auto"}
    layouts = {(g["role"], g.get("layout", "auto")) for g in polargrad.parameter_groups(gpt_oss())}
    assert {("expert", "transposed"), ("hidden", "auto")} <= layouts
    model = nn.Sequential(nn.Conv1d(3, 4, 5), nn.ConvTranspose2d(4, 3, 2))
    layouts = [(g["role"], g["layout"]) for g in polargrad.parameter_groups(model) if g["rule"] == "polar"]
    assert layouts == [("conv", "convolution"), ("conv", "transposed-convolution")]


def test_frozen_parameters_stay_out_and_small_factors_are_matrices():
    layer = nn.Linear(8, 8)
    layer.requires_grad_(False)
    adapted = nn.ModuleDict({"base": layer, "A": nn.Linear(8, 2, bias=False), "B": nn.Linear(2, 8, bias=False)})
    groups = polargrad.parameter_groups(adapted)
    assert [[name for name, _ in group["params"]] for group in groups] == [["A.weight", "B.weight"]]
    assert groups[0]["role"] == "hidden"


def test_the_first_rule_wins_and_overrides_the_role():
    model = qwen2()
    rules = [
        ("*.0.*.k_proj.weight", {"lr": 1.0}),
        (nn.Linear, {"lr": 2.0}),
        (lambda name, module, p: p.shape == (64, 16), {"rule": "polar", "geometry": "right-polar",
                                                       "scale": {"name": "nuclear", "alpha": 0.5}}),
    ]  # fmt: skip
    groups = polargrad.parameter_groups(model, rules=rules, hidden={"weight_decay": 0.1})
    where = {name: group for group in groups for name, _ in group["params"]}
    assert where["model.layers.0.self_attn.k_proj.weight"]["lr"] == 1.0
    assert where["model.layers.1.self_attn.k_proj.weight"]["lr"] == 2.0
    assert where["model.layers.1.self_attn.k_proj.weight"]["weight_decay"] == 0.1
    assert where["lm_head.weight"]["lr"] == 2.0  # a Linear: the second rule comes first
    assert where["lm_head.weight"]["role"] == "head"
    assert where["model.embed_tokens.weight"]["geometry"] == "right-polar"
    polargrad.PolarGrad(groups)


def test_a_rule_may_name_a_role_only():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    groups = polargrad.parameter_groups(model, rules=[("1.*", "head")])
    assert [(group["role"], group["rule"]) for group in groups] == [("embedding", "polar"), ("head", "polar")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": [("2.*", "head")]}, "matches no trainable parameter"),
        ({"rules": [("*", {"lr": 1.0}), (nn.Linear, "head")]}, "never the first"),
        ({"rules": [("1.*", "tail")]}, "unknown role tail in a rule"),
        ({"tail": {}}, "unknown role tail"),
        ({"expert": {}}, "options for expert"),
        ({"defaults": {"hidden": {}}}, "no options for 0.weight, 1.bias.*embedding, vector"),
        ({"defaults": {"tail": {}}}, "unknown role tail in defaults"),
    ],
)
def test_errors(arguments, message):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    with pytest.raises(ValueError, match=message):
        polargrad.parameter_groups(model, **arguments)


def test_a_rule_of_another_form():
    with pytest.raises(TypeError, match="a rule starts with"):
        polargrad.parameter_groups(nn.Linear(2, 2), rules=[(3, "head")])


def test_options_are_laid_over_the_role_and_the_table_shows_what_stays():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    table = polargrad.describe_groups(polargrad.parameter_groups(model, hidden={"scale": "nuclear", "lr": 0.1}))
    for option in ("scale=nuclear", "lr=0.1", "nesterov=True", "method=newton-schulz", "max_steps=5"):
        assert f" {option}" in table.splitlines()[0]
    bare = polargrad.describe_groups(polargrad.parameter_groups(model, defaults={"hidden": {"scale": "nuclear"}}))
    assert "nesterov" not in bare
    assert "method" not in bare


def test_the_guide_has_the_rates_of_every_role():
    guide = (Path(__file__).parents[2] / "docs" / "optimizer.md").read_text()
    rows = [line.split("|")[1:4] for line in guide.splitlines() if line.startswith("| `")]
    told = {role.strip(" `"): (rule.strip(" `"), rate.strip()) for role, rule, rate in (r for r in rows if len(r) == 3)}
    for role in ROLES:
        default = role_module._DEFAULTS[role]
        assert told[role][0] == default["rule"]
        assert float(told[role][1]) == default["lr"]


def test_the_table_counts_everything():
    model = gpt2()
    groups = polargrad.parameter_groups(model)
    count = sum(p.numel() for p in model.parameters())
    for shown in (groups, polargrad.PolarGrad(groups).param_groups):
        table = polargrad.describe_groups(shown)
        assert table.splitlines()[-1].split()[-2:] == [f"{count:,}", "numbers"]
        assert "transformer.wte.weight" in table
        assert "layout=transposed" in table


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_wrapper_hides_no_role(make):
    model = make()
    wrapped = {name.removeprefix("0.0."): role for name, role in roles(nn.Sequential(nn.Sequential(model))).items()}
    assert wrapped == roles(model)


def test_each_model_below_a_wrapper_tells_of_itself_alone():
    found = roles(nn.ModuleDict({"teacher": gpt2(tied=False), "student": qwen2(), "table": nn.Embedding(5, 4)}))
    assert found["teacher.lm_head.weight"] == found["student.lm_head.weight"] == "head"
    assert found["teacher.transformer.wpe.weight"] == "position"
    assert found["table.weight"] == found["student.model.embed_tokens.weight"] == "embedding"


def test_a_part_of_a_model_leaves_what_concerns_the_others_unused():
    part = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    asked = {"rules": [("output.weight", "head"), ("1.weight", {"lr": 0.5})], "head": {"lr": 0.1}}
    groups = polargrad.parameter_groups(part, partial=True, **asked)
    others = [(role, role_module._DEFAULTS[role]["lr"]) for role in ("embedding", "vector")]
    assert [(g["role"], g["lr"]) for g in groups] == [("hidden", 0.5), *others]
    with pytest.raises(ValueError, match="unknown role tail"):
        polargrad.parameter_groups(part, partial=True, tail={})


def test_the_defaults_are_the_recipe_that_won():
    won = spec_of("muon+normalized-tables").optimizer
    ours = polargrad.PolarGrad(polargrad.parameter_groups(qwen2()))
    assert {group["role"] for group in ours.param_groups} == set(won)
    for group in ours.param_groups:
        assert {key: group[key] for key in won[group["role"]]} == dict(won[group["role"]])


def test_projections_fused_head_by_head_are_cut_by_the_heads_of_their_own_layer():
    """Also where the layer keeps the number itself and no configuration."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.GPTNeoXJapaneseModel(transformers.GPTNeoXJapaneseConfig(**sizes))
    (fused,) = [
        group
        for group in polargrad.parameter_groups(model)
        if any("query_key_value" in name for name, _ in group["params"])
    ]
    assert (fused["split"], fused["interleave"]) == ([32] * 3, 4)


def test_options_of_another_rule_are_refused_and_not_dropped():
    table = nn.Embedding(6, 4)
    with pytest.raises(ValueError, match="betas"):
        polargrad.PolarGrad(polargrad.parameter_groups(table, embedding={"betas": (0.9, 0.99)}))
    with pytest.raises(ValueError, match=r"choose rule='adamw' without a learning rate, and 0\.12"):
        polargrad.parameter_groups(table, embedding={"rule": "adamw"})
    with pytest.raises(ValueError, match="give lr as well"):
        polargrad.parameter_groups(table, rules=[("weight", {"rule": "adamw"})])
    (group,) = polargrad.parameter_groups(table, embedding={"rule": "adamw", "lr": 0.05})
    assert (group["rule"], group["lr"]) == ("adamw", 0.05)


def test_a_table_whose_columns_are_looked_up_has_its_tokens_there():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.A, self.out = nn.Parameter(torch.randn(4, 50)), nn.Linear(4, 3)

        def forward(self, tokens):
            return self.out(nn.functional.embedding(tokens, self.A.T))

    model, tokens = Turned(), torch.randint(50, (7,))
    group = polargrad.parameter_groups(model, example=tokens)[0]
    assert (group["role"], group["rule"], group["layout"]) == ("embedding", "polar", "transposed")
    optimizer, before = polargrad.PolarGrad([group]), model.A.detach().clone()
    model(tokens).square().sum().backward()
    optimizer.step()
    moved = (model.A.detach() - before).square().mean(0).sqrt()
    assert (moved > 0).sum() == len(tokens.unique())
    assert moved.max() < 0.2  # the average row of tokens moves by .2 lr = .024, in a first step each as far
