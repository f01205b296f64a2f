"""Matrices that travel whole to their owner: parts go there, directions come back, in one all-to-all each."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Box, Layout
from polargrad.distributed.pieces import Piece, pieces_of
from polargrad.optim.execution import (
    LMO,
    DirectionRequest,
    Directions,
    LMOResult,
    apply_lmo,
    statistics_dtype,
)
from polargrad.optim.matrix_view import MatrixView

__all__ = ["Routes", "exchange", "routes_of"]

# Numbers of matrices travel in float64, before the entries; every message is padded to a multiple of their size.
_WORD = 8


class Move(NamedTuple):
    """A box of the parameter at that position in the request, part of one of its pieces."""

    parameter: int
    piece: int
    box: Box


class Routes(NamedTuple):
    """What one rank sends and receives for a request, by the rank at the other end.

    Attributes:
        pieces: of each parameter.
        owned: (parameter, piece) that this rank computes.
        parts_out: of this rank's parts, to the owners.
        parts_in: of owned pieces, from the others.
        travels: whether any rank sends parts at all.
        answers_out: of directions of owned pieces.
        answers_in: of this rank's part of the directions.
        numbers_in: (parameter, piece) that each rank owns.
    """

    pieces: list[Piece]
    owned: list[tuple[int, int]]
    parts_out: list[list[Move]]
    parts_in: list[list[Move]]
    travels: bool
    answers_out: list[list[Move]]
    answers_in: list[list[Move]]
    numbers_in: list[list[tuple[int, int]]]


def _teams(layout: Layout) -> list[list[int]]:
    """For each rank those with whom it holds every entry once: its neighbours along the axes that cut."""
    coordinates = []
    for index in range(layout.world):
        coordinate = []
        for size in reversed(layout.mesh):
            coordinate.append(index % size)
            index //= size
        coordinates.append(tuple(reversed(coordinate)))
    copied = [axis for axis, dim in enumerate(layout.dims) if dim is None]
    teams: dict[tuple[int, ...], list[int]] = {}
    for index, coordinate in enumerate(coordinates):
        teams.setdefault(tuple(coordinate[axis] for axis in copied), []).append(index)
    return [teams[tuple(coordinate[axis] for axis in copied)] for coordinate in coordinates]


def routes_of(layout: Layout, kept: Layout, view: MatrixView, owners: Sequence[tuple[int, ...]], here: int) -> Routes:
    """The routes of rank `here`, for parameters of one layout and view.

    Args:
        layout: of each parameter.
        kept: of what their directions are taken of.
        view: of each parameter.
        owners: for each parameter, of each of its pieces.
        here: the position of this rank.
    """
    pieces, tiles, world = pieces_of(view), layout.tiles, layout.world
    sources, teams = kept.tiles, _teams(kept)
    parts_out: list[list[Move]] = [[] for _ in range(world)]
    parts_in: list[list[Move]] = [[] for _ in range(world)]
    answers_out: list[list[Move]] = [[] for _ in range(world)]
    answers_in: list[list[Move]] = [[] for _ in range(world)]
    numbers_in: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    travels = False
    for index, of_pieces in enumerate(owners):
        for number, (piece, owner) in enumerate(zip(pieces, of_pieces, strict=True)):
            numbers_in[owner].append((index, number))
            whole = sources[owner].overlap(piece.box) == piece.box
            travels = travels or not whole
            if owner != here:
                _note(answers_in[owner], index, number, piece.box.overlap(tiles[here]))
                if not whole and here in teams[owner]:
                    _note(parts_out[owner], index, number, piece.box.overlap(sources[here]))
                continue
            for rank in range(world):
                if rank != here:
                    _note(answers_out[rank], index, number, piece.box.overlap(tiles[rank]))
                    if not whole and rank in teams[here]:
                        _note(parts_in[rank], index, number, piece.box.overlap(sources[rank]))
    return Routes(pieces, numbers_in[here], parts_out, parts_in, travels, answers_out, answers_in, numbers_in)


def _note(moves: list[Move], parameter: int, piece: int, box: Box) -> None:
    if box.numel:
        moves.append(Move(parameter, piece, box))


def exchange(
    request: DirectionRequest,
    routes: Routes,
    layout: Layout,
    kept: Layout,
    lmo: LMO,
    workspace: int,
    communicator: Communicator,
) -> Generator[None, None, Directions]:
    """The directions of a request in three moments: parts leave; owners compute and reply; replies are put in place.

    Between the moments other questions may have theirs. Every rank sends each entry of its parts once, and the owner
    each entry of a direction once to every rank that holds it, with one or two numbers per matrix to every rank.
    """
    sources, tile, source_tile = request.sources, layout.tiles[communicator.here], kept.tiles[communicator.here]
    parts = None
    if routes.travels:
        boxes = [sources[m.parameter][m.box.within(source_tile)] for to in routes.parts_out for m in to]
        send = _gathered(sources[0], boxes)
        parts = communicator.all_to_all(send, _sizes(routes.parts_out), _sizes(routes.parts_in))
    yield
    wholes = _wholes(request, routes, source_tile, None if parts is None else parts())
    directions, answers = _computed(routes, wholes, lmo, workspace)
    numbers = _numbers(routes, answers, sources[0].device)
    messages = [
        _message(numbers, [directions[m.parameter, m.piece][m.box.within(routes.pieces[m.piece].box)] for m in to])
        for to in routes.answers_out
    ]
    messages[communicator.here] = numbers[:0].view(torch.uint8)
    columns = 1 + lmo.squared_lengths
    sizes = [
        _length(columns * _count(routes, owned), moves, sources[0].element_size())
        for owned, moves in zip(routes.numbers_in, routes.answers_in, strict=True)
    ]
    sizes[communicator.here] = 0
    replies = communicator.all_to_all(torch.cat(messages), [len(message) for message in messages], sizes)
    yield
    return _placed(request, routes, tile, directions, numbers, replies().split(sizes), columns, communicator.here)


def _gathered(like: Tensor, boxes: list[Tensor]) -> Tensor:
    """The entries of all boxes, one after the other."""
    return torch.cat([box.reshape(-1) for box in boxes]) if boxes else like.new_empty(0)


def _sizes(moves: list[list[Move]]) -> list[int]:
    return [sum(move.box.numel for move in to) for to in moves]


def _wholes(
    request: DirectionRequest, routes: Routes, tile: Box, received: Tensor | None
) -> dict[tuple[int, int], Tensor]:
    """The pieces that this rank computes, put together."""
    wholes: dict[tuple[int, int], Tensor] = {}
    for index, number in routes.owned:
        source, box = request.sources[index], routes.pieces[number].box
        mine = box.overlap(tile)
        if mine == box:
            wholes[index, number] = source[box.within(tile)]
        else:
            wholes[index, number] = source.new_empty(box.size)
            if mine.numel:
                wholes[index, number][mine.within(box)] = source[mine.within(tile)]
    if received is not None:
        moves = [move for sent in routes.parts_in for move in sent]
        for move, entries in zip(moves, received.split([move.box.numel for move in moves]), strict=True):
            box = routes.pieces[move.piece].box
            wholes[move.parameter, move.piece][move.box.within(box)] = entries.view(move.box.size)
    return wholes


def _computed(
    routes: Routes, wholes: dict[tuple[int, int], Tensor], lmo: LMO, workspace: int
) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], list[LMOResult]]]:
    views = {key: routes.pieces[key[1]].view for key in wholes}
    slots = [(key, batch) for key, whole in wholes.items() for batch in views[key].split(whole)]
    answers: dict[tuple[int, int], list[LMOResult]] = {key: [] for key in wholes}
    for (key, _), answer in zip(slots, apply_lmo(lmo, [batch for _, batch in slots], workspace), strict=True):
        answers[key].append(answer)
    return {key: views[key].merge([a.direction for a in found]) for key, found in answers.items()}, answers


def _numbers(routes: Routes, answers: dict[tuple[int, int], list[LMOResult]], device: torch.device) -> Tensor:
    """Dual norms of the owned matrices, then their squared lengths where they were asked for; float64."""
    found = [answer for key in routes.owned for answer in answers[key]]
    columns = [[a.dual_norm for a in found], [a.squared_length for a in found if a.squared_length is not None]]
    vectors = [vector.to(torch.float64) for column in columns for vector in column]
    return torch.cat(vectors) if vectors else torch.empty(0, dtype=torch.float64, device=device)


def _message(numbers: Tensor, boxes: list[Tensor]) -> Tensor:
    """Bytes: the numbers, then the entries of the boxes, padded."""
    parts = [numbers.view(torch.uint8)]
    if boxes:
        entries = _gathered(boxes[0], boxes).view(torch.uint8)
        parts += [entries, entries.new_zeros(-len(entries) % _WORD)]
    return torch.cat(parts)


def _length(numbers: int, moves: list[Move], itemsize: int) -> int:
    entries = sum(move.box.numel for move in moves) * itemsize
    return _WORD * numbers + entries + -entries % _WORD


def _count(routes: Routes, owned: list[tuple[int, int]]) -> int:
    return sum(len(routes.pieces[number].numbers) for _, number in owned)


def _placed(
    request: DirectionRequest,
    routes: Routes,
    tile: Box,
    directions: dict[tuple[int, int], Tensor],
    numbers: Tensor,
    replies: tuple[Tensor, ...],
    columns: int,
    here: int,
) -> Directions:
    """This rank's parts of all directions, and the numbers of all matrices."""
    sources = request.sources
    parts = [source.new_empty(tile.size) for source in sources]
    for (index, number), direction in directions.items():
        box = routes.pieces[number].box
        mine = box.overlap(tile)
        if mine.numel:
            parts[index][mine.within(tile)] = direction[mine.within(box)]
    each = request.view.count
    table = torch.empty(columns, each * len(sources), dtype=torch.float64, device=sources[0].device)
    for rank, (reply, owned) in enumerate(zip(replies, routes.numbers_in, strict=True)):
        count = _count(routes, owned)
        theirs = numbers if rank == here else reply[: _WORD * columns * count].view(torch.float64)
        places = [index * each + i for index, number in owned for i in routes.pieces[number].numbers]
        if places:
            table[:, torch.tensor(places, device=table.device)] = theirs.view(columns, count)
        moves = routes.answers_in[rank]
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
