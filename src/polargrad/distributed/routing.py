"""Which way a matrix goes: to an owner, through its Gram matrix, through sums, or nowhere."""

from __future__ import annotations

from enum import Enum

from polargrad.distributed.layout import Layout
from polargrad.distributed.sums import needs_sums
from polargrad.geometry import Geometry, LeftPolar, RightPolar, Spectral
from polargrad.optim.matrix_view import MatrixView

__all__ = ["Route", "route_of"]

# From this ratio of the sides on, the passes over d x d Gram matrices cost less than sending the matrix.
_TALL = 8


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


def route_of(view: MatrixView, layout: Layout, geometry: Geometry) -> Route:
    """The way of a parameter with this view and layout in this geometry; the same on every rank."""
    if layout.world == 1:
        return Route.HERE
    if needs_sums(geometry, view, layout):
        return Route.SUMS if layout.cut else Route.HERE
    if isinstance(geometry, Spectral | LeftPolar | RightPolar) and _is_cut_along_its_length(view, layout):
        return Route.GRAM
    return Route.OWNERS


def _is_cut_along_its_length(view: MatrixView, layout: Layout) -> bool:
    """Whether it is one matrix, much longer than wide, of which every rank has whole rows (columns, if it is wide)."""
    if type(view) is not MatrixView or len(view.shape) != 2:
        return False
    m, n = view.shape
    return layout.cut == {0 if m >= n else 1} and max(m, n) >= _TALL * min(m, n)
