"""Byte-level BPE trained on a corpus, and corpora as files of token numbers; both are cached."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polargrad.lm.cache import cache_folder, publish, verified_header
from polargrad.lm.corpora import Corpus, Document

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
# Raise it when a change here makes the same corpus and vocabulary size give other tokens.
_FORMAT = 1
_SMALLEST_VOCABULARY = 257  # every byte, and the end of a text
_DOCUMENTS_AT_ONCE = 128


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE vocabulary: any text has tokens, and they decode to exactly that text.

    Args:
        backend: the `tokenizers.Tokenizer` that does the work.
        vocab_size: how many tokens there are.
        end_of_text: the token that closes every document.
        checksum: SHA-256 of the vocabulary file, in hexadecimal.
    """

    backend: tokenizers.Tokenizer
    vocab_size: int
    end_of_text: int
    checksum: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text. A text that spells the end-of-text token gets ordinary tokens for it."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return self.backend.decode(list(tokens), skip_special_tokens=False)


class TokenFile(NamedTuple):
    """A memory-mapped sequence of tokens, every document closed by the end-of-text token.

    `tokens` is a read-only memory map (n,) of uint16 or uint32, all below `vocab_size`; `end_of_text` is None where
    documents are not told apart.
    """

    tokens: np.ndarray
    vocab_size: int
    checksum: str
    end_of_text: int | None = None


class EncodedCorpus(NamedTuple):
    """A corpus as tokens."""

    train: TokenFile
    held_out: TokenFile


def train_bpe(corpus: Corpus, vocab_size: int, *, cache: str | os.PathLike[str] | None = None) -> Tokenizer:
    """A byte-level BPE vocabulary of exactly `vocab_size` tokens, learned from the corpus's training documents.

    It is learned once: the vocabulary is cached under the corpus's checksum and the size.

    Args:
        corpus: what to learn from.
        vocab_size: tokens in the vocabulary, at least 257: 256 bytes and the end of a text.
        cache: folder of cached files; None: `$POLARGRAD_CACHE`, else `~/.cache/polargrad`.

    Returns:
        The tokenizer.

    Raises:
        ValueError: the size is below 257, or more than the corpus has merges for.
    """
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < _SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size must be a whole number of at least {_SMALLEST_VOCABULARY} (256 bytes and the end of a text); "
            f"got {vocab_size!r}"
        )
    path = _folder_of(corpus, vocab_size, cache) / "tokenizer.json"
    facts = {"format": _FORMAT, "corpus": corpus.checksum, "vocab_size": vocab_size}
    header = verified_header(path, **facts)
    if header is None:
        backend = _learn(corpus, vocab_size)
        header = publish(path, lambda part: backend.save(str(part), pretty=False), **facts)
    return _load(path, header["sha256"])


def encode(corpus: Corpus, tokenizer: Tokenizer, *, cache: str | os.PathLike[str] | None = None) -> EncodedCorpus:
    """The corpus as memory-mapped files of tokens, written once and checked against their checksums when opened.

    Args:
        corpus: the documents.
        tokenizer: the vocabulary to write them in.
        cache: folder of cached files; None: `$POLARGRAD_CACHE`, else `~/.cache/polargrad`.

    Returns:
        The training and the held-out tokens; a damaged file is written again, with a RuntimeWarning.
    """
    folder = _folder_of(corpus, tokenizer.vocab_size, cache)
    return EncodedCorpus(
        _token_file(folder / "train.tokens", corpus.checksum, corpus.train, tokenizer),
        _token_file(folder / "held_out.tokens", corpus.checksum, corpus.held_out, tokenizer),
    )


def _folder_of(corpus: Corpus, vocab_size: int, cache: str | os.PathLike[str] | None) -> Path:
    return cache_folder(cache) / f"{corpus.checksum[:16]}-bpe{vocab_size}"


def _learn(corpus: Corpus, vocab_size: int) -> tokenizers.Tokenizer:
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
    backend.train_from_iterator((document.text for document in corpus.train), trainer, length=len(corpus.train))
    learned = backend.get_vocab_size()
    if learned != vocab_size:
        raise ValueError(
            f"the corpus {corpus.name!r} is too small for a vocabulary of {vocab_size}: it has merges for {learned} "
            f"tokens; ask for at most {learned}, or give more text"
        )
    return backend


def _load(path: Path, checksum: str) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(path))
    # Without this a document that spells out "<|endoftext|>" would end there.
    backend.encode_special_tokens = True
    end_of_text = backend.token_to_id(END_OF_TEXT)
    assert end_of_text is not None, "the vocabulary was learned with its end-of-text token"
    return Tokenizer(backend, backend.get_vocab_size(), end_of_text, checksum)


def _token_file(path: Path, corpus: str, documents: tuple[Document, ...], tokenizer: Tokenizer) -> TokenFile:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "corpus": corpus,
        "tokenizer": tokenizer.checksum,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.str,
    }
    header = verified_header(path, **facts)
    if header is None:
        header = publish(path, lambda part: _write_tokens(part, documents, tokenizer, dtype), **facts)
    tokens = np.memmap(path, dtype=dtype, mode="r")
    return TokenFile(tokens, tokenizer.vocab_size, header["sha256"], tokenizer.end_of_text)


def _write_tokens(path: Path, documents: Sequence[Document], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
    with path.open("wb") as file:
        for batch in _batches(documents):
            for tokens in tokenizer.encode([document.text for document in batch]):
                np.asarray([*tokens, tokenizer.end_of_text], dtype=dtype).tofile(file)


def _batches(documents: Sequence[Document]) -> Iterable[Sequence[Document]]:
    return (documents[at : at + _DOCUMENTS_AT_ONCE] for at in range(0, len(documents), _DOCUMENTS_AT_ONCE))
