"""Who computes which matrix: the protocol, and the single-process answer.

The optimizer works on *parts*: what this process holds of a parameter, its gradient and its momentum. It hands over the
parts that directions shall be taken of, with the oracle (the mathematics of one direction), and gets back the parts of
the directions and the numbers of every matrix. Where they were computed and what travelled for it is the distributor's
affair alone. In a single process the part is the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from polargrad.optim.matrix_view import MatrixView
from polargrad.optim.nonfinite import all_within, matrices_within
from polargrad.optim.oracle import Answer, Oracle

__all__ = ["Directions", "Distributor", "Question", "SingleProcess", "apply", "distributor_for", "register"]


# Entries of a matrix from which on a batch of them is no faster than one after the other, on a CPU.
_LARGE = 2**18


class Question(NamedTuple):
    """What directions are wanted of: parameters that are seen as the same matrices.

    Attributes:
        view: how each whole parameter is seen as matrices, K of them over all parameters.
        parameters: as the group has them.
        sources: the part of each that is here, momentum or gradient, cut as the momentum is.
    """

    view: MatrixView
    parameters: Sequence[Tensor]
    sources: Sequence[Tensor]


class Directions(NamedTuple):
    """What came of a question.

    Attributes:
        parts: the directions, in the shape of the parts of the parameters.
        dual_norms: (K,), of whole matrices, ordered by parameter and then by the batches of the view.
        squared_lengths: (K,), or None where the oracle was not asked.
    """

    parts: list[Tensor]
    dual_norms: Tensor
    squared_lengths: Tensor | None


class Distributor(Protocol):
    """Applies an oracle to the matrices of a step, wherever they live."""

    def begin(self, groups: Sequence[Mapping[str, Any]], present: Sequence[Sequence[int]]) -> None:
        """A step begins, in which the parameters at the positions `present` of each group have gradients.

        Raises:
            RuntimeError: the ranks do not agree on that, or on the options; the same message on each of them.
        """
        ...

    def everywhere(self, names: list[str]) -> list[str]:
        """What this or any other rank names, sorted."""
        ...

    def part(self, tensor: Tensor) -> Tensor:
        """What this process holds of a parameter or of a state of its shape; shares its memory."""
        ...

    def gradient(self, parameter: Tensor) -> Tensor:
        """The part of a parameter's gradient."""
        ...

    def zeros(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """A momentum buffer for a parameter, of its shape, living where this distributor wants it."""
        ...

    def adopt(self, parameter: Tensor, buffer: Tensor) -> Tensor:
        """A momentum buffer that was loaded, living where `zeros` would."""
        ...

    def kept(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """What falls on this process' part of the momentum, of the part of a gradient."""
        ...

    def narrow(self, parameter: Tensor, spread: Tensor, *, kept: bool = False) -> Tensor:
        """The part of a tensor that broadcasts against the whole parameter, such as to broadcast against its part.

        Args:
            parameter: as the group has it.
            spread: the tensor.
            kept: whether to broadcast against the part of the momentum.
        """
        ...

    def row_zeros(self, view: MatrixView, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """One number per row, in the view's `row_shape`, living where the parameter's rows do."""
        ...

    def row_lengths(self, view: MatrixView, parameters: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
        """The Euclidean lengths of whole rows, as far as the rows are here.

        Args:
            view: of each parameter.
            parameters: as the group has them, `alike`.
            lengths: of what is here of their rows.
        """
        ...

    def alike(self, parameter: Tensor) -> Hashable:
        """Parameters that are to be asked about together give the same."""
        ...

    def most(self, count: int) -> int:
        """Of `count` parameters that are alike, how many to ask about at once."""
        ...

    def usable(
        self,
        view: MatrixView | None,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        limit: float,
        *,
        masked: bool,
    ) -> Tensor | None:
        """Whether the entries of each matrix are numbers of size at most `limit`, on every rank: bool (K,).

        Args:
            view: of each parameter; None takes each parameter as one matrix.
            parameters: as the group has them.
            gradients: their parts.
            limit: for all of them.
            masked: whether the host may not look; otherwise None says that all of them are usable.
        """
        ...

    def answers(self, questions: Iterable[Question], oracle: Oracle, workspace: int) -> Iterator[Directions]:
        """The directions of each question, in order.

        Questions are made as they are drawn, so that a distributor may draw the next one while the matrices of the
        last still travel. Every rank draws the same number of questions.

        Args:
            questions: about parameters that are `alike`, each.
            oracle: from a batch (k, m, n) to its answer, each matrix by itself.
            workspace: bound in bytes on a stacked batch, with at least 4 for an entry; a single matrix may exceed it.
        """
        ...


class SingleProcess:
    """Everything here: small batches of one shape and dtype are stacked and go through the oracle together."""

    def begin(self, groups: Sequence[Mapping[str, Any]], present: Sequence[Sequence[int]]) -> None:
        """Nothing to agree on."""

    def everywhere(self, names: list[str]) -> list[str]:
        """The names themselves."""
        return names

    def part(self, tensor: Tensor) -> Tensor:
        """The whole."""
        return tensor

    def gradient(self, parameter: Tensor) -> Tensor:
        """The gradient."""
        assert parameter.grad is not None
        return parameter.grad

    def zeros(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Of the parameter's memory format."""
        return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)

    def adopt(self, parameter: Tensor, buffer: Tensor) -> Tensor:
        """The buffer."""
        return buffer

    def kept(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The whole."""
        return gradient

    def narrow(self, parameter: Tensor, spread: Tensor, *, kept: bool = False) -> Tensor:
        """The whole."""
        return spread

    def row_zeros(self, view: MatrixView, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Of all rows."""
        return torch.zeros(view.row_shape, dtype=dtype, device=parameter.device)

    def row_lengths(self, view: MatrixView, parameters: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
        """Those: rows are whole."""
        return list(lengths)

    def alike(self, parameter: Tensor) -> Hashable:
        """All are."""
        return None

    def most(self, count: int) -> int:
        """All of them."""
        return count

    def usable(
        self,
        view: MatrixView | None,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        limit: float,
        *,
        masked: bool,
    ) -> Tensor | None:
        """What is seen here; where the host may look, one pass that mostly ends the matter."""
        if not masked and all_within(gradients, limit):
            return None
        if view is None:
            return matrices_within([g.reshape(1, 1, -1) for g in gradients], limit)
        return matrices_within(list(chain.from_iterable(map(view.split, gradients))), limit)

    def answers(self, questions: Iterable[Question], oracle: Oracle, workspace: int) -> Iterator[Directions]:
        """Take apart, apply, put together."""
        # A generator would keep the last question until the next one has been made.
        return map(partial(_answer, oracle=oracle, workspace=workspace), questions)


def _answer(question: Question, oracle: Oracle, workspace: int) -> Directions:
    view = question.view
    answers = apply(oracle, list(chain.from_iterable(map(view.split, question.sources))), workspace)
    slots = len(view.batches)
    directions = [answer.direction for answer in answers]
    parts = [view.merge(directions[i : i + slots]) for i in range(0, len(directions), slots)]
    lengths = [answer.squared_length for answer in answers if answer.squared_length is not None]
    return Directions(parts, _joined([answer.dual_norm for answer in answers]), _joined(lengths) if lengths else None)


Maker = Callable[[Any, Sequence[Mapping[str, Any]], bool], "Distributor | None"]
_MAKERS: list[Maker] = []


def register(maker: Maker) -> Maker:
    """Decorator: ask this function first, with the arguments of `distributor_for`."""
    _MAKERS.insert(0, maker)
    return maker


def distributor_for(
    process_group: Any, groups: Sequence[Mapping[str, Any]], shard_momentum: bool = False
) -> Distributor:
    """The distributor of the first maker that has one for these parameters; by itself a single process.

    Args:
        process_group: of torch.distributed, or None.
        groups: the parameter groups.
        shard_momentum: whether each rank keeps a part of the momentum of what all have copies of.
    """
    for maker in _MAKERS:
        made = maker(process_group, groups, shard_momentum)
        if made is not None:
            return made
    return SingleProcess()


def _joined(vectors: list[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def apply(oracle: Oracle, batches: Sequence[Tensor], workspace: int) -> list[Answer]:
    """The answer to each batch (k_i, m_i, n_i); batches that are alike are stacked, up to `workspace` bytes."""
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
