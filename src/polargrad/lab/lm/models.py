"""Decoders with random weights, from configurations of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FAMILIES = ("qwen2", "gpt2", "mixtral")


def decoder(
    family: str = "qwen2",
    *,
    hidden_size: int = 192,
    layers: int = 3,
    heads: int = 3,
    kv_heads: int | None = None,
    mlp: int | None = None,
    vocab_size: int = 2048,
    sequence: int = 128,
    experts: int = 1,
    experts_per_token: int = 1,
    seed: int = 0,
    untied: bool = True,
    device: str = "cpu",
) -> PreTrainedModel:
    """A decoder of transformers with random weights: nothing is downloaded and no other random stream is moved.

    The defaults are the laboratory's small model: Qwen2, 1,895,424 parameters. Dropout is off, so that a run is a
    function of its seeds alone.

    Args:
        family: "qwen2" (rotary positions, RMSNorm, gated MLP), "gpt2" (learned positions, LayerNorm, plain MLP) or
            "mixtral" (like "qwen2", each MLP a mixture of experts).
        hidden_size: width of the residual stream; a multiple of `heads`.
        layers: how many blocks.
        heads: attention heads; but for "gpt2" the width of a head must be even.
        kv_heads: heads of keys and values, a divisor of `heads`; None: as many as `heads`. "gpt2" has no other choice.
        mlp: width inside the MLP, or inside each expert; None: 4 hidden_size for "gpt2", else 2 hidden_size.
        vocab_size: tokens in the vocabulary.
        sequence: longest sequence, in tokens.
        experts: experts of each block, at least 2 for "mixtral"; 1 for the others.
        experts_per_token: how many of them each token goes to.
        seed: of the initial weights.
        untied: the head has weights of its own (True), or shares the embedding's.
        device: "cpu", or "meta" for a model without storage, of any size, whose shapes can be looked at.

    Returns:
        The model in float32 in training mode. `model(input_ids=(batch, sequence)).logits` is
        (batch, sequence, vocab_size).

    Raises:
        ValueError: an unknown family, or sizes that do not fit together.
        ImportError: transformers is not installed.

    Example:
        >>> model = decoder(hidden_size=32, layers=1, heads=2, vocab_size=300)
        >>> model.lm_head.weight.shape
        torch.Size([300, 32])
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}: allowed are {', '.join(map(repr, FAMILIES))}")
    sizes = {
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "mlp": (4 if family == "gpt2" else 2) * hidden_size if mlp is None else mlp,
        "vocab_size": vocab_size,
        "sequence": sequence,
        "experts": experts,
        "experts_per_token": experts_per_token,
    }
    _check_sizes(family, sizes)
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ImportError("decoders come from transformers: pip install 'polargrad[lab]'") from error

    configuration = {"qwen2": _qwen2, "gpt2": _gpt2, "mixtral": _mixtral}[family](sizes, untied)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        # Not torch.manual_seed, which would also reseed every accelerator.
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(configuration, dtype=torch.float32, attn_implementation="sdpa")
    return model.train()


def _check_sizes(family: str, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {size!r}")
    experts, chosen = sizes["experts"], sizes["experts_per_token"]
    if (experts > 1) != (family == "mixtral") or chosen > experts:
        raise ValueError(
            f"{family} cannot have {experts} experts with {chosen} for each token; 'mixtral' takes at least 2 "
            "experts and no more of them for a token, the other families are dense: leave both out"
        )
    hidden_size, heads, kv_heads = sizes["hidden_size"], sizes["heads"], sizes["kv_heads"]
    if hidden_size % heads:
        divisors = [count for count in range(1, hidden_size + 1) if hidden_size % count == 0]
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of heads {heads}; heads may be one of {divisors}"
        )
    if family == "gpt2":
        if kv_heads != heads:
            raise ValueError(f"gpt2 has as many kv_heads as heads ({heads}); got {kv_heads}: leave kv_heads out")
        return
    if hidden_size // heads % 2:
        raise ValueError(
            f"{family} turns pairs of entries by their position, so a head's width must be even; hidden_size "
            f"{hidden_size} over {heads} heads gives {hidden_size // heads}: choose other heads"
        )
    if heads % kv_heads:
        raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}; choose a divisor of {heads}")


def _qwen2(sizes: dict[str, int], untied: bool) -> PretrainedConfig:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["mlp"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=sizes["sequence"],
        attention_dropout=0.0,
        tie_word_embeddings=not untied,
        use_cache=False,
    )


def _mixtral(sizes: dict[str, int], untied: bool) -> PretrainedConfig:
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["mlp"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=sizes["sequence"],
        num_local_experts=sizes["experts"],
        num_experts_per_tok=sizes["experts_per_token"],
        # Without the balancing loss a few experts take every token.
        output_router_logits=True,
        attention_dropout=0.0,
        tie_word_embeddings=not untied,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def _gpt2(sizes: dict[str, int], untied: bool) -> PretrainedConfig:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=sizes["vocab_size"],
        n_embd=sizes["hidden_size"],
        n_inner=sizes["mlp"],
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        n_positions=sizes["sequence"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=not untied,
        use_cache=False,
        # The family's own numbers lie outside a small vocabulary.
        bos_token_id=None,
        eos_token_id=None,
    )
