"""Language modelling: text, tokens, decoders, and next-token prediction as an objective."""

from __future__ import annotations

from polargrad.later import import_later

# The module of each public name, imported when the name is first used: a spec needs the sizes of a decoder alone.
_PUBLIC = {
    **dict.fromkeys(("ARCHITECTURES", "Architecture", "architecture", "decoder"), "models"),
    "LanguageModelObjective": "objective",
    **dict.fromkeys(("Document", "Source", "open_source", "standard_library", "text_files"), "sources"),
    **dict.fromkeys(("tensor_cuts", "tensor_plan"), "tensor_parallel"),
    **dict.fromkeys(("Tokenizer", "load_tokenizer", "train_bpe"), "tokenizer"),
    **dict.fromkeys(("EncodedCorpus", "TokenFile", "tokenize"), "tokens"),
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = import_later(__name__, _PUBLIC)
