import random
import sys

import numpy as np
import pytest
import torch

from polargrad.lab.lm import decoder

TINY = {"hidden_size": 32, "layers": 2, "heads": 4, "vocabulary": 300, "sequence": 16}


def test_the_small_model_has_the_size_that_the_documents_say():
    model = decoder()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_895_424
    assert model.config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.training


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_weights_are_a_function_of_the_seed(family):
    first, again, other = (decoder(family, **TINY, seed=seed) for seed in (3, 3, 4))
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_no_other_random_stream_is_moved(family):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    decoder(family, **TINY)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("untied", [True, False])
def test_head_is_tied_as_asked(family, untied):
    model = decoder(family, **TINY, untied=untied)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is not untied


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_attention_is_causal_and_there_is_no_dropout(family):
    model = decoder(family, **TINY)
    tokens = torch.arange(16).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 10] = 77
    with torch.no_grad():
        a, b, again = model(input_ids=tokens).logits, model(input_ids=changed).logits, model(input_ids=tokens).logits
    assert torch.equal(a, again)
    assert torch.equal(a[:, :10], b[:, :10])
    assert not torch.allclose(a[:, 10:], b[:, 10:])


def test_sizes_arrive_where_they_belong():
    model = decoder(**TINY, kv_heads=2, mlp=48)
    layer = model.model.layers[1]
    assert layer.self_attn.k_proj.weight.shape == (16, 32)
    assert layer.mlp.gate_proj.weight.shape == (48, 32)
    model = decoder("gpt2", **TINY)
    assert model.transformer.h[1].mlp.c_fc.weight.shape == (32, 128)
    assert model.transformer.wpe.weight.shape == (16, 32)


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("llama", {}, "family is 'llama'; allowed are 'qwen2', 'gpt2', 'mixtral'"),
        ("qwen2", {"hidden_size": 32, "heads": 5}, r"heads may be one of 1, 2, 4, 8, 16, 32$"),
        ("qwen2", {"hidden_size": 12, "heads": 4}, "must be even"),
        ("qwen2", {"hidden_size": 32, "heads": 4, "kv_heads": 3}, "choose a divisor of 4"),
        ("gpt2", {"hidden_size": 32, "heads": 4, "kv_heads": 2}, "give 4 too"),
        ("gpt2", {"layers": 0}, "layers must be an integer"),
        ("qwen2", {"mlp": 1.5}, "mlp must be an integer"),
        ("qwen2", {"vocabulary": True}, "vocabulary must be an integer"),
    ],
)
def test_impossible_sizes_are_named(family, sizes, message):
    with pytest.raises(ValueError, match=message):
        decoder(family, **sizes)


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"polargrad\[lab\]"):
        decoder(**TINY)
