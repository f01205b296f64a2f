"""Decoders with random weights from configurations of transformers: their sizes, and published models by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from polargrad.lab.options import check_options, divisors
from polargrad.linalg.registry import Registry

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder. The defaults are the laboratory's small model: Qwen2, 1,895,424 parameters.

    Args:
        family: "qwen2" (rotary positions, RMSNorm, gated MLP), "gpt2" (learned positions, LayerNorm, plain MLP) or
            "mixtral" (like "qwen2", each MLP a mixture of experts).
        hidden_size: width of the residual stream; a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads; except for "gpt2" the width of a head must be even.
        kv_heads: heads of keys and values, a divisor of `heads`; None: as many as `heads`, which "gpt2" always has.
        mlp: width inside the MLP, or inside each expert; None: 4 hidden_size for "gpt2", else 2 hidden_size.
        vocabulary: number of tokens in the vocabulary.
        sequence: longest sequence, in tokens.
        experts: experts of each block, at least 2 for "mixtral"; 1 for the others.
        experts_per_token: number of experts that each token goes to.
        untied: whether the head has weights of its own (True) or shares the embedding's.

    Raises:
        ValueError: an unknown family, or sizes that do not fit together.
    """

    family: Literal["qwen2", "gpt2", "mixtral"] = "qwen2"
    hidden_size: int = 192
    layers: int = 3
    heads: int = 3
    kv_heads: int | None = None
    mlp: int | None = None
    vocabulary: int = 2048
    sequence: int = 128
    experts: int = 1
    experts_per_token: int = 1
    untied: bool = True

    def __post_init__(self) -> None:
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.mlp is None:
            object.__setattr__(self, "mlp", (4 if self.family == "gpt2" else 2) * self.hidden_size)
        check_options(self)
        _check_sizes(self)

    def sizes(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)

    @property
    def parameters(self) -> int:
        """Number of parameters, counted on a model without storage."""
        return sum(parameter.numel() for parameter in self.build(device="meta").parameters())

    def build(self, *, seed: int = 0, device: str = "cpu") -> PreTrainedModel:
        """The decoder with random weights; see `decoder`."""
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ImportError("decoders come from transformers: pip install 'polargrad[lab]'") from error

        with torch.random.fork_rng(devices=[]), torch.device(device):
            # Not torch.manual_seed, which would also reseed every accelerator.
            torch.default_generator.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                _configuration(self), dtype=torch.float32, attn_implementation="sdpa"
            )
        return model.train()


def decoder(family: str = "qwen2", *, seed: int = 0, device: str = "cpu", **sizes: Any) -> PreTrainedModel:
    """A decoder of transformers with random weights: nothing is downloaded and no other random stream is moved.

    Dropout is off, so that a run is a function of its seeds alone.

    Args:
        family: "qwen2", "gpt2" or "mixtral".
        seed: seed of the initial weights.
        device: "cpu", or "meta" for a model without storage, of any size, whose shapes can be looked at.
        **sizes: the other fields of `Architecture`.

    Returns:
        The model in float32 in training mode. `model(input_ids=(batch, sequence)).logits` is
        (batch, sequence, vocabulary).

    Raises:
        ValueError: an unknown family, or sizes that do not fit together.
        ImportError: transformers is not installed.

    Example:
        >>> model = decoder(hidden_size=32, layers=1, heads=2, vocabulary=300)
        >>> model.lm_head.weight.shape
        torch.Size([300, 32])
    """
    return Architecture(**{"family": family, **sizes}).build(seed=seed, device=device)


def _check_sizes(sizes: Architecture) -> None:
    family, hidden_size, heads, kv_heads = sizes.family, sizes.hidden_size, sizes.heads, sizes.kv_heads
    assert kv_heads is not None
    if (sizes.experts > 1) != (family == "mixtral") or sizes.experts_per_token > sizes.experts:
        raise ValueError(
            f"{family} cannot have {sizes.experts} experts with {sizes.experts_per_token} for each token; 'mixtral' "
            "takes at least 2 experts and no more of them for a token, the other families are dense: leave both out"
        )
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of heads {heads}; heads may be one of {divisors(hidden_size)}"
        )
    if family == "gpt2":
        if kv_heads != heads:
            raise ValueError(f"gpt2 has as many kv_heads as heads ({heads}); got {kv_heads}: give {heads} too")
        return
    if hidden_size // heads % 2:
        raise ValueError(
            f"{family} rotates pairs of entries by their position, so a head's width must be even; hidden_size "
            f"{hidden_size} over {heads} heads gives {hidden_size // heads}: choose other heads"
        )
    if heads % kv_heads:
        raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}; choose a divisor of {heads}")


def _configuration(sizes: Architecture) -> PretrainedConfig:
    from transformers import GPT2Config, MixtralConfig, Qwen2Config

    shared: dict[str, Any] = {  # by the names that every family understands
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.sequence,
        "tie_word_embeddings": not sizes.untied,
        "use_cache": False,
    }
    # The families' own numbers of these tokens lie outside a small vocabulary.
    no_tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if sizes.family == "gpt2":
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2Config(n_inner=sizes.mlp, **no_dropout, **shared, **no_tokens)
    shared |= {"intermediate_size": sizes.mlp, "num_key_value_heads": sizes.kv_heads, "attention_dropout": 0.0}
    if sizes.family == "qwen2":
        return Qwen2Config(**shared)
    return MixtralConfig(
        num_local_experts=sizes.experts,
        num_experts_per_tok=sizes.experts_per_token,
        # Without the balancing loss a few experts take every token.
        output_router_logits=True,
        **shared,
        **no_tokens,
    )


_GPT2: dict[str, Any] = {"family": "gpt2", "vocabulary": 50257, "sequence": 1024, "untied": False}
ARCHITECTURES: Registry[Architecture] = Registry("model")
# 1.9M parameters, the laboratory's small model
ARCHITECTURES.add("demo", Architecture())
# .38M parameters, for the many runs of the protocol
ARCHITECTURES.add("mini", Architecture(hidden_size=96, layers=2, heads=3, vocabulary=1024, sequence=64))
# 10.6M parameters
ARCHITECTURES.add("laptop", Architecture(hidden_size=320, layers=6, heads=5, mlp=960, vocabulary=4096, sequence=256))
# GPT-2 Small, 124M parameters
ARCHITECTURES.add("gpt2-small", Architecture(**_GPT2, hidden_size=768, layers=12, heads=12))
# GPT-2 Medium, 355M parameters
ARCHITECTURES.add("gpt2-medium", Architecture(**_GPT2, hidden_size=1024, layers=24, heads=16))
# the paper's Qwen2.5, 540,865,536 parameters (arXiv 2505.21799, section 6.4)
ARCHITECTURES.add(
    "qwen2.5-540m", Architecture(hidden_size=1024, layers=12, heads=16, mlp=4864, vocabulary=151936, sequence=512)
)
# Mixtral, 6.5M parameters: 8 experts a block, 2 for each token
ARCHITECTURES.add("moe-demo", Architecture("mixtral", experts=8, experts_per_token=2))


def architecture(name: str) -> Architecture:
    """An architecture by its name.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> architecture("gpt2-small").hidden_size
        768
    """
    return ARCHITECTURES[name]
