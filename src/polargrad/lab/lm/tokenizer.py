"""Byte-level BPE vocabularies: trained on a source of text and cached, or read from a file or the hub."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polargrad.lab.lm.cache import cache_folder, publish, verified_header
from polargrad.lab.lm.sources import HELD_OUT, Source, first_line
from polargrad.lab.options import check_integer
from polargrad.lab.train.progress import interruptible

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
# What tokenizers call the token that closes a text.
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
# Raise it when a change here makes the same documents and vocabulary size give another vocabulary.
_FORMAT = 1
_SMALLEST_VOCABULARY = 257  # every byte, and the end of a text


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE vocabulary: any text has tokens, and they decode to exactly that text.

    Args:
        backend: the `tokenizers.Tokenizer` that does the work.
        vocab_size: number of tokens.
        end_of_text: the token that closes every document.
        checksum: SHA-256 of the vocabulary file, in hexadecimal.
    """

    backend: tokenizers.Tokenizer
    vocab_size: int
    end_of_text: int
    checksum: str

    def __post_init__(self) -> None:
        # Without this a document that spells out "<|endoftext|>" would end there.
        self.backend.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text. A text that spells the end-of-text token gets ordinary tokens for it."""
        encode = lambda: self.backend.encode_batch_fast(list(texts), add_special_tokens=False)  # noqa: E731
        return [encoding.ids for encoding in interruptible(encode)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return self.backend.decode(list(tokens), skip_special_tokens=False)


def train_bpe(
    source: Source,
    vocab_size: int,
    *,
    documents: int = 20_000,
    held_out: float = HELD_OUT,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[float], object] = lambda seconds: None,
) -> Tokenizer:
    """A byte-level BPE vocabulary of exactly `vocab_size` tokens, trained on the first documents of a source.

    Documents that are held out are not trained on. The vocabulary is trained once and cached.

    Args:
        source: the documents.
        vocab_size: tokens in the vocabulary, at least 257: 256 bytes and the end of a text.
        documents: number of documents to read, held-out ones included.
        held_out: the share of documents held out, as for `tokenize`.
        cache: folder of cached files; None: `$POLARGRAD_CACHE`, else `~/.cache/polargrad`.
        progress: called several times a second with the seconds that the training has taken.

    Raises:
        ValueError: the size is below 257, or more than the text has merges for; or the share is out of range.
    """
    check_integer("vocab_size", vocab_size, _SMALLEST_VOCABULARY)
    rest = source.held_out(held_out)
    identity = hashlib.sha256(f"{source.identity} {rest} {documents}".encode()).hexdigest()
    path = cache_folder(cache) / f"{identity[:16]}-bpe{vocab_size}" / "tokenizer.json"
    facts = {"format": _FORMAT, "source": identity, "vocab_size": vocab_size}
    header = verified_header(path, **facts)
    if header is None:
        read = enumerate(itertools.islice(source.read(0), documents))
        texts = [document.text for number, document in read if number not in rest and document.text.strip()]
        backend = _train(texts, vocab_size, source.name, progress)
        header = publish(path, lambda part: backend.save(str(part), pretty=False), **facts)
    return dataclasses.replace(load_tokenizer(str(path)), checksum=header["sha256"])


def load_tokenizer(where: str) -> Tokenizer:
    """A tokenizer from a `tokenizer.json`, a folder that holds one, or a name on the Hugging Face hub.

    Only that file is read, which is data: no code of a model or a tokenizer is run.

    Args:
        where: the path or the name.

    Returns:
        The tokenizer. No text can spell its special tokens.

    Raises:
        FileNotFoundError: nothing is there and the hub does not know the name or cannot be reached.
        ValueError: it is not a tokenizer, or has no token that closes a text.
    """
    from tokenizers import Tokenizer as Backend

    path = Path(where).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        backend = Backend.from_file(str(path)) if path.is_file() else Backend.from_pretrained(where)
    except Exception as error:  # the library raises Exception itself
        reason = first_line(error)
        if path.is_file():
            raise ValueError(f"{path} is not a tokenizer: {reason}") from error
        raise FileNotFoundError(
            f"there is no tokenizer {where!r}: no such file, and the hub did not give one ({reason}). On a machine "
            f"with a network: `huggingface-cli download {where} tokenizer.json --local-dir FOLDER`; then give FOLDER "
            "here, or leave the tokenizer out to have one trained on the text"
        ) from error
    backend.no_truncation()
    backend.no_padding()
    closing = next((token for token in map(backend.token_to_id, _ENDS) if token is not None), None)
    if closing is None:
        raise ValueError(f"the tokenizer {where!r} has none of the tokens that close a text: {', '.join(_ENDS)}")
    checksum = hashlib.sha256(backend.to_str().encode()).hexdigest()
    return Tokenizer(backend, max(backend.get_vocab().values()) + 1, closing, checksum)


def _train(
    texts: Sequence[str], vocab_size: int, name: str, progress: Callable[[float], object]
) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    if vocab_size > _SMALLEST_VOCABULARY + sum(map(len, texts)):  # the library would make room for all of it
        raise ValueError(f"{name} has too little text for a vocabulary of {vocab_size}: ask for less or give more")
    interruptible(lambda: backend.train_from_iterator(texts, trainer, length=len(texts)), progress)
    trained = backend.get_vocab_size()
    if trained != vocab_size:
        raise ValueError(
            f"{name} has too little text for a vocabulary of {vocab_size}: it has merges for {trained} tokens; ask for "
            f"at most {trained}, or give more text"
        )
    return backend
