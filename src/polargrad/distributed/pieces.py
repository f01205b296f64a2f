"""What is computed in one place: pieces of parameters, and the ranks that own them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from polargrad.distributed.layout import Box, Layout
from polargrad.optim.matrix_view import FusedView, MatrixView

__all__ = ["Piece", "assign", "cost_of", "pieces_of"]


@dataclass(frozen=True)
class Piece:
    """A box of a parameter that is whole matrices, and goes through the oracle in one place.

    Args:
        box: where it is in the parameter.
        view: how it is seen as matrices.
        numbers: which of the parameter's matrices these are.
    """

    box: Box
    view: MatrixView
    numbers: tuple[int, ...]


def pieces_of(view: MatrixView) -> list[Piece]:
    """A stack of matrices falls into its matrices; any other parameter is one piece."""
    stack = view.stack if isinstance(view, FusedView) else view.batches[0][0]
    if stack == 1:
        return [Piece(Box((0,) * len(view.shape), view.shape), view, tuple(range(view.count)))]
    pieces = []
    batches = tuple((k // stack, m, n) for k, m, n in view.batches)
    shape = (1, *view.shape[1:])
    fields = {"stack": 1} if isinstance(view, FusedView) else {}
    single = dataclasses.replace(view, shape=shape, batches=batches, **fields)
    for i in range(stack):
        numbers, first = [], 0
        for (k, _, _), (each, _, _) in zip(view.batches, batches, strict=True):
            numbers += range(first + i * each, first + (i + 1) * each)
            first += k
        pieces.append(Piece(Box((i, *(0,) * (len(shape) - 1)), shape), single, tuple(numbers)))
    return pieces


def cost_of(view: MatrixView) -> float:
    """Products that a polar method spends, up to a factor: the sum of m n min(m, n)."""
    return float(sum(k * m * n * min(m, n) for k, m, n in view.batches))


def assign(wanted: Iterable[tuple[Tensor, Layout, MatrixView]], world: int) -> dict[Tensor, tuple[int, ...]]:
    """The owner of every piece of each parameter: longest first, each to the least loaded rank that may have it.

    A piece that some ranks hold whole goes to one of them, so that it need not travel there. The order is total, by
    cost and then by the order of the parameters, and depends on no rank.

    Args:
        wanted: parameters with their layouts and views, in the order that all ranks have.
        world: how many ranks there are.
    """
    entries = []
    owners: dict[Tensor, list[int]] = {}
    candidates: dict[tuple[Layout, Box], Sequence[int]] = {}
    for order, (parameter, layout, view) in enumerate(wanted):
        pieces = pieces_of(view)
        owners[parameter] = [0] * len(pieces)
        for i, piece in enumerate(pieces):
            key = (layout, piece.box)
            if key not in candidates:
                candidates[key] = layout.holders(piece.box) or range(world)
            entries.append((-cost_of(piece.view), order, i, parameter, candidates[key]))
    load = [0.0] * world
    for cost, _, i, parameter, ranks in sorted(entries, key=lambda entry: entry[:3]):
        owner = min(ranks, key=lambda rank: (load[rank], rank))
        owners[parameter][i] = owner
        load[owner] -= cost
    return {parameter: tuple(ranks) for parameter, ranks in owners.items()}
