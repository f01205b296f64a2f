"""Text of any length as memory-mapped shards of tokens in the cache: written once, checksummed, resumable.

    FOLDER/train-00000.tokens  held_out-00000.tokens  train-00001.tokens ...  each with its header beside it

A shard begins at a document, and its header says at which document the next one begins. When `tokenize` is stopped, it
loses only the shard it was writing; a damaged shard is written again from its own documents.
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
from polargrad.lab.lm.sources import HELD_OUT, Document, Source
from polargrad.lab.lm.tokenizer import Tokenizer

SHARD_TOKENS = 2**26
# Raise it when a change here makes the same source and tokenizer give other shards.
_FORMAT = 1
_DOCUMENTS_AT_ONCE = 512
# A longer text is encoded in pieces, since the tokenizer keeps some hundred bytes for each of its tokens at a time.
_PIECE = 2**20
_PARTS = ("train", "held_out")

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


class TokenFile(NamedTuple):
    """A sequence of n tokens, every document closed by the end-of-text token.

    `tokens` is an array or shards (n,) of uint16 or uint32, all below `vocab_size`; `end_of_text` is None where
    documents are not told apart.
    """

    tokens: np.ndarray | TokenShards
    vocab_size: int
    checksum: str
    end_of_text: int | None = None


class EncodedCorpus(NamedTuple):
    """The tokens to train on and those held out for evaluation."""

    train: TokenFile
    held_out: TokenFile

    @property
    def checksum(self) -> str:
        """SHA-256 over the checksums of both."""
        return hashlib.sha256((self.train.checksum + self.held_out.checksum).encode()).hexdigest()


def tokenize(
    source: Source,
    tokenizer: Tokenizer,
    *,
    held_out: float = HELD_OUT,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> EncodedCorpus:
    """The source's documents as tokens, encoded on all cores the first time and read from the cache afterwards.

    Args:
        source: the documents.
        tokenizer: the vocabulary to write them in.
        held_out: the share of documents to hold out, in (0, 0.5]; `Source.held_out` says which.
        cache: folder of cached files; None: `$POLARGRAD_CACHE`, else `~/.cache/polargrad`.
        progress: called while encoding with the number of documents and tokens so far.
        shard_tokens: training tokens in a shard, at least.

    Returns:
        The training and the held-out tokens. Damaged shards are written again, with a RuntimeWarning.

    Raises:
        ValueError: there is no text to train on or none to hold out, or the share is out of range.
    """
    rest = source.held_out(held_out)
    writer = _Writer(source, tokenizer, rest, shard_tokens, progress)
    name = f"{source.identity} {rest} {tokenizer.checksum} {tokenizer.vocab_size}"
    folder = cache_folder(cache) / f"{source.identity[:16]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "source": source.identity,
        "tokenizer": tokenizer.checksum,
        "dtype": writer.dtype.str,
        "held_out": [rest.start, rest.step],
        "shard_tokens": shard_tokens,
    }
    shards: list[_Shard] = []
    while not shards or not shards[-1].headers[0]["last"]:
        paths = [folder / f"{part}-{len(shards):05d}.tokens" for part in _PARTS]
        begin = {**facts, "first": shards[-1].headers[0]["next"] if shards else 0}
        headers = [header for header in (verified_header(path, **begin) for path in paths) if header is not None]
        usable = len(headers) == len(paths) and _fits(paths, headers, writer.dtype, tokenizer.vocab_size)
        shards.append(_Shard(paths, headers if usable else writer.write(paths, begin)))
    encoded = EncodedCorpus(*(_token_file(shards, part, writer.dtype, tokenizer) for part in range(len(_PARTS))))
    for file, purpose in zip(encoded, ("to train on", "to hold out"), strict=True):
        if not len(file.tokens):
            raise ValueError(f"{source.name} has no text {purpose}; give more documents with text in them")
    return encoded


class _Shard(NamedTuple):
    """The files of a shard, training tokens first, and their headers."""

    paths: list[Path]
    headers: list[dict[str, Any]]


def _fits(paths: list[Path], headers: list[dict[str, Any]], dtype: np.dtype[Any], vocabulary: int) -> bool:
    """Whether the tokens of a shard are in the vocabulary and its header says where the next one begins."""
    ahead, last = headers[0].get("next"), headers[0].get("last")
    if type(last) is not bool or type(ahead) is not int or not (last or ahead > headers[0]["first"]):
        return False
    sizes = [path.stat().st_size for path in paths]
    if any(size % dtype.itemsize for size in sizes):
        return False
    return all(int(np.memmap(p, dtype, "r").max()) < vocabulary for p, size in zip(paths, sizes, strict=True) if size)


class _Writer:
    """Encodes documents in order, and continues in the stream it has open where it can."""

    def __init__(
        self, source: Source, tokenizer: Tokenizer, held_out: range, shard_tokens: int, progress: Progress | None
    ) -> None:
        self._source, self._tokenizer, self._held_out = source, tokenizer, held_out
        self._shard_tokens, self._progress = shard_tokens, progress
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._stream: Iterator[Document] | None = None
        self._position, self._tokens = 0, 0

    def write(self, paths: list[Path], facts: dict[str, Any]) -> list[dict[str, Any]]:
        if self._stream is None or self._position != facts["first"]:
            self._stream, self._position = self._source.read(facts["first"]), facts["first"]
        train: list[np.ndarray] = []
        held_out: list[np.ndarray] = []
        size, last = 0, False
        while size < self._shard_tokens and not last:
            batch = list(itertools.islice(self._stream, _DOCUMENTS_AT_ONCE))
            last = len(batch) < _DOCUMENTS_AT_ONCE
            for index, tokens in enumerate(self._encode(batch), start=self._position):
                (held_out if index in self._held_out else train).append(tokens)
                self._tokens += len(tokens)
            size = sum(len(tokens) for tokens in train)
            self._position += len(batch)
            if self._progress is not None:
                self._progress(self._position, self._tokens)
        # The training file comes last: a shard without it does not count, and is written again.
        rest = publish(paths[1], lambda part: _save(part, held_out), **facts)
        ending = {"next": self._position, "last": last}
        header = publish(paths[0], lambda part: _save(part, train), **facts, **ending)
        return [header, rest]

    def _encode(self, documents: Sequence[Document]) -> Iterator[np.ndarray]:
        """The tokens of each document with the one that closes it; none for a document without text."""
        pieces = [list(_pieces(document.text)) for document in documents]
        encoded = iter(self._tokenizer.encode([piece for parts in pieces for piece in parts]))
        for parts in pieces:
            tokens = [token for _ in parts for token in next(encoded)]
            yield np.asarray([*tokens, self._tokenizer.end_of_text] if tokens else [], dtype=self.dtype)


def _pieces(text: str) -> Iterator[str]:
    """A text cut at line ends into pieces of at most `_PIECE` characters."""
    if not text.strip():
        return
    at = 0
    while len(text) - at > _PIECE:
        cut = text.rfind("\n", at + 1, at + _PIECE) + 1 or at + _PIECE
        yield text[at:cut]
        at = cut
    yield text[at:]


def _save(part: Path, arrays: Sequence[np.ndarray]) -> None:
    with part.open("wb") as file:
        for array in arrays:
            array.tofile(file)


def _token_file(shards: Sequence[_Shard], part: int, dtype: np.dtype[Any], tokenizer: Tokenizer) -> TokenFile:
    """One part, training (0) or held-out (1), of every shard, end to end."""
    arrays = [
        np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)
        for path in (shard.paths[part] for shard in shards)
    ]
    checksum = hashlib.sha256("".join(shard.headers[part]["sha256"] for shard in shards).encode()).hexdigest()
    return TokenFile(TokenShards(arrays), tokenizer.vocab_size, checksum, tokenizer.end_of_text)
