import pytest

from polargrad.lab.lm import decoder, tensor_cuts, tensor_plan

LAYER = "model.layers.0"


def small(**changes):
    return decoder(**{"hidden_size": 32, "layers": 1, "heads": 4, "kv_heads": 2, "vocabulary": 50, **changes})


def test_maps_are_cut_so_that_nothing_travels_between_them():
    model = small()
    cuts = tensor_cuts(model, 2)
    for name in ("q_proj", "k_proj", "v_proj"):
        assert cuts[f"{LAYER}.self_attn.{name}.weight"] == cuts[f"{LAYER}.self_attn.{name}.bias"] == 0
    assert cuts[f"{LAYER}.self_attn.o_proj.weight"] == cuts[f"{LAYER}.mlp.down_proj.weight"] == 1
    assert cuts[f"{LAYER}.mlp.up_proj.weight"] == cuts["lm_head.weight"] == cuts["model.embed_tokens.weight"] == 0
    whole = {name for name, _ in model.named_parameters()} - set(cuts)
    assert whole == {name for name in whole if "norm" in name}
    assert set(tensor_plan(model, 2)) == {name.rpartition(".")[0] for name in cuts}


def test_attention_stays_whole_where_its_heads_cannot_be_divided():
    cuts = tensor_cuts(small(), 4)  # two heads of keys and values
    assert not any("self_attn" in name for name in cuts)
    assert f"{LAYER}.mlp.up_proj.weight" in cuts


@pytest.mark.parametrize(
    ("model", "ranks", "message"),
    [
        (small(family="gpt2", kv_heads=4), 2, "known for qwen2, and this is gpt2"),
        (small(untied=False), 2, "tied"),
        (small(), 3, "divide neither the 4 heads"),
    ],
)
def test_what_cannot_be_cut(model, ranks, message):
    with pytest.raises(ValueError, match=message):
        tensor_cuts(model, ranks)
