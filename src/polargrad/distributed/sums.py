"""Directions, norms and row lengths of matrices in parts on several ranks, from sums over the ranks."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Box, Layout
from polargrad.geometry import Geometry
from polargrad.optim.execution import LMO, DirectionRequest, Directions, statistics_dtype
from polargrad.optim.matrix_view import MatrixView

__all__ = [
    "directions_by_sums",
    "local_slice",
    "matrix_index",
    "matrix_sums",
    "needs_sums_alone",
    "row_lengths",
    "row_zeros",
    "rows_are_cut",
    "rows_of",
    "summed_lengths",
]


def matrix_index(view: MatrixView, tile: Box, device: torch.device) -> Tensor:
    """The number of the matrix that each entry of a tile belongs to; broadcasts against the tile."""
    numbers = torch.arange(view.count, device=device).split([k for k, _, _ in view.batches])
    return local_slice(view.spread(list(numbers)), tile)


def local_slice(spread: Tensor, tile: Box) -> Tensor:
    """What belongs to a tile of a tensor that broadcasts against the whole parameter."""
    for dim, (size, start, length) in enumerate(zip(spread.shape, tile.start, tile.size, strict=True)):
        if size > 1 and length < size:
            spread = spread.narrow(dim, start, length)
    return spread


def matrix_sums(entries: Tensor, index: Tensor, count: int) -> Tensor:
    """The sum over the local entries of each of `count` matrices, (count,)."""
    same = [dim for dim, size in enumerate(index.shape) if size == 1]
    reduced = entries.sum(dim=same, keepdim=True) if same else entries
    return reduced.new_zeros(count).index_add(0, index.expand(reduced.shape).reshape(-1), reduced.reshape(-1))


def _dimensions(geometry: Geometry, view: MatrixView) -> tuple[set[int], set[int]]:
    """For rows and columns: the dimensions that a length is summed over, and those that tell lengths apart."""
    stacked = len(view.shape) == 3 and view.batches[0][0] == view.shape[0]
    batch = {0} if stacked else set()
    outputs = {1} if stacked else {0}
    inputs = set(range(len(view.shape))) - batch - outputs
    return (inputs, batch | outputs) if geometry.reduction == "rows" else (outputs, batch | inputs)


def needs_sums_alone(geometry: Geometry, view: MatrixView, layout: Layout) -> bool:
    """Whether directions of these parameters are found from their parts and sums."""
    if geometry.reduction in ("rows", "columns") and type(view) is MatrixView:
        summed, apart = _dimensions(geometry, view)
        return not summed & layout.cut or not apart & layout.cut
    return geometry.reduction in ("entries", "matrix")


def _lengths_are_cut(geometry: Geometry, view: MatrixView, layout: Layout) -> bool:
    """Whether the lengths that the geometry divides by have parts on several ranks."""
    if geometry.reduction in ("rows", "columns"):
        return bool(_dimensions(geometry, view)[0] & layout.cut)
    return geometry.reduction == "matrix"


def summed_lengths(geometry: Geometry, view: MatrixView, layout: Layout) -> int:
    """How many lengths of one parameter are summed over the ranks before its direction is known."""
    if not _lengths_are_cut(geometry, view, layout):
        return 0
    if geometry.reduction == "matrix":
        return view.count
    return math.prod(view.shape[d] for d in _dimensions(geometry, view)[1])


def directions_by_sums(
    request: DirectionRequest, layout: Layout, lmo: LMO, communicator: Communicator
) -> Generator[None, None, Directions]:
    """The directions from one all-reduce of a number or two per matrix, and one of the lengths where they are cut.

    Where the geometry's `reduction` is "entries", D = sign(M); else D is M over the length of the matrix, row or column
    of each entry. Lengths that are cut are summed over the ranks as squares. With a `floor` D is then multiplied by
    min(1, ||M||_F / floor), whose squares are one more number per matrix.
    """
    view, sources, geometry = request.view, request.sources, lmo.geometry
    dtype, wide = sources[0].dtype, statistics_dtype(sources[0].dtype)
    each = view.count
    index = matrix_index(view, layout.tiles[communicator.here], sources[0].device)
    squares = _squares(sources, geometry, view, index)
    pending = None
    if _lengths_are_cut(geometry, view, layout):
        pending = communicator.all_reduce(torch.cat([square.reshape(-1) for square in squares]))
    yield
    if pending is not None:
        whole = (pending() / layout.copies).split([square.numel() for square in squares])
        squares = [part.view(square.shape) for part, square in zip(whole, squares, strict=True)]
    if geometry.reduction == "entries":
        directions = [M.sgn() for M in sources]
    else:
        if geometry.reduction == "matrix":
            squares = [square[index] for square in squares]
        lengths = [torch.where(square > 0, square, 1.0).sqrt().to(dtype) for square in squares]
        directions = [M / length for M, length in zip(sources, lengths, strict=True)]
    sums = [matrix_sums(M.double() * D.double(), index, each) for M, D in zip(sources, directions, strict=True)]
    if lmo.squared_lengths:
        sums += [matrix_sums(D.double().square(), index, each) for D in directions]
    if lmo.floor:
        sums += [matrix_sums(M.double().square(), index, each) for M in sources]
    total = communicator.all_reduce(torch.cat(sums))
    yield
    columns = (total() / layout.copies).view(-1, len(sources) * each)
    nu, lengths = columns[0], columns[1] if lmo.squared_lengths else None
    if lmo.floor:
        attenuation = (columns[-1].sqrt() / lmo.floor).clamp_max(1.0)
        nu, lengths = nu * attenuation, None if lengths is None else lengths * attenuation**2
        factors = attenuation.to(wide).split(each)
        directions = [(D * factor[index]).to(dtype) for D, factor in zip(directions, factors, strict=True)]
    return Directions(directions, nu.to(wide), None if lengths is None else lengths.to(wide))


def _squares(sources: Sequence[Tensor], geometry: Geometry, view: MatrixView, index: Tensor) -> list[Tensor]:
    """The local part of squared lengths, in float64: of matrices (count,), or of rows or columns."""
    if geometry.reduction == "entries":
        return []
    squares = [M.double().square() for M in sources]
    if geometry.reduction == "matrix":
        return [matrix_sums(square, index, view.count) for square in squares]
    dims = tuple(_dimensions(geometry, view)[0])
    return [square.sum(dim=dims, keepdim=True) for square in squares]


def rows_of(view: MatrixView, tile: Box) -> Box:
    """The rows of which a tile of the parameter has entries, as a box of the view's `row_shape`."""
    inputs = set(view.input_dimensions)
    start = tuple(0 if d in inputs else a for d, a in enumerate(tile.start))
    return Box(start, tuple(1 if d in inputs else size for d, size in enumerate(tile.size)))


def rows_are_cut(view: MatrixView, layout: Layout) -> bool:
    """Whether a row has parts on several ranks."""
    return bool(layout.cut & set(view.input_dimensions))


def row_zeros(view: MatrixView, parameter: Any, dtype: torch.dtype, tile: Box) -> Tensor:
    """A zero for each row: a DTensor in the view's `row_shape`, divided by the axes that divide the parameter's rows.

    Args:
        view: of the parameter.
        parameter: a DTensor.
        dtype: of the numbers.
        tile: the part of the parameter that this rank holds.
    """
    from torch.distributed.tensor import DTensor, Replicate

    inputs = set(view.input_dimensions)
    placements = [Replicate() if getattr(one, "dim", None) in inputs else one for one in parameter.placements]
    return DTensor.from_local(
        torch.zeros(rows_of(view, tile).size, dtype=dtype, device=parameter.device),
        parameter.device_mesh,
        placements,
        run_check=False,
        shape=torch.Size(view.row_shape),
        stride=torch.empty(view.row_shape, device="meta").stride(),
    )


def row_lengths(
    lengths: Sequence[Tensor], view: MatrixView, layout: Layout, communicator: Communicator
) -> list[Tensor]:
    """The lengths of whole rows from those of their local parts; one all-reduce where rows are cut.

    Args:
        lengths: of each parameter, for its local rows.
        view: of each parameter.
        layout: of each parameter.
        communicator: the ranks, all of which call.
    """
    if not rows_are_cut(view, layout):
        return list(lengths)
    whole = Box((0,) * len(view.shape), view.row_shape)
    here = rows_of(view, layout.tiles[communicator.here]).within(whole)
    squares = lengths[0].new_zeros((len(lengths), *view.row_shape), dtype=torch.float64)
    for square, length in zip(squares, lengths, strict=True):
        square[here] = length.double().square()
    found = (communicator.all_reduce(squares)() / layout.copies).sqrt()
    return [one[here].to(length.dtype) for one, length in zip(found, lengths, strict=True)]
