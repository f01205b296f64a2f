"""Numbers for each row of matrices that are divided among ranks: they live where the rows do.

Where rows are whole nothing travels; where they are cut, the squared lengths of all rows are summed over the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Box, Layout
from polargrad.optim.matrix_view import MatrixView

__all__ = ["row_lengths", "row_zeros", "rows_are_cut", "rows_of"]


def rows_of(view: MatrixView, tile: Box) -> Box:
    """The rows that a tile of the parameter has entries of, as a box of the view's `row_shape`."""
    inputs = set(view.input_dimensions)
    start = tuple(0 if d in inputs else a for d, a in enumerate(tile.start))
    return Box(start, tuple(1 if d in inputs else size for d, size in enumerate(tile.size)))


def rows_are_cut(view: MatrixView, layout: Layout) -> bool:
    """Whether a row has parts on several ranks."""
    return bool(layout.cut & set(view.input_dimensions))


def row_zeros(view: MatrixView, parameter: Any, dtype: torch.dtype, tile: Box) -> Tensor:
    """A DTensor in the view's `row_shape`, cut by the axes that cut the rows of the DTensor `parameter` apart.

    Args:
        view: of the parameter.
        parameter: a DTensor.
        dtype: of the numbers.
        tile: what this rank holds of the parameter.
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
    """The lengths of whole rows, of those of their parts that are here; one all-reduce where rows are cut.

    Args:
        lengths: of each parameter, for the rows that are here.
        view: of each parameter.
        layout: of each parameter.
        communicator: the ranks; each of them calls, whatever it holds.
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
