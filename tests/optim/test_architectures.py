"""Roles in models of transformers, and that each learns at the defaults; `benchmarks/architectures.py` prints all."""

import pytest
from torch import nn

pytest.importorskip("transformers")

from benchmarks.architectures import ARCHITECTURES, build, found_roles, train

import polargrad
from polargrad.optim.matrix_view import VIEW_OPTIONS

QUICK = ["gpt2", "gpt-neox", "falcon", "xlnet", "gpt-oss", "dbrx", "deepseek-v3", "mamba2", "t5", "swin", "regnet",
         "wav2vec2"]  # fmt: skip
# By the formulas of the models: how rows are cut after the product, which dimension is contracted.
EXPECTED = {
    "gpt2": {
        "transformer.wte.weight": ("tied", {}),
        "transformer.wpe.weight": ("position", {}),
        "transformer.h.0.attn.c_attn.weight": ("hidden", {"layout": "transposed", "split": [32, 32, 32]}),
    },
    "gpt-neox": {
        "gpt_neox.layers.0.attention.query_key_value.weight": ("hidden", {"split": [32] * 3, "interleave": 4}),
    },
    "falcon": {"transformer.h.0.self_attention.query_key_value.weight": ("hidden", {"split": [32, 8, 8]})},
    "xlnet": {
        "transformer.layer.0.rel_attn.q": ("hidden", {"layout": "ioo"}),
        "transformer.layer.0.rel_attn.o": ("hidden", {"layout": "convolution"}),
        "transformer.layer.0.rel_attn.r_w_bias": ("position", {}),
    },
    "gpt-oss": {
        "model.layers.0.mlp.experts.gate_up_proj": (
            "expert", {"layout": "transposed", "split": [48, 48], "interleave": 48}),
        "model.layers.0.mlp.experts.gate_up_proj_bias": ("vector", {}),
    },
    "dbrx": {
        "transformer.blocks.0.ffn.experts.mlp.w1": ("expert", {"stack": 4}),
        "transformer.blocks.0.ffn.experts.mlp.w2": ("expert", {"layout": "transposed", "stack": 4}),
        "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight": ("hidden", {"split": [32, 16, 16]}),
    },
    "deepseek-v3": {
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": ("hidden", {"split": [8, 4]}),
        "model.layers.0.self_attn.kv_b_proj.weight": ("hidden", {"split": [16, 32], "interleave": 4}),
    },
    "mamba": {"backbone.layers.0.mixer.A_log": ("vector", {})},
    "mamba2": {
        "backbone.layers.0.mixer.in_proj.weight": ("hidden", {"split": [64, 64, 4, 4, 8]}),
        "backbone.layers.0.mixer.conv1d.weight": ("vector", {}),
    },
    "t5": {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("position", {})},
    "swin": {
        "swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table": (
            "position", {}),
        "classifier.weight": ("head", {}),
    },
    "regnet": {"regnet.encoder.stages.0.layers.0.layer.1.convolution.weight": ("conv", {"stack": 2})},
    "perceiver": {
        "perceiver.embeddings.latents": ("position", {}),
        "perceiver.decoder.decoder.final_layer.weight": ("head", {}),
    },
    "wav2vec2": {
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1": (
            "conv", {"layout": "convolution", "stack": 2}),
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0": ("vector", {}),
    },
    "marian": {"model.decoder.embed_tokens.weight": ("embedding", {}), "lm_head.weight": ("head", {})},
    "gemma3n": {"model.embed_tokens_per_layer.weight": ("embedding", {})},
    "musicgen": {f"lm_heads.{i}.weight": ("head", {}) for i in range(3)},
    "fsmt": {"model.decoder.output_projection.weight": ("head", {}),
             "model.decoder.embed_tokens.weight": ("embedding", {})},
    "clip": {"vision_model.embeddings.position_embedding.weight": ("position", {}),
             "text_model.embeddings.token_embedding.weight": ("embedding", {})},
    "sam": {"vision_encoder.layers.0.attn.rel_pos_h": ("position", {}),
            "vision_encoder.layers.0.attn.qkv.weight": ("hidden", {"split": [32, 32, 32]})},
    "llama4": {"model.layers.0.feed_forward.experts.gate_up_proj": (
        "expert", {"layout": "transposed", "split": [48, 48]})},
    "encodec": {"encoder.layers.7.lstm.weight_ih_l0": ("hidden", {"split": [16] * 4})},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_an_architecture_has_the_right_roles_and_learns(name):
    model, batch = build(name)
    found = {}
    for group in polargrad.parameter_groups(model, example=batch):
        view = {key: group[key] for key in VIEW_OPTIONS if key in group}
        found.update({name: (group["role"], view) for name, _ in group["params"]})
    expected = EXPECTED.get(name, {})
    assert {parameter: found[parameter] for parameter in expected} == expected
    for owner, module in model.named_modules():
        role = found.get(f"{owner}.weight", (None,))[0]
        if isinstance(module, nn.Linear) and min(module.weight.shape) > 1:
            assert role in (None, "hidden", "head", "tied")
        if isinstance(module, nn.Embedding):
            assert role in (None, "embedding", "position", "tied")
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            depthwise = module.groups == module.in_channels == module.out_channels
            assert role in (None, "vector" if depthwise else "conv")
    assert all(role == "vector" for name, (role, _) in found.items() if model.get_parameter(name).ndim < 2)
    first, last, skipped = train(model, batch)
    assert last < first
    assert skipped == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["gpt2", "gpt-neox", "bloom", "falcon", "phi3", "mpt", "codegen", "persimmon", "gpt-bigcode", "gpt-oss", "llama4",
     "xlnet", "bert-classifier", "fsmt", "marian", "musicgen", "clip", "gemma3n", "swin", "modernbert", "canine"],
)  # fmt: skip
def test_roles_and_matrices_without_an_example_are_those_with_one(name):
    """Fused projections, three-dimensional ones and heads, of which the classes of transformers tell."""
    model, batch = build(name)
    assert found_roles(model, None) == found_roles(model, batch)


def test_falcon_stores_its_projections_in_three_ways():
    needs = ({"new_decoder_architecture": True, "num_kv_heads": 2}, {"multi_query": False}, {"multi_query": True})
    for more in needs:
        model, batch = build("falcon", **more)
        assert found_roles(model, None) == found_roles(model, batch)


def test_what_only_an_example_tells_is_named():
    model, batch = build("mamba")
    with pytest.warns(UserWarning, match=r"how the rows of backbone.layers.0.mixer.in_proj.*; give example=batch"):
        static = found_roles(model, None)
    watched = found_roles(model, batch)
    differing = {p.partition("mixer.")[2] for p in static if static[p] != watched[p]}
    assert differing == {"in_proj.weight", "x_proj.weight"}
