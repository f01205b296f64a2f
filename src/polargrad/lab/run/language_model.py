"""What a language-model run minimizes, as plain data: the decoder, its text, and how a step is computed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from polargrad.lab.lm import Architecture

PRECISIONS = ("float32", "bfloat16-mixed", "bfloat16")
SHUFFLES = ("windows", "documents")

__all__ = ["PRECISIONS", "SHUFFLES", "LanguageModel"]


@dataclass(frozen=True)
class LanguageModel:
    """Next-token loss of a decoder on a text corpus.

    Args:
        family: the decoder's configuration, "qwen2", "gpt2" or "mixtral".
        hidden_size: width of the residual stream.
        layers: number of blocks.
        heads: attention heads, a divisor of `hidden_size`.
        kv_heads: key and value heads, a divisor of `heads`.
        mlp: width of the feed-forward part, or of each expert.
        vocabulary: number of tokens of the model, and of the byte-level BPE where one is trained.
        sequence: tokens per sequence.
        batch: sequences per step.
        corpus: "standard-library", the path of a text file, a folder or a glob, or a data set of the Hugging Face hub.
        evaluation_windows: how many held-out sequences an evaluation averages over.
        untied: whether embedding and head are separate matrices.
        experts: experts of each block; 1 for a dense model.
        experts_per_token: how many of them each token goes to.
        subset: of a hub data set that has several; "": its own default.
        split: of a hub data set.
        field: the entry of a JSON object or of a hub data set's row that holds the text.
        documents: how many documents of the corpus to use at most; 0: all.
        held_out: the share of documents held out for evaluation.
        tokenizer: "" for a byte-level BPE trained on the corpus, else a name on the hub or a tokenizer.json.
        shuffle: what an epoch puts in a new order, "windows" of the text or whole "documents".
        accumulation: parts that a step's batch is differentiated in.
        precision: "float32"; "bfloat16-mixed": forward and backward in bfloat16 where torch deems it safe, weights and
            their updates in float32; "bfloat16": weights too.
        activation_checkpointing: compute each block's activations again in the backward pass instead of keeping them.
        compiled: forward and backward through `torch.compile`.
        device: where it runs, as torch calls it.

    Raises:
        ValueError: for a size that is not positive or does not divide what it must, or an unknown choice.
    """

    kind: ClassVar[str] = "language-model"
    metric: ClassVar[str] = "val_loss"
    metric_label: ClassVar[str] = "validation loss"
    metric_unit: ClassVar[str] = "nats per token"

    family: str = "qwen2"
    hidden_size: int = 192
    layers: int = 3
    heads: int = 3
    kv_heads: int = 3
    mlp: int = 384
    vocabulary: int = 2048
    sequence: int = 128
    batch: int = 16
    corpus: str = "standard-library"
    evaluation_windows: int = 256
    untied: bool = True
    experts: int = 1
    experts_per_token: int = 1
    subset: str = ""
    split: str = "train"
    field: str = "text"
    documents: int = 0
    held_out: float = 0.05
    tokenizer: str = ""
    shuffle: str = "windows"
    accumulation: int = 1
    precision: str = "float32"
    activation_checkpointing: bool = False
    compiled: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least = getattr(self, entry.name), 0 if entry.name == "documents" else 1
            if entry.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{entry.name} is {value!r}; give a {'positive ' if least else ''}whole number")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}; "
                "change one so that every head has the same width"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}; change one of them")
        if self.batch % self.accumulation:
            divisors = [count for count in range(1, self.batch + 1) if self.batch % count == 0]
            raise ValueError(
                f"accumulation {self.accumulation} does not divide the batch of {self.batch} sequences; it may be one "
                f"of {', '.join(map(str, divisors))}"
            )
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out is {self.held_out!r}, the share of documents held out; give one in (0, 1)")
        for name, allowed in (("precision", PRECISIONS), ("shuffle", SHUFFLES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(map(repr, allowed))}")

    def architecture(self) -> Architecture:
        """The sizes of the model."""
        from polargrad.lab.lm import Architecture

        return Architecture(**{entry.name: getattr(self, entry.name) for entry in fields(Architecture)})
