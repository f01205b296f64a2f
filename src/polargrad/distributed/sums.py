"""Geometries that need sums alone: each rank works on its part, and only norms travel."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Box, Layout
from polargrad.geometry import Columns, Entrywise, Frobenius, Geometry, Rows
from polargrad.optim.execution import LMO, DirectionRequest, Directions, statistics_dtype
from polargrad.optim.matrix_view import MatrixView

__all__ = ["by_sums", "local_slice", "matrix_index", "matrix_sums", "needs_sums", "summed_lengths"]


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
    """The sum over the entries of each of `count` matrices that are in this part, (count,)."""
    same = [dim for dim, size in enumerate(index.shape) if size == 1]
    reduced = entries.sum(dim=same, keepdim=True) if same else entries
    return reduced.new_zeros(count).index_add(0, index.expand(reduced.shape).reshape(-1), reduced.reshape(-1))


def _summed(geometry: Geometry, view: MatrixView) -> tuple[set[int], set[int]] | None:
    """For rows and columns: the dimensions that a length is summed over, and those that tell lengths apart."""
    if type(view) is not MatrixView:
        return None
    stacked = len(view.shape) == 3 and view.batches[0][0] == view.shape[0]
    batch = {0} if stacked else set()
    outputs = {1} if stacked else {0}
    inputs = set(range(len(view.shape))) - batch - outputs
    return (inputs, batch | outputs) if isinstance(geometry, Rows) else (outputs, batch | inputs)


def needs_sums(geometry: Geometry, view: MatrixView, layout: Layout) -> bool:
    """Whether the geometry of these parameters is found from parts and sums."""
    if isinstance(geometry, Entrywise | Frobenius):
        return True
    if not isinstance(geometry, Rows | Columns):
        return False
    dims = _summed(geometry, view)
    return dims is not None and (not dims[0] & layout.cut or not dims[1] & layout.cut)


def summed_lengths(geometry: Geometry, view: MatrixView, layout: Layout) -> int:
    """How many lengths of one parameter are summed over the ranks before its direction is known."""
    if isinstance(geometry, Entrywise) or not _is_cut(geometry, view, layout):
        return 0
    dims = _summed(geometry, view) if isinstance(geometry, Rows | Columns) else None
    return view.count if dims is None else math.prod(view.shape[d] for d in dims[1])


def by_sums(
    request: DirectionRequest, layout: Layout, lmo: LMO, communicator: Communicator
) -> Generator[None, None, Directions]:
    """The directions from one all-reduce of a number or two per matrix, and one of the norms where they are cut.

    - entrywise: sign(M), sum of |M|.
    - Frobenius: M / ||M||_F.
    - rows, columns: M over the lengths; where these are cut, the squares of all lengths are summed over the ranks.
    """
    view, sources, geometry = request.view, request.sources, lmo.geometry
    dtype, wide = sources[0].dtype, statistics_dtype(sources[0].dtype)
    each = view.count
    index = matrix_index(view, layout.tiles[communicator.here], sources[0].device)
    squares = _squares(sources, geometry, view, index, each)
    pending = None
    if _is_cut(geometry, view, layout):
        pending = communicator.all_reduce(torch.cat([square.reshape(-1) for square in squares]))
    yield
    if pending is not None:
        whole = (pending() / layout.copies).split([square.numel() for square in squares])
        squares = [part.view(square.shape) for part, square in zip(whole, squares, strict=True)]
    if isinstance(geometry, Frobenius):
        squares = [square[index] for square in squares]
    if isinstance(geometry, Entrywise):
        parts = [M.sgn() for M in sources]
    else:
        lengths = [torch.where(square > 0, square, 1.0).sqrt().to(dtype) for square in squares]
        parts = [M / length for M, length in zip(sources, lengths, strict=True)]
    sums = [matrix_sums(M.double() * U.double(), index, each) for M, U in zip(sources, parts, strict=True)]
    if lmo.squared_lengths:
        sums += [matrix_sums(U.double().square(), index, each) for U in parts]
    total = communicator.all_reduce(torch.cat(sums))
    yield
    columns = (total() / layout.copies).to(wide).view(-1, len(sources) * each)
    return Directions(parts, columns[0], columns[1] if lmo.squared_lengths else None)


def _squares(sources: Sequence[Tensor], geometry: Geometry, view: MatrixView, index: Tensor, each: int) -> list[Tensor]:
    """Squared lengths as far as they are here, in float64: of matrices (each,), or of rows or columns."""
    if isinstance(geometry, Entrywise):
        return []
    squares = [M.double().square() for M in sources]
    if isinstance(geometry, Frobenius):
        return [matrix_sums(square, index, each) for square in squares]
    dims = _summed(geometry, view)
    assert dims is not None
    return [square.sum(dim=tuple(dims[0]), keepdim=True) for square in squares]


def _is_cut(geometry: Geometry, view: MatrixView, layout: Layout) -> bool:
    """Whether a length has parts on several ranks."""
    if isinstance(geometry, Frobenius):
        return True
    dims = _summed(geometry, view) if isinstance(geometry, Rows | Columns) else None
    return dims is not None and bool(dims[0] & layout.cut)
