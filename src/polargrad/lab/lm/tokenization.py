"""Byte-level BPE trained on a corpus, and corpora as files of token numbers; both are cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polargrad.lab.lm.cache import cache_folder, publish, verified_header
from polargrad.lab.lm.corpora import Corpus, Document

if TYPE_CHECKING:
    import tokenizers

    from polargrad.lab.lm.shards import TokenShards

END_OF_TEXT = "<|endoftext|>"
# What tokenizers call the token that closes a text.
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
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

    tokens: np.ndarray | TokenShards
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
    return learned_vocabulary(corpus.checksum, lambda: corpus, vocab_size, cache=cache)


def learned_vocabulary(
    identity: str, corpus: Callable[[], Corpus], vocab_size: int, *, cache: str | os.PathLike[str] | None = None
) -> Tokenizer:
    """`train_bpe` of a corpus that need not be read where its vocabulary is cached.

    Args:
        identity: changes whenever the corpus may.
        corpus: gives what to learn from.
        vocab_size: tokens in the vocabulary.
        cache: folder of cached files.
    """
    path = cache_folder(cache) / f"{identity[:16]}-bpe{vocab_size}" / "tokenizer.json"
    facts = {"format": _FORMAT, "corpus": identity, "vocab_size": vocab_size}
    header = verified_header(path, **facts)
    if header is None:
        backend = _learn(corpus(), vocab_size)
        header = publish(path, lambda part: backend.save(str(part), pretty=False), **facts)
    return _load(path, header["sha256"])


def load_tokenizer(where: str) -> Tokenizer:
    """A tokenizer from a `tokenizer.json`, a folder that holds one, or a name on the Hugging Face hub.

    Only that file is read, which is data: no code of a model or a tokenizer is run.

    Args:
        where: the path or the name.

    Returns:
        The tokenizer. Its special tokens cannot be spelled by a text.

    Raises:
        FileNotFoundError: nothing is there and the hub knows no such name or cannot be reached.
        ValueError: it is not a tokenizer, or has no token that closes a text.
    """
    from tokenizers import Tokenizer as Backend

    path = Path(where).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        backend = Backend.from_file(str(path)) if path.is_file() else Backend.from_pretrained(where)
    except Exception as error:  # the library raises Exception itself
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if path.is_file():
            raise ValueError(f"{path} is not a tokenizer: {reason}") from error
        raise FileNotFoundError(
            f"there is no tokenizer {where!r}: no such file, and the hub did not give one ({reason}). Where there is a "
            f"network: `huggingface-cli download {where} tokenizer.json --local-dir FOLDER`; then give FOLDER here, or "
            "leave the tokenizer out to have one trained on the text"
        ) from error
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    closing = next((token for token in map(backend.token_to_id, _ENDS) if token is not None), None)
    if closing is None:
        raise ValueError(f"the tokenizer {where!r} has none of the tokens that close a text: {', '.join(_ENDS)}")
    checksum = hashlib.sha256(backend.to_str().encode()).hexdigest()
    return Tokenizer(backend, max(backend.get_vocab().values()) + 1, closing, checksum)


def encode(corpus: Corpus, tokenizer: Tokenizer, *, cache: str | os.PathLike[str] | None = None) -> EncodedCorpus:
    """The corpus as memory-mapped files of tokens, written once and checked against their checksums when opened.

    Args:
        corpus: the documents.
        tokenizer: the vocabulary to write them in.
        cache: folder of cached files; None: `$POLARGRAD_CACHE`, else `~/.cache/polargrad`.

    Returns:
        The training and the held-out tokens; a damaged file is written again, with a RuntimeWarning.
    """
    folder = cache_folder(cache) / f"{corpus.checksum[:16]}-{tokenizer.checksum[:16]}-{tokenizer.vocab_size}"
    return EncodedCorpus(
        _token_file(folder / "train.tokens", corpus.checksum, corpus.train, tokenizer),
        _token_file(folder / "held_out.tokens", corpus.checksum, corpus.held_out, tokenizer),
    )


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
