"""Who computes which matrix: the protocol, and the single-process answer.

The optimizer hands over the matrices and the oracle (the mathematics of one direction) and gets the directions back;
where they were computed and what travelled for it is the distributor's affair alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Answer", "Distributor", "Oracle", "SingleProcess"]


# Entries of a matrix from which on a batch of them is no faster than one after the other, on a CPU.
_LARGE = 2**18


class Answer(NamedTuple):
    """What an oracle says about a batch M (k, m, n).

    Attributes:
        direction: (k, m, n), for the spectral geometry the unitary factors U.
        dual_norm: (k,), <M, U> in at least float32.
        squared_length: (k,), ||U||_F^2 (the rank, for an exact polar factor), or None where the oracle was not asked.
    """

    direction: Tensor
    dual_norm: Tensor
    squared_length: Tensor | None


Oracle = Callable[[Tensor], Answer]


class Distributor(Protocol):
    """Applies an oracle to the matrices of a step, wherever they live.

    Attributes:
        alone: whether no other rank has a say in which matrices are usable.
    """

    alone: bool

    def answers(self, questions: Iterable[Sequence[Tensor]], oracle: Oracle, workspace: int) -> Iterator[list[Answer]]:
        """For each question, a list of batches (k_i, m_i, n_i), the list of their answers, in order.

        Questions are made as they are drawn, so that a distributor may draw the next one while the matrices of the
        last still travel. Every rank draws the same number of questions.

        Args:
            questions: lists of batches.
            oracle: from a batch (k, m, n) to its answer, each matrix by itself.
            workspace: bound in bytes on a stacked batch, with at least 4 for an entry; a single matrix may exceed it.
        """
        ...

    def agree(self, usable: Tensor) -> Tensor:
        """Whether each matrix (k,) is usable on every rank that holds a part of it."""
        ...


class SingleProcess:
    """Everything here: small batches of one shape and dtype are stacked and go through the oracle together."""

    alone = True

    def answers(self, questions: Iterable[Sequence[Tensor]], oracle: Oracle, workspace: int) -> Iterator[list[Answer]]:
        """Stack, apply, take apart."""
        # A generator would keep the last question until the next one has been made.
        return map(partial(_answer, oracle=oracle, workspace=workspace), questions)

    def agree(self, usable: Tensor) -> Tensor:
        """The question itself: no other rank holds a part."""
        return usable


def _answer(batches: Sequence[Tensor], oracle: Oracle, workspace: int) -> list[Answer]:
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, batch in enumerate(batches):
        # On a CPU a large matrix fills the cores by itself, and stacking it would only copy it.
        alone = i if batch.device.type == "cpu" and batch.shape[1] * batch.shape[2] >= _LARGE else None
        alike.setdefault((batch.shape[1:], batch.dtype, batch.device, alone), []).append(i)
    found: dict[int, Answer] = {}
    for members in alike.values():
        chosen = [batches[i] for i in members]
        stacked = chosen[0] if len(chosen) == 1 else torch.cat(chosen)
        whole = _bounded(stacked, oracle, workspace)
        sizes = [len(batch) for batch in chosen]
        if len(sizes) == 1:
            found[members[0]] = whole
            continue
        parts = [[None] * len(sizes) if field is None else field.split(sizes) for field in whole]
        for i, *part in zip(members, *parts, strict=True):
            found[i] = Answer(*part)
    return [found[i] for i in range(len(batches))]


def _bounded(stacked: Tensor, oracle: Oracle, workspace: int) -> Answer:
    """The oracle over pieces of at most `workspace` bytes."""
    matrix = stacked.shape[1] * stacked.shape[2] * max(4, stacked.element_size())
    piece = max(1, workspace // max(1, matrix))
    if len(stacked) <= piece:
        return oracle(stacked)
    direction, norms, lengths = torch.empty_like(stacked), [], []
    for part, place in zip(stacked.split(piece), direction.split(piece), strict=True):
        answer = oracle(part)
        place.copy_(answer.direction)
        norms.append(answer.dual_norm)
        if answer.squared_length is not None:
            lengths.append(answer.squared_length)
    return Answer(direction, torch.cat(norms), torch.cat(lengths) if lengths else None)
