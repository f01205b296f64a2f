"""Which way a matrix goes: to an owner, through its Gram matrix, through sums, or nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from polargrad.distributed.cost import gram_is_cheaper
from polargrad.distributed.layout import Layout
from polargrad.distributed.sums import needs_sums
from polargrad.geometry import Geometry, LeftPolar, RightPolar, Spectral
from polargrad.optim.matrix_view import MatrixView

__all__ = ["Route", "route_of", "routes_of_all"]

# From this ratio of the sides on a matrix is put together nowhere, even where that would be faster: one of them may be
# larger than what a rank has left.
_NEVER_WHOLE = 8
# Up to this one the Gram matrix is as good as the matrix, and the work on it is done by every rank.
_NEARLY_SQUARE = 2


class Route(Enum):
    """How the directions of a parameter are found.

    Attributes:
        HERE: every rank computes the whole from its copy; nothing travels.
        SUMS: every rank works on its part; one or two numbers per matrix, or the lengths of its columns, are summed.
        GRAM: every rank works on its rows; d x d matrices are summed, d the shorter side.
        OWNERS: each matrix is computed by one rank; parts go there and directions come back.
    """

    HERE = "here"
    SUMS = "sums"
    GRAM = "gram"
    OWNERS = "owners"


def route_of(
    view: MatrixView, layout: Layout, geometry: Geometry, dtype: torch.dtype = torch.float32, alike: int = 1
) -> Route:
    """The way of a parameter with this view and layout in this geometry; the same on every rank.

    Args:
        view: of the parameter.
        layout: of the parameter.
        geometry: whose direction is looked for.
        dtype: of the momentum.
        alike: how many parameters share all of that, so that as many owners work at once.
    """
    if layout.world == 1:
        return Route.HERE
    if needs_sums(geometry, view, layout):
        return Route.SUMS if layout.cut else Route.HERE
    if isinstance(geometry, Spectral | LeftPolar | RightPolar) and _is_cut_along_its_length(view, layout):
        ratio = max(view.shape) / min(view.shape)
        if ratio >= _NEVER_WHOLE or gram_is_cheaper(view, layout, geometry, dtype, alike):
            return Route.GRAM
    return Route.OWNERS


def routes_of_all(
    wanted: Sequence[tuple[Tensor, Layout, MatrixView, Geometry, torch.dtype]],
) -> dict[Tensor, Route]:
    """The ways of all parameters of an optimizer, each with its layout, view, geometry and dtype of the momentum."""
    counts = Counter(tuple(facts) for _, *facts in wanted)
    return {
        p: route_of(view, layout, geometry, dtype, counts[layout, view, geometry, dtype])
        for p, layout, view, geometry, dtype in wanted
    }


def _is_cut_along_its_length(view: MatrixView, layout: Layout) -> bool:
    """Whether it is one matrix, longer than wide, of which every rank has whole rows (columns, if it is wide)."""
    if type(view) is not MatrixView or len(view.shape) != 2:
        return False
    m, n = view.shape
    return layout.cut == {0 if m >= n else 1} and max(m, n) >= _NEARLY_SQUARE * min(m, n)
