"""A step of the optimizer on paper: how each direction is found, what that costs, and which rank is busiest.

Needs no process group and no storage: parameters may be on the meta device, and there may be a thousand ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polargrad.distributed.cost import (
    Machine,
    Operations,
    Traffic,
    gram_operations,
    gram_traffic,
    operations,
    owner_traffic,
    rows_traffic,
    seconds,
    sums_traffic,
)
from polargrad.distributed.layout import Layout, pieces_of
from polargrad.distributed.strategy import Strategy, assign_owners, choose_strategies, polar_parameters
from polargrad.distributed.sums import rows_of
from polargrad.geometry import Geometry
from polargrad.optim.execution import statistics_dtype
from polargrad.optim.matrix_view import MatrixView
from polargrad.optim.options import parameter_name, resolve
from polargrad.optim.update import PolarRule

__all__ = ["Line", "Plan", "plan"]

_NOTHING = Operations(0.0, 0.0)
# The four numbers by which ranks compare, in every step, what they are about to do.
_AGREEMENT = 32


@dataclass(frozen=True)
class Line:
    """What one parameter takes.

    Args:
        name: of the parameter.
        role: of its group.
        layout: how it lives on the ranks.
        strategy: how its directions are found; None for AdamW, which works on local tensors.
        matrices: how many there are in it.
        operations: on each rank.
        traffic: of each rank.
        workspace: bytes on the busiest rank while it is stepped.
        state: bytes of the optimizer's state on the rank with most of them.
    """

    name: str
    role: str
    layout: Layout
    strategy: Strategy | None
    matrices: int
    operations: tuple[Operations, ...]
    traffic: Traffic
    workspace: float
    state: float


@dataclass(frozen=True)
class Plan:
    """What a step takes on all ranks.

    Args:
        lines: one for each parameter.
        world: how many ranks there are.
        collectives: of a step.
        machine: what its seconds are of.
    """

    lines: tuple[Line, ...]
    world: int
    collectives: int
    machine: Machine

    @property
    def sent(self) -> tuple[float, ...]:
        """Bytes that each rank sends in a step."""
        return self._by_rank("sent")

    @property
    def received(self) -> tuple[float, ...]:
        """Bytes that each rank receives in a step."""
        return self._by_rank("received")

    @property
    def operations(self) -> Operations:
        """Of the rank that computes longest."""
        totals = [sum((line.operations[rank] for line in self.lines), _NOTHING) for rank in range(self.world)]
        return max(totals, key=lambda work: seconds(work, 0.0, 0.0, self.machine))

    @property
    def seconds(self) -> float:
        """Of a step, with nothing overlapped: the longest computation, then the most bytes, then the latencies."""
        return seconds(self.operations, max(*self.sent, *self.received), self.collectives, self.machine)

    @property
    def workspace(self) -> float:
        """Bytes on the busiest rank, of the matrix that takes most."""
        return max((line.workspace for line in self.lines), default=0.0)

    @property
    def state(self) -> float:
        """Bytes of the optimizer's state on a rank."""
        return sum(line.state for line in self.lines)

    def _by_rank(self, direction: str) -> tuple[float, ...]:
        agreement = _AGREEMENT * (self.world - 1) if self.world > 1 else 0
        columns = zip(*(getattr(line.traffic, direction) for line in self.lines), strict=True)
        return tuple(agreement + sum(column) for column in columns)


def plan(groups: Sequence[Mapping[str, Any]], layouts: Mapping[Tensor, Layout], machine: Machine | None = None) -> Plan:
    """Plan a step of the parameter groups of a `PolarGrad`.

    Args:
        groups: its `param_groups`; the parameters may be on the meta device.
        layouts: how each parameter lives on the ranks, all on a mesh of the same size.
        machine: what seconds are of.

    Raises:
        ValueError: layouts on meshes of different sizes.

    Example:
        >>> from polargrad import PolarGrad
        >>> W = torch.nn.Parameter(torch.empty(64, 64, device="meta"))
        >>> four = plan(PolarGrad([W]).param_groups, {W: Layout((64, 64), mesh=(4,), dims=(0,))})
        >>> four.lines[0].strategy.value, four.sent[1]
        ('owner', 4192.0)
    """
    worlds = {layout.world for layout in layouts.values()}
    if len(worlds) != 1:
        raise ValueError(f"the layouts are on meshes of {sorted(worlds)} ranks; give one mesh to all parameters")
    (world,) = worlds
    polar = polar_parameters(groups, layouts)
    strategies = choose_strategies(polar)
    owners = assign_owners([one for one in polar if strategies[one.parameter] is Strategy.OWNER], world)
    lines, alike = [], {}
    for group in groups:
        rule = resolve(group)
        for position, p in enumerate(group["params"]):
            name, role = parameter_name(group, position).strip("'"), str(group.get("role", ""))
            if not isinstance(rule, PolarRule):
                lines.append(_adamw(name, role, p, layouts[p]))
                continue
            view, dtype = rule.view_of(p.shape), rule.momentum_dtype or p.dtype
            line = _polar(name, role, layouts[p], view, strategies[p], owners.get(p, ()), rule, dtype)
            lines.append(line)
            if line.traffic.collectives:
                key = (id(group), view, dtype, layouts[p])
                alike.setdefault(key, []).append(line.traffic.collectives)
    collectives = sum(max(found) * _questions(len(found), world) for found in alike.values())
    return Plan(tuple(lines), world, collectives + (world > 1), machine or Machine())


def _questions(count: int, world: int) -> int:
    """How many times the distributor asks about `count` parameters that are alike."""
    return -(-count // max(world, -(-count // 4)))


def _adamw(name: str, role: str, p: Tensor, layout: Layout) -> Line:
    held = max(tile.numel for tile in layout.tiles)
    nothing = Traffic((0.0,) * layout.world, (0.0,) * layout.world, 0)
    state = 2.0 * held * p.element_size()
    return Line(name, role, layout, None, 0, (_NOTHING,) * layout.world, nothing, 0.0, state)


def _polar(
    name: str,
    role: str,
    layout: Layout,
    view: MatrixView,
    strategy: Strategy,
    owners: Sequence[int],
    rule: PolarRule,
    dtype: torch.dtype,
) -> Line:
    geometry = rule.geometry
    numbers = 1 + rule.lmo.squared_lengths
    tiles = [tile.numel * dtype.itemsize for tile in layout.tiles]
    world = layout.world
    work, traffic, workspace = _here(view, geometry, dtype, world)
    match strategy:
        case Strategy.REPLICATED:
            pass
        case Strategy.REDUCE:
            entries = math.prod(view.shape)
            work = tuple(work[0].times(tile.numel / entries) for tile in layout.tiles)
            traffic, workspace = sums_traffic(layout, view, geometry, numbers), 2.0 * max(tiles)
        case Strategy.GRAM:
            work = (gram_operations(layout, geometry, dtype),) * world
            traffic, d = gram_traffic(layout, dtype), min(layout.shape)
            workspace = 3.0 * max(tiles) + 6.0 * 8 * d**2
        case Strategy.OWNER:
            traffic = owner_traffic(layout, view, owners, dtype.itemsize, numbers)
            each = [_NOTHING] * world
            workspace = 0.0
            for piece, owner in zip(pieces_of(view), owners, strict=True):
                each[owner] += _work(piece.view, geometry, dtype)
                workspace = max(workspace, 4.0 * piece.box.numel * dtype.itemsize)
            work = tuple(each)
    state = max(tiles)
    if rule.row_beta is not None:
        traffic = traffic.plus(rows_traffic(layout, view))
        rows = [rows_of(view, tile).numel * statistics_dtype(dtype).itemsize for tile in layout.tiles]
        state = max(momentum + own for momentum, own in zip(tiles, rows, strict=True))
    return Line(name, role, layout, strategy, view.count, work, traffic, workspace, float(state))


def _here(
    view: MatrixView, geometry: Geometry, dtype: torch.dtype, world: int
) -> tuple[tuple[Operations, ...], Traffic, float]:
    """Every rank computes the whole."""
    nothing = Traffic((0.0,) * world, (0.0,) * world, 0)
    whole = 4.0 * math.prod(view.shape) * dtype.itemsize
    return (_work(view, geometry, dtype),) * world, nothing, whole


def _work(view: MatrixView, geometry: Geometry, dtype: torch.dtype) -> Operations:
    """All matrices of a parameter, in one place."""
    return sum((operations(geometry, m, n, dtype).times(k) for k, m, n in view.batches), _NOTHING)
