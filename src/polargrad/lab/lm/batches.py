"""The windows of a token file that a step trains on: a function of the seed and the step's number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from polargrad.lab.lm.tokens import TokenFile
from polargrad.lab.options import check_integer

_SCANNED = 2**24  # tokens read at a time

SHUFFLES = ("documents", "windows")


class WindowBatches:
    """Batches of windows of S + 1 tokens, each window once an epoch, in an order drawn from (seed, epoch).

    With `shuffle="documents"` an epoch joins the documents in a new order into one stream, cuts it into windows and
    takes these in a new order too. With "windows" it cuts the file in its own order, at borders shifted anew each
    epoch. A step's batch is a function of (seed, step) alone, so any position can be returned to exactly.

    Args:
        file: the tokens.
        batch_size: windows in a batch.
        sequence: S, predicted tokens in a window.
        seed: seed of the order.
        shuffle: "documents" or "windows".

    Raises:
        ValueError: the file is shorter than one window, has no documents to shuffle, or an option is out of range.
    """

    def __init__(
        self, file: TokenFile, *, batch_size: int = 16, sequence: int = 128, seed: int = 0, shuffle: str = "windows"
    ) -> None:
        for name, size in (("batch_size", batch_size), ("sequence", sequence)):
            check_integer(name, size)
        check_integer("seed", seed, 0)
        if shuffle not in SHUFFLES:
            raise ValueError(f"shuffle must be one of {', '.join(map(repr, SHUFFLES))}; got {shuffle!r}")
        self.batch_size, self.sequence, self.seed, self.shuffle = batch_size, sequence, seed, shuffle
        self._tokens, self._checksum = file.tokens, file.checksum
        fitting = window_count(file, sequence, "training")
        # One window fewer than fit leaves the borders room to shift by a whole sequence.
        self._windows = fitting if shuffle == "documents" else max(1, fitting - 1)
        self._documents = _documents(file) if shuffle == "documents" else None
        self._epoch: tuple[int, _Order] | None = None
        self._next = 0

    @property
    def windows(self) -> int:
        """Windows in an epoch."""
        return self._windows

    def batch(self, step: int) -> np.ndarray:
        """The windows (B, S + 1) of a step, int64; steps count from 0."""
        self._next = step + 1
        drawn = np.arange(step * self.batch_size, self._next * self.batch_size)
        epochs, places = np.divmod(drawn, self._windows)
        parts = [self._order(int(epoch)).places(places[epochs == epoch], self.sequence) for epoch in np.unique(epochs)]
        return self._tokens[np.concatenate(parts)].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """The position and everything the order depends on, as plain data: the step after the last one drawn."""
        return {"step": self._next, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a position.

        Raises:
            ValueError: the state is of other tokens, or of another order; the message names every difference.
        """
        own = self._identity()
        changed = [f"{key} was {state.get(key)!r} and is {own[key]!r}" for key in own if state.get(key) != own[key]]
        if changed:
            raise ValueError(
                f"the saved position belongs to another order of batches: {'; '.join(changed)}. Give the same data and "
                "options as before, or begin a new run"
            )
        self._next = int(state["step"])

    def _identity(self) -> dict[str, Any]:
        return {
            "tokens": self._checksum,
            **{name: getattr(self, name) for name in ("batch_size", "sequence", "seed", "shuffle")},
        }

    def _order(self, epoch: int) -> _Order:
        if self._epoch is None or self._epoch[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            make = self._shifted if self._documents is None else self._shuffled
            self._epoch = (epoch, make(random))
        return self._epoch[1]

    def _shifted(self, random: np.random.Generator) -> _Order:
        room = len(self._tokens) - 1 - self._windows * self.sequence
        shift = int(random.integers(min(room, self.sequence - 1) + 1))
        return _Order(random.permutation(self._windows) * self.sequence + shift, None, None)

    def _shuffled(self, random: np.random.Generator) -> _Order:
        assert self._documents is not None
        begins, lengths = self._documents
        order = random.permutation(len(begins))
        ends = np.cumsum(lengths[order])
        # What to add to a place in the shuffled stream to have its place in the file, document by document.
        offsets = begins[order] - (ends - lengths[order])
        return _Order(random.permutation(self._windows) * self.sequence, ends, offsets)


class _Order(NamedTuple):
    """An epoch: where each of its windows begins, and for shuffled documents how its stream maps to the file."""

    starts: np.ndarray
    ends: np.ndarray | None
    offsets: np.ndarray | None

    def places(self, windows: np.ndarray, sequence: int) -> np.ndarray:
        """The places in the file (windows, sequence + 1) of some windows' tokens."""
        stream = self.starts[windows][:, None] + np.arange(sequence + 1)
        if self.ends is None or self.offsets is None:
            return stream
        return stream + self.offsets[np.searchsorted(self.ends, stream, side="right")]


def window_count(file: TokenFile, sequence: int, role: str) -> int:
    """Number of windows of `sequence` predicted tokens that fit into a file; `role` names it in errors.

    Raises:
        ValueError: none fits.
    """
    count = (len(file.tokens) - 1) // sequence
    if count < 1:
        raise ValueError(
            f"the {role} text has {len(file.tokens)} tokens, and one sequence needs {sequence + 1}: give more text, or "
            f"a sequence of at most {max(1, len(file.tokens) - 1)}"
        )
    return count


def _documents(file: TokenFile) -> tuple[np.ndarray, np.ndarray]:
    """Where each document begins, and its length with the token that closes it."""
    if file.end_of_text is None:
        raise ValueError("no token closes the documents of these tokens; shuffle='windows' needs no documents")
    ends = np.concatenate(
        [
            np.flatnonzero(file.tokens[at : at + _SCANNED] == file.end_of_text) + at + 1
            for at in range(0, len(file.tokens), _SCANNED)
        ]
    )
    if not len(ends) or ends[-1] != len(file.tokens):
        ends = np.append(ends, len(file.tokens))
    begins = np.concatenate(([0], ends[:-1]))
    return begins, ends - begins
