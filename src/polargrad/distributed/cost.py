"""What a polar step costs on many ranks: floating-point operations, bytes sent and memory, before anything runs.

Bytes are exact but for padding. Operations are leading terms, good for choosing and for orders of magnitude; seconds
come from four numbers of the machine. Each function depends on shapes and layouts alone, so that every rank gets the
same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from polargrad.distributed.layout import Box, Layout, pieces_of
from polargrad.geometry import Geometry
from polargrad.linalg.operations import eigh
from polargrad.optim.matrix_view import MatrixView

__all__ = [
    "Machine",
    "Operations",
    "Traffic",
    "all_reduce_traffic",
    "gram_is_cheaper",
    "gram_operations",
    "gram_traffic",
    "operations",
    "owner_traffic",
    "seconds",
]

_NUMBER = 8


@dataclass(frozen=True)
class Machine:
    """The speed of one rank and of its connection to the others. The defaults are those of an H100 in a large cluster.

    Args:
        half: operations a second of bfloat16 products, as reached.
        single: operations a second of float32 and float64 products, as reached.
        bandwidth: bytes a second that a rank sends.
        latency: seconds until a collective starts to move bytes.

    Raises:
        ValueError: a number that is not positive.
    """

    half: float = 4e14
    single: float = 4e13
    bandwidth: float = 4e10
    latency: float = 3e-5

    def __post_init__(self) -> None:
        for name in ("half", "single", "bandwidth", "latency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)!r}")


class Operations(NamedTuple):
    """Floating-point operations, in half precision and in single or double."""

    half: float
    single: float

    def __add__(self, other: Operations) -> Operations:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Operations(self.half + other.half, self.single + other.single)

    def times(self, factor: float) -> Operations:
        """The operations times a factor."""
        return Operations(factor * self.half, factor * self.single)


class Traffic(NamedTuple):
    """Bytes that each rank sends and receives, and the collectives that carry them."""

    sent: tuple[float, ...]
    received: tuple[float, ...]
    collectives: int

    def plus(self, other: Traffic) -> Traffic:
        """The sum of both."""
        sent, received = (
            tuple(a + b for a, b in zip(*both, strict=True))
            for both in ((self.sent, other.sent), (self.received, other.received))
        )
        return Traffic(sent, received, self.collectives + other.collectives)

    @property
    def busiest(self) -> float:
        """The most that a rank sends or receives."""
        return max(*self.sent, *self.received)


def seconds(work: Operations, sent: float, collectives: float, machine: Machine) -> float:
    """The seconds that work and traffic take on one rank, one after the other."""
    computing = work.half / machine.half + work.single / machine.single
    return computing + sent / machine.bandwidth + collectives * machine.latency


def operations(geometry: Geometry, m: int, n: int, dtype: torch.dtype) -> Operations:
    """Operations of one direction of an m x n matrix, as its geometry declares them.

    Example:
        >>> from polargrad.geometry import Spectral
        >>> operations(Spectral("newton-schulz", max_steps=5), 4, 4, torch.float32).single
        0.0
    """
    count = geometry.operations(m, n, dtype)
    half = geometry.working_dtype(dtype) in (torch.bfloat16, torch.float16)
    return Operations(count, 0.0) if half else Operations(0.0, count)


def owner_traffic(
    layout: Layout, view: MatrixView, owners: Sequence[int], itemsize: int, numbers: int = 1, *, whole: bool = False
) -> Traffic:
    """What is sent for one parameter whose pieces go to their owners, and whose directions come back.

    A rank sends each entry of its part once to the owner of the piece, unless that holds the piece already; the owner
    sends each entry of the direction to every other rank that holds it, and 8 `numbers` bytes per matrix to all.

    Args:
        layout: of the parameter.
        view: of the parameter.
        owners: of each piece.
        itemsize: bytes of an entry.
        numbers: per matrix: its dual norm, and its squared length where that is needed.
        whole: whether one rank is in charge of all matrices, and is sent the parts of the gradient too.
    """
    sent, received = [0.0] * layout.world, [0.0] * layout.world
    replicas, tiles, parts_move = layout.replicas, layout.tiles, 0
    for piece, owner in zip(pieces_of(view, whole=whole), owners, strict=True):
        is_there = tiles[owner].overlap(piece.box) == piece.box
        parts_move |= not is_there
        norms = _NUMBER * numbers * len(piece.numbers)
        for rank, tile in enumerate(tiles):
            if rank == owner:
                continue
            entries = _overlap(piece.box, tile) * itemsize
            if not is_there and replicas[rank] == replicas[owner]:
                sent[rank] += entries * (1 + whole)
                received[owner] += entries * (1 + whole)
            sent[owner] += entries + norms
            received[rank] += entries + norms
    return Traffic(tuple(sent), tuple(received), 1 + parts_move * (1 + whole))


def _overlap(one: Box, other: Box) -> int:
    """Entries in both, without making a box: there may be a thousand ranks."""
    entries = 1
    for a, s, b, t in zip(one.start, one.size, other.start, other.size, strict=True):
        entries *= max(0, min(a + s, b + t) - max(a, b))
    return entries


def all_reduce_traffic(world: int, numbers: float, collectives: int = 1) -> Traffic:
    """What travels to sum so many numbers in float64 over all ranks, around a ring."""
    each = 2.0 * (world - 1) / world * _NUMBER * numbers
    return Traffic((each,) * world, (each,) * world, collectives)


def _gram_passes(dtype: torch.dtype) -> int:
    """How many Gram matrices are summed: two more in double precision, where one does not resolve small values."""
    return 4 if dtype == torch.float64 else 2


def gram_traffic(layout: Layout, dtype: torch.dtype) -> Traffic:
    """What is sent for one matrix whose rows (columns, if it is wide) stay: sums of d x d matrices in float64."""
    d, passes = min(layout.shape), _gram_passes(dtype)
    return all_reduce_traffic(layout.world, passes * d**2 + 1, passes + 1)


def gram_operations(layout: Layout, geometry: Geometry, dtype: torch.dtype) -> Operations:
    """Operations of the rank with most rows: Gram matrices and products of its rows, the small factor in full."""
    d, passes = min(layout.shape), _gram_passes(dtype)
    rows = max(tile.numel for tile in layout.tiles) / d
    small = operations(geometry, d, d, torch.float64)
    own = Operations(0.0, 4.0 * passes * rows * d**2 + (passes - 1) * eigh(d))
    return own + small


def gram_is_cheaper(
    view: MatrixView,
    layout: Layout,
    geometry: Geometry,
    dtype: torch.dtype,
    alike: int = 1,
    machine: Machine | None = None,
) -> bool:
    """Whether `alike` matrices with spread rows are done sooner through Gram matrices than by owners.

    Owners work on different matrices at once, so that their time is that of the busiest; the Gram way keeps all ranks
    at every matrix.
    """
    machine = machine or Machine()
    own = owner_traffic(layout, view, [0], dtype.itemsize)
    share = -(-alike // layout.world)
    m, n = view.shape
    work = operations(geometry, m, n, dtype).times(share)
    by_owners = seconds(work, max(own.busiest, alike * sum(own.sent) / layout.world), own.collectives, machine)
    gram = gram_traffic(layout, dtype)
    together = gram_operations(layout, geometry, dtype).times(alike)
    return seconds(together, alike * gram.busiest, gram.collectives, machine) < by_owners
