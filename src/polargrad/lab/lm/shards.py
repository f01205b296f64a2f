"""Text of any length as memory-mapped shards of tokens: written once, checksummed, taken up again where it stopped.

    FOLDER/train-00000.tokens  held_out-00000.tokens  train-00001.tokens ...  each with its header beside it

A shard begins at a document and says in its header at which one the next begins. A run of `tokenize` that is stopped
loses the shard at hand; a shard that is damaged is written again from its own documents.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polargrad.lab.lm.cache import cache_folder, publish, verified_header
from polargrad.lab.lm.corpora import Corpus, Document
from polargrad.lab.lm.sources import Source
from polargrad.lab.lm.tokenization import EncodedCorpus, TokenFile, Tokenizer, learned_vocabulary

SHARD_TOKENS = 2**26
# Raise it when a change here makes the same source and tokenizer give other shards.
_FORMAT = 1
_DOCUMENTS_AT_ONCE = 512
# A longer text is encoded in pieces, since the tokenizer keeps some hundred bytes for each of its tokens at a time.
_PIECE = 2**20

Progress = Callable[[int, int], None]


class TokenShards:
    """Several arrays of tokens as one: it has a length, and is indexed by an array of places or by a slice."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = list(shards)
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: np.ndarray | slice) -> np.ndarray:
        if isinstance(places, slice):
            begin, end, step = places.indices(len(self))
            assert step == 1, "a slice of tokens is contiguous"
            begins = self._ends - [len(shard) for shard in self._shards]
            parts = [
                shard[max(begin - first, 0) : max(end - first, 0)]
                for first, shard in zip(begins.tolist(), self._shards, strict=True)
            ]
            return np.concatenate(parts)
        flat = places.ravel()
        which = np.searchsorted(self._ends, flat, side="right")
        out = np.empty(len(flat), dtype=self.dtype)
        for number in np.unique(which):
            chosen = which == number
            out[chosen] = self._shards[number][flat[chosen] - (self._ends[number] - len(self._shards[number]))]
        return out.reshape(places.shape)


def vocabulary_of(
    source: Source,
    vocab_size: int,
    *,
    documents: int = 20_000,
    held_out: float = 0.05,
    cache: str | os.PathLike[str] | None = None,
) -> Tokenizer:
    """A byte-level BPE vocabulary learned from the first documents of a source; those held out teach it nothing.

    Args:
        source: the documents.
        vocab_size: tokens in the vocabulary, as for `train_bpe`.
        documents: how many to learn from at most.
        held_out: as for `tokenize`.
        cache: folder of cached files.

    Raises:
        ValueError: there is too little text, or an option is out of range.
    """
    every = _every(held_out)

    def corpus() -> Corpus:
        drawn = list(enumerate(itertools.islice(source.read(0), documents)))
        train = tuple(document for i, document in drawn if not _is_held_out(i, every) and document.text.strip())
        return Corpus(source.name, train, tuple(document for i, document in drawn if _is_held_out(i, every)))

    identity = hashlib.sha256(f"{source.identity} {every} {documents}".encode()).hexdigest()
    return learned_vocabulary(identity, corpus, vocab_size, cache=cache)


def tokenize(
    source: Source,
    tokenizer: Tokenizer,
    *,
    held_out: float = 0.05,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> EncodedCorpus:
    """The source's documents as tokens, encoded on all cores the first time and read from the cache afterwards.

    Every k-th document is held out, k = round(1 / held_out), beginning with the second.

    Args:
        source: the documents.
        tokenizer: the vocabulary to write them in.
        held_out: the share of documents to hold out, in (0, 0.5].
        cache: folder of cached files; None: `$POLARGRAD_CACHE`, else `~/.cache/polargrad`.
        progress: told, while encoding, of the documents and tokens so far.
        shard_tokens: training tokens in a shard, at least.

    Returns:
        The training and the held-out tokens. Damaged shards are written again, with a RuntimeWarning.

    Raises:
        ValueError: there is no text, or the share is out of range.
    """
    every = _every(held_out)
    folder = cache_folder(cache) / f"{source.identity[:16]}-{tokenizer.checksum[:16]}"
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "source": source.identity,
        "tokenizer": tokenizer.checksum,
        "dtype": dtype.str,
        "every": every,
        "shard_tokens": shard_tokens,
    }
    writer = _Writer(source, tokenizer, every, shard_tokens, dtype, progress)
    shards: list[_Shard] = []
    while not shards or not shards[-1].last:
        first = shards[-1].next if shards else 0
        number = len(shards)
        place = _Place(folder / f"train-{number:05d}.tokens", folder / f"held_out-{number:05d}.tokens")
        shards.append(_found(place, {**facts, "first": first}) or writer.write(place, {**facts, "first": first}))
    train, kept = (_token_file(shards, part, dtype, tokenizer) for part in (0, 1))
    if not len(train.tokens):
        raise ValueError(f"{source.name} has no text in it; give a source with text")
    return EncodedCorpus(train, kept)


class _Place(NamedTuple):
    train: Path
    held_out: Path


class _Shard(NamedTuple):
    place: _Place
    next: int
    last: bool
    checksums: tuple[str, str]


def _found(place: _Place, facts: dict[str, Any]) -> _Shard | None:
    """A shard that is there and whole."""
    train, held_out = (verified_header(path, **facts) for path in place)
    if train is None or held_out is None:
        return None
    return _Shard(place, train["next"], train["last"], (train["sha256"], held_out["sha256"]))


class _Writer:
    """Encodes documents in order, going on in the stream it has where it can."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        every: int,
        shard_tokens: int,
        dtype: np.dtype[Any],
        progress: Progress | None,
    ) -> None:
        self._source, self._tokenizer, self._dtype = source, tokenizer, dtype
        self._every, self._shard_tokens, self._progress = every, shard_tokens, progress
        self._stream: Iterator[Document] | None = None
        self._position, self._tokens = 0, 0

    def write(self, place: _Place, facts: dict[str, Any]) -> _Shard:
        first = facts["first"]
        if self._stream is None or self._position != first:
            self._stream, self._position = self._source.read(first), first
        train: list[np.ndarray] = []
        held_out: list[np.ndarray] = []
        held, last = 0, False
        while held < self._shard_tokens and not last:
            batch = list(itertools.islice(self._stream, _DOCUMENTS_AT_ONCE))
            last = len(batch) < _DOCUMENTS_AT_ONCE
            for index, tokens in enumerate(self._encode(batch), start=self._position):
                (held_out if _is_held_out(index, self._every) else train).append(tokens)
                self._tokens += len(tokens)
            held = sum(len(tokens) for tokens in train)
            self._position += len(batch)
            if self._progress is not None:
                self._progress(self._position, self._tokens)
        # The training file comes last: a shard without it does not count, and is written again.
        kept = publish(place.held_out, lambda part: _save(part, held_out, self._dtype), **facts)
        ending = {"next": self._position, "last": last}
        header = publish(place.train, lambda part: _save(part, train, self._dtype), **facts, **ending)
        return _Shard(place, self._position, last, (header["sha256"], kept["sha256"]))

    def _encode(self, documents: Sequence[Document]) -> Iterator[np.ndarray]:
        """The tokens of each document with the one that closes it; none for a document without text."""
        pieces = [list(_pieces(document.text)) for document in documents]
        encoded = iter(self._tokenizer.encode([piece for parts in pieces for piece in parts]))
        for parts in pieces:
            tokens = [token for _ in parts for token in next(encoded)]
            yield np.asarray([*tokens, self._tokenizer.end_of_text] if tokens else [], dtype=self._dtype)


def _pieces(text: str) -> Iterator[str]:
    """A text cut at line ends into pieces of some length."""
    if not text.strip():
        return
    at = 0
    while len(text) - at > _PIECE:
        cut = text.rfind("\n", at + 1, at + _PIECE) + 1 or at + _PIECE
        yield text[at:cut]
        at = cut
    yield text[at:]


def _save(part: Path, arrays: Sequence[np.ndarray], dtype: np.dtype[Any]) -> None:
    with part.open("wb") as file:
        for array in arrays:
            array.astype(dtype, copy=False).tofile(file)


def _token_file(shards: Sequence[_Shard], part: int, dtype: np.dtype[Any], tokenizer: Tokenizer) -> TokenFile:
    """The training (0) or the held-out (1) part of every shard, end to end."""
    paths = [shard.place[part] for shard in shards]
    arrays = [
        np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype) for path in paths
    ]
    checksum = hashlib.sha256("".join(shard.checksums[part] for shard in shards).encode()).hexdigest()
    return TokenFile(TokenShards(arrays), tokenizer.vocab_size, checksum, tokenizer.end_of_text)


def _every(held_out: float) -> int:
    if not 0 < held_out <= 0.5:
        raise ValueError(f"held_out is the share of documents to hold out, above 0 and at most 0.5; got {held_out}")
    return max(2, round(1 / held_out))


def _is_held_out(index: int, every: int) -> bool:
    return index % every == 1
