"""How the directions of a parameter are found: by an owner, through its Gram matrix, by sums, or on every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polargrad.distributed.cost import gram_is_cheaper
from polargrad.distributed.layout import Box, Layout, pieces_of
from polargrad.distributed.sums import needs_sums_alone
from polargrad.geometry import Geometry
from polargrad.optim.matrix_view import MatrixView
from polargrad.optim.options import resolve
from polargrad.optim.update import PolarRule

__all__ = ["PolarParameter", "Strategy", "assign_owners", "choose_strategies", "choose_strategy", "polar_parameters"]

# From this ratio of the sides on a matrix is never put together in one place, even where that would be faster: it may
# be larger than what a rank has left.
_NEVER_WHOLE = 8
# Up to this ratio the Gram matrix is as large as the matrix, and every rank would do the work on it.
_NEARLY_SQUARE = 2


class Strategy(Enum):
    """How the directions of a parameter are found.

    Attributes:
        REPLICATED: every rank computes the directions of its copy; nothing is sent.
        REDUCE: every rank works on its part; one or two numbers per matrix, or the lengths of its rows or columns, are
            summed.
        GRAM: every rank works on its rows; d x d matrices are summed, d the shorter side.
        OWNER: each matrix is computed by one rank; parts are sent there and directions come back.
    """

    REPLICATED = "replicated"
    REDUCE = "reduce"
    GRAM = "gram"
    OWNER = "owner"


class PolarParameter(NamedTuple):
    """A parameter of a polar group, and what its strategy depends on.

    Attributes:
        parameter: as the group has it.
        layout: how it lives on the ranks.
        view: how it is split into matrices.
        geometry: the norm.
        dtype: of the momentum.
        whole: whether one rank is in charge of all its matrices, as for a transform of its sources.
    """

    parameter: Tensor
    layout: Layout
    view: MatrixView
    geometry: Geometry
    dtype: torch.dtype
    whole: bool = False


def polar_parameters(groups: Sequence[Mapping[str, Any]], layouts: Mapping[Tensor, Layout]) -> list[PolarParameter]:
    """The parameters of all polar groups, in order."""
    found = []
    for group in groups:
        rule = resolve(group)
        if isinstance(rule, PolarRule):
            for p in group["params"]:
                dtype = rule.momentum_dtype or p.dtype
                view, whole = rule.shape_of(p.shape).view, rule.whitening is not None
                found.append(PolarParameter(p, layouts[p], view, rule.geometry, dtype, whole))
    return found


def choose_strategy(
    view: MatrixView,
    layout: Layout,
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
    alike: int = 1,
    *,
    whole: bool = False,
) -> Strategy:
    """The strategy of a parameter; the same on every rank.

    Args:
        view: of the parameter.
        layout: of the parameter.
        geometry: the norm.
        dtype: of the momentum.
        alike: how many parameters share all of that, so that as many owners work at once.
        whole: whether one rank must be in charge of all its matrices.
    """
    if layout.world == 1:
        return Strategy.REPLICATED
    if whole:
        return Strategy.OWNER
    if needs_sums_alone(geometry, view, layout):
        return Strategy.REDUCE if layout.cut else Strategy.REPLICATED
    if geometry.reduction == "gram" and _is_cut_along_its_length(view, layout):
        ratio = max(view.shape) / min(view.shape)
        if ratio >= _NEVER_WHOLE or gram_is_cheaper(view, layout, geometry, dtype, alike):
            return Strategy.GRAM
    return Strategy.OWNER


def choose_strategies(parameters: Sequence[PolarParameter]) -> dict[Tensor, Strategy]:
    """The strategy of each parameter of an optimizer."""
    alike = Counter(parameter[1:] for parameter in parameters)
    return {
        one.parameter: choose_strategy(one.view, one.layout, one.geometry, one.dtype, alike[one[1:]], whole=one.whole)
        for one in parameters
    }


def _is_cut_along_its_length(view: MatrixView, layout: Layout) -> bool:
    """Whether it is one matrix, longer than wide, of which every rank has whole rows (columns, if it is wide)."""
    if not view.is_matrix:
        return False
    m, n = view.shape
    return layout.cut == {0 if m >= n else 1} and max(m, n) >= _NEARLY_SQUARE * min(m, n)


def _products(view: MatrixView) -> float:
    """The operations of a polar method up to a factor: the sum of m n min(m, n)."""
    return float(sum(k * m * n * min(m, n) for k, m, n in view.batches))


def assign_owners(parameters: Iterable[PolarParameter], world: int) -> dict[Tensor, tuple[int, ...]]:
    """The owner of every piece of each parameter: longest first, each to the least loaded rank that may have it.

    A piece that some ranks hold whole goes to one of them, so that it need not be sent there. The order is total, by
    cost and then by the order of the parameters, and does not depend on the rank. Parameters of which all matrices have
    one owner, which holds state of theirs, come first and in their own order: those added later do not change it.

    Args:
        parameters: in the order that all ranks have.
        world: how many ranks there are.
    """
    entries = []
    owners: dict[Tensor, list[int]] = {}
    candidates: dict[tuple[Layout, Box], Sequence[int]] = {}
    for order, (parameter, layout, view, _, _, whole) in enumerate(parameters):
        pieces = pieces_of(view, whole=whole)
        owners[parameter] = [0] * len(pieces)
        for i, piece in enumerate(pieces):
            key = (layout, piece.box)
            if key not in candidates:
                candidates[key] = layout.holders(piece.box) or range(world)
            cost = -_products(piece.view)
            entries.append(((0.0, order) if whole else (1.0, cost), order, i, cost, parameter, candidates[key]))
    load = [0.0] * world
    for _, _, i, cost, parameter, ranks in sorted(entries, key=lambda entry: entry[:3]):
        owner = min(ranks, key=lambda rank: (load[rank], rank))
        owners[parameter][i] = owner
        load[owner] -= cost
    return {parameter: tuple(ranks) for parameter, ranks in owners.items()}
