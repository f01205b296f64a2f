"""Decoders by name: the sizes of published models and of small ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from polargrad.lab.lm.models import decoder


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder, as `decoder` takes them.

    Args:
        about: one line for people.
        family: the configuration of transformers, "qwen2", "gpt2" or "mixtral".
        hidden_size: width of the residual stream.
        layers: number of blocks.
        heads: attention heads.
        kv_heads: key and value heads.
        mlp: width inside the MLP, or inside each expert.
        vocabulary: number of tokens.
        sequence: tokens per sequence.
        experts: experts of each block; 1 for a dense model.
        experts_per_token: how many of them each token goes to.
        untied: whether embedding and head are separate matrices.
    """

    about: str
    family: str = "qwen2"
    hidden_size: int = 192
    layers: int = 3
    heads: int = 3
    kv_heads: int = 3
    mlp: int = 384
    vocabulary: int = 2048
    sequence: int = 128
    experts: int = 1
    experts_per_token: int = 1
    untied: bool = True

    def sizes(self) -> dict[str, Any]:
        """Everything but the line for people."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "about"}

    @property
    def parameters(self) -> int:
        """How many parameters the model has, counted on a model without storage."""
        sizes = self.sizes()
        model = decoder(**{"vocab_size": sizes.pop("vocabulary"), **sizes}, device="meta")
        return sum(parameter.numel() for parameter in model.parameters())


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "demo": Architecture("Qwen2, 1.9M parameters: the laboratory's small model"),
        "laptop": Architecture(
            "Qwen2, 10.6M parameters",
            hidden_size=320,
            layers=6,
            heads=5,
            kv_heads=5,
            mlp=960,
            vocabulary=4096,
            sequence=256,
        ),
        "gpt2-small": Architecture(
            "GPT-2 Small, 124M parameters",
            family="gpt2",
            hidden_size=768,
            layers=12,
            heads=12,
            kv_heads=12,
            mlp=3072,
            vocabulary=50257,
            sequence=1024,
            untied=False,
        ),
        "gpt2-medium": Architecture(
            "GPT-2 Medium, 355M parameters",
            family="gpt2",
            hidden_size=1024,
            layers=24,
            heads=16,
            kv_heads=16,
            mlp=4096,
            vocabulary=50257,
            sequence=1024,
            untied=False,
        ),
        "qwen2.5-540m": Architecture(
            "the paper's Qwen2.5, 540,865,536 parameters (arXiv 2505.21799, section 6.4)",
            hidden_size=1024,
            layers=12,
            heads=16,
            kv_heads=16,
            mlp=4864,
            vocabulary=151936,
            sequence=512,
        ),
        "moe-demo": Architecture(
            "Mixtral, 6.5M parameters: 8 experts a block, 2 for each token",
            family="mixtral",
            experts=8,
            experts_per_token=2,
        ),
    }
)


def architecture(name: str) -> Architecture:
    """An architecture by its name.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> architecture("gpt2-small").hidden_size
        768
    """
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no model {name!r}; {hint}the models are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
