"""Matrices with owners: parts are sent to the owner, directions come back, in one all-to-all each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Box, Layout, Piece
from polargrad.optim.execution import (
    LMO,
    DirectionRequest,
    Directions,
    LMOResult,
    apply_lmo,
    statistics_dtype,
)

__all__ = ["TransferPlan", "exchange", "plan_transfers"]

# Norms of matrices are sent in float64, before the entries; every message is padded to a multiple of their size.
_WORD = 8


class Move(NamedTuple):
    """A box within a piece of the parameter at that position in the request."""

    parameter: int
    piece: int
    box: Box


class TransferPlan(NamedTuple):
    """What one rank sends and receives for a request; lists have an entry for each other rank.

    Attributes:
        pieces: of each parameter.
        owned: (parameter, piece) that this rank computes.
        parts_out: moves of this rank's parts to their owners.
        parts_in: moves of parts of owned pieces.
        parts_move: whether any rank sends parts at all.
        directions_out: moves of directions of owned pieces.
        directions_in: moves of this rank's part of the directions.
        owned_by: (parameter, piece) that each rank computes.
    """

    pieces: list[Piece]
    owned: list[tuple[int, int]]
    parts_out: list[list[Move]]
    parts_in: list[list[Move]]
    parts_move: bool
    directions_out: list[list[Move]]
    directions_in: list[list[Move]]
    owned_by: list[list[tuple[int, int]]]


def plan_transfers(
    layout: Layout, source_layout: Layout, pieces: list[Piece], owners: Sequence[tuple[int, ...]], here: int
) -> TransferPlan:
    """What rank `here` sends and receives, for parameters of one layout and view.

    Args:
        layout: of each parameter.
        source_layout: of what their directions are taken of (the momentum).
        pieces: of each parameter.
        owners: for each parameter, of each of its pieces.
        here: the position of this rank.
    """
    tiles, world = layout.tiles, layout.world
    sources, replicas = source_layout.tiles, source_layout.replicas
    parts_out: list[list[Move]] = [[] for _ in range(world)]
    parts_in: list[list[Move]] = [[] for _ in range(world)]
    directions_out: list[list[Move]] = [[] for _ in range(world)]
    directions_in: list[list[Move]] = [[] for _ in range(world)]
    owned_by: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    parts_move = False
    for index, of_pieces in enumerate(owners):
        for number, (piece, owner) in enumerate(zip(pieces, of_pieces, strict=True)):
            owned_by[owner].append((index, number))
            whole = sources[owner].overlap(piece.box) == piece.box
            parts_move = parts_move or not whole
            if owner != here:
                _note(directions_in[owner], index, number, piece.box.overlap(tiles[here]))
                if not whole and replicas[here] == replicas[owner]:
                    _note(parts_out[owner], index, number, piece.box.overlap(sources[here]))
                continue
            for rank in range(world):
                if rank != here:
                    _note(directions_out[rank], index, number, piece.box.overlap(tiles[rank]))
                    if not whole and replicas[rank] == replicas[here]:
                        _note(parts_in[rank], index, number, piece.box.overlap(sources[rank]))
    return TransferPlan(
        pieces, owned_by[here], parts_out, parts_in, parts_move, directions_out, directions_in, owned_by
    )


def _note(moves: list[Move], parameter: int, piece: int, box: Box) -> None:
    if box.numel:
        moves.append(Move(parameter, piece, box))


def exchange(
    request: DirectionRequest,
    plan: TransferPlan,
    layout: Layout,
    source_layout: Layout,
    lmo: LMO,
    workspace: int,
    communicator: Communicator,
) -> Generator[None, None, Directions]:
    """The directions of a request in three phases: send parts; compute and send directions; put them in place.

    Between the phases those of other requests may run. Every rank sends each entry of its parts once, and the owner
    each entry of a direction once to every rank that holds it, with one or two numbers per matrix to every rank.
    """
    tile, source_tile = layout.tiles[communicator.here], source_layout.tiles[communicator.here]
    sources, transform = request.sources, request.transform
    parts = _sent(sources, plan, source_tile, communicator)
    gradients = None if transform is None else _sent(transform.gradients, plan, source_tile, communicator)
    yield
    wholes = _wholes(sources, plan, source_tile, parts)
    if transform is not None:
        given = _wholes(transform.gradients, plan, source_tile, gradients)
        changed = transform([index for index, _ in wholes], list(wholes.values()), list(given.values()))
        wholes = dict(zip(wholes, changed, strict=True))
    directions, answers = _computed(plan, wholes, lmo, workspace)
    numbers = _numbers(plan, answers, sources[0].device)
    messages = [
        _message(numbers, [directions[m.parameter, m.piece][m.box.within(plan.pieces[m.piece].box)] for m in to])
        for to in plan.directions_out
    ]
    messages[communicator.here] = numbers[:0].view(torch.uint8)
    columns = 1 + lmo.squared_lengths
    sizes = [
        _length(columns * _count(plan, owned), moves, sources[0].element_size())
        for owned, moves in zip(plan.owned_by, plan.directions_in, strict=True)
    ]
    sizes[communicator.here] = 0
    replies = communicator.all_to_all(torch.cat(messages), [len(message) for message in messages], sizes)
    yield
    return _placed(request, plan, tile, directions, numbers, replies().split(sizes), columns, communicator.here)


def _sent(
    tensors: Sequence[Tensor], plan: TransferPlan, tile: Box, communicator: Communicator
) -> Callable[[], Tensor] | None:
    """Send the parts of some local tensors to the owners; what waits for those of owned pieces, None if none move."""
    if not plan.parts_move:
        return None
    boxes = [tensors[m.parameter][m.box.within(tile)] for to in plan.parts_out for m in to]
    return communicator.all_to_all(_gathered(tensors[0], boxes), _sizes(plan.parts_out), _sizes(plan.parts_in))


def _gathered(like: Tensor, boxes: list[Tensor]) -> Tensor:
    """The entries of all boxes, one after the other."""
    return torch.cat([box.reshape(-1) for box in boxes]) if boxes else like.new_empty(0)


def _sizes(moves: list[list[Move]]) -> list[int]:
    return [sum(move.box.numel for move in to) for to in moves]


def _wholes(
    sources: Sequence[Tensor], plan: TransferPlan, tile: Box, parts: Callable[[], Tensor] | None
) -> dict[tuple[int, int], Tensor]:
    """The whole pieces that this rank computes."""
    wholes: dict[tuple[int, int], Tensor] = {}
    for index, number in plan.owned:
        source, box = sources[index], plan.pieces[number].box
        mine = box.overlap(tile)
        if mine == box:
            wholes[index, number] = source[box.within(tile)]
        else:
            wholes[index, number] = source.new_empty(box.size)
            if mine.numel:
                wholes[index, number][mine.within(box)] = source[mine.within(tile)]
    if parts is not None:
        moves = [move for sent in plan.parts_in for move in sent]
        for move, entries in zip(moves, parts().split([move.box.numel for move in moves]), strict=True):
            box = plan.pieces[move.piece].box
            wholes[move.parameter, move.piece][move.box.within(box)] = entries.view(move.box.size)
    return wholes


def _computed(
    plan: TransferPlan, wholes: dict[tuple[int, int], Tensor], lmo: LMO, workspace: int
) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], list[LMOResult]]]:
    views = {key: plan.pieces[key[1]].view for key in wholes}
    slots = [(key, batch) for key, whole in wholes.items() for batch in views[key].split(whole)]
    answers: dict[tuple[int, int], list[LMOResult]] = {key: [] for key in wholes}
    for (key, _), answer in zip(slots, apply_lmo(lmo, [batch for _, batch in slots], workspace), strict=True):
        answers[key].append(answer._replace(direction=answer.direction.to(wholes[key].dtype)))
    return {key: views[key].merge([a.direction for a in found]) for key, found in answers.items()}, answers


def _numbers(plan: TransferPlan, answers: dict[tuple[int, int], list[LMOResult]], device: torch.device) -> Tensor:
    """Dual norms of the owned matrices, then their squared lengths where they are needed; float64."""
    found = [answer for key in plan.owned for answer in answers[key]]
    columns = [[a.dual_norm for a in found], [a.squared_length for a in found if a.squared_length is not None]]
    vectors = [vector.to(torch.float64) for column in columns for vector in column]
    return torch.cat(vectors) if vectors else torch.empty(0, dtype=torch.float64, device=device)


def _message(numbers: Tensor, boxes: list[Tensor]) -> Tensor:
    """The numbers, then the entries of the boxes, as bytes with padding."""
    parts = [numbers.view(torch.uint8)]
    if boxes:
        entries = _gathered(boxes[0], boxes).view(torch.uint8)
        parts += [entries, entries.new_zeros(-len(entries) % _WORD)]
    return torch.cat(parts)


def _length(numbers: int, moves: list[Move], itemsize: int) -> int:
    entries = sum(move.box.numel for move in moves) * itemsize
    return _WORD * numbers + entries + -entries % _WORD


def _count(plan: TransferPlan, owned: list[tuple[int, int]]) -> int:
    return sum(len(plan.pieces[number].numbers) for _, number in owned)


@lru_cache(maxsize=4096)
def _on_device(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Positions in a table, copied to the device in the first step alone: the copy waits for all that it has to do."""
    return torch.tensor(places, device=device)


def _placed(
    request: DirectionRequest,
    plan: TransferPlan,
    tile: Box,
    directions: dict[tuple[int, int], Tensor],
    numbers: Tensor,
    replies: tuple[Tensor, ...],
    columns: int,
    here: int,
) -> Directions:
    """The local tensors of all directions, and the norms of all matrices."""
    sources = request.sources
    parts = [source.new_empty(tile.size) for source in sources]
    for (index, number), direction in directions.items():
        box = plan.pieces[number].box
        mine = box.overlap(tile)
        if mine.numel:
            parts[index][mine.within(tile)] = direction[mine.within(box)]
    each = request.view.count
    table = torch.empty(columns, each * len(sources), dtype=torch.float64, device=sources[0].device)
    for rank, (reply, owned) in enumerate(zip(replies, plan.owned_by, strict=True)):
        count = _count(plan, owned)
        theirs = numbers if rank == here else reply[: _WORD * columns * count].view(torch.float64)
        places = tuple(index * each + i for index, number in owned for i in plan.pieces[number].numbers)
        if places:
            table[:, _on_device(places, table.device)] = theirs.view(columns, count)
        moves = plan.directions_in[rank]
        if not moves:
            continue
        sizes = [move.box.numel for move in moves]
        ends = list(accumulate(sizes, initial=0))
        start = _WORD * columns * count
        entries = reply[start : start + ends[-1] * sources[0].element_size()].view(sources[0].dtype)
        for move, a, b in zip(moves, ends, ends[1:], strict=False):
            parts[move.parameter][move.box.within(tile)] = entries[a:b].view(move.box.size)
    wide = statistics_dtype(sources[0].dtype)
    return Directions(parts, table[0].to(wide), table[1].to(wide) if columns > 1 else None)
