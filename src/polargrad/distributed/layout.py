"""How one parameter is divided among ranks: the box that each rank holds, and the boxes that are whole matrices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polargrad.optim.matrix_view import FusedView, MatrixView

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Box", "Layout", "Piece", "layout_of", "pieces_of", "root_of"]


@dataclass(frozen=True)
class Box:
    """Entries start_d <= i_d < start_d + size_d of a tensor."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of entries."""
        return math.prod(self.size)

    def overlap(self, other: Box) -> Box:
        """The intersection, of size 0 where there is none."""
        start = tuple(map(max, self.start, other.start))
        ends = zip(self.start, self.size, other.start, other.size, strict=True)
        size = tuple(max(0, min(a + s, b + t) - o) for (a, s, b, t), o in zip(ends, start, strict=True))
        return Box(start, size)

    def within(self, other: Box) -> tuple[slice, ...]:
        """The indices of this box in a tensor that holds `other`."""
        starts = [a - b for a, b in zip(self.start, other.start, strict=True)]
        return tuple(slice(a, a + s) for a, s in zip(starts, self.size, strict=True))


@dataclass(frozen=True)
class Layout:
    """A parameter of `shape` on a mesh of ranks: each axis of the mesh cuts one of its dimensions, or copies it.

    An axis of p ranks cuts s rows into blocks of ceil(s / p), so that the last blocks may be smaller, or empty. Two
    axes may cut the same dimension, one the blocks of the other.

    Args:
        shape: of the whole parameter.
        mesh: sizes of the mesh's axes.
        dims: for each axis the dimension that it cuts, or None where it copies.
        order: the axes in the order in which they cut; None is from the first to the last.
        ranks: the global ranks, row by row of the mesh; None is 0, 1, 2, ...

    Example:
        >>> layout = Layout((5, 3), mesh=(2, 4), dims=(None, 0))
        >>> [tile.size for tile in layout.tiles[:4]]
        [(2, 3), (2, 3), (1, 3), (0, 3)]
        >>> print(layout)
        copied 2 times, dimension 0 cut by 4
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    dims: tuple[int | None, ...]
    order: tuple[int, ...] | None = None
    ranks: tuple[int, ...] | None = None

    def __str__(self) -> str:
        parts = [
            f"copied {size} times" if dim is None else f"dimension {dim} cut by {size}"
            for size, dim in zip(self.mesh, self.dims, strict=True)
        ]
        return ", ".join(parts)

    @property
    def world(self) -> int:
        """The number of ranks."""
        return math.prod(self.mesh)

    @functools.cached_property
    def tiles(self) -> tuple[Box, ...]:
        """The box that each rank of the mesh holds, row by row of the mesh."""
        return tuple(self._tile(index) for index in range(self.world))

    def _tile(self, index: int) -> Box:
        start, size = [0] * len(self.shape), list(self.shape)
        coordinate = self._coordinate(index)
        for axis in self.order or range(len(self.mesh)):
            dim = self.dims[axis]
            if dim is not None:
                block = -(-size[dim] // self.mesh[axis])
                skipped = min(size[dim], block * coordinate[axis])
                start[dim], size[dim] = start[dim] + skipped, min(block, size[dim] - skipped)
        return Box(tuple(start), tuple(size))

    @property
    def cut(self) -> frozenset[int]:
        """The dimensions that are divided among ranks."""
        return frozenset(d for d, size in zip(self.dims, self.mesh, strict=True) if d is not None and size > 1)

    @property
    def copies(self) -> int:
        """The number of ranks that hold each entry."""
        return math.prod(size for size, dim in zip(self.mesh, self.dims, strict=True) if dim is None)

    def _coordinate(self, index: int) -> tuple[int, ...]:
        coordinate = []
        for size in reversed(self.mesh):
            coordinate.append(index % size)
            index //= size
        return tuple(reversed(coordinate))

    @functools.cached_property
    def replicas(self) -> tuple[tuple[int, ...], ...]:
        """The copy of the parameter that each rank has a part of; ranks of one copy hold every entry once."""
        copied = [axis for axis, dim in enumerate(self.dims) if dim is None]
        coordinates = map(self._coordinate, range(self.world))
        return tuple(tuple(coordinate[axis] for axis in copied) for coordinate in coordinates)

    def holders(self, box: Box) -> list[int]:
        """The ranks, as positions in the mesh, that hold all of a box."""
        return [i for i, tile in enumerate(self.tiles) if tile.overlap(box) == box]


@dataclass(frozen=True)
class Piece:
    """A box of a parameter that consists of whole matrices, whose directions are computed in one place.

    Args:
        box: where it is in the parameter.
        view: how it is split into matrices.
        numbers: which of the parameter's matrices these are.
    """

    box: Box
    view: MatrixView
    numbers: tuple[int, ...]


def pieces_of(view: MatrixView, *, whole: bool = False) -> list[Piece]:
    """The pieces of a parameter: each matrix of a stack by itself; any other parameter, or a `whole` one, is one."""
    stack = view.stack if isinstance(view, FusedView) else view.batches[0][0]
    if stack == 1 or whole:
        return [Piece(Box((0,) * len(view.shape), view.shape), view, tuple(range(view.count)))]
    pieces = []
    batches = tuple((k // stack, m, n) for k, m, n in view.batches)
    shape = (view.shape[0] // stack, *view.shape[1:])
    fields = {"stack": 1} if isinstance(view, FusedView) else {}
    single = dataclasses.replace(view, shape=shape, batches=batches, **fields)
    for i in range(stack):
        numbers, first = [], 0
        for (k, _, _), (each, _, _) in zip(view.batches, batches, strict=True):
            numbers += range(first + i * each, first + (i + 1) * each)
            first += k
        pieces.append(Piece(Box((i * shape[0], *(0,) * (len(shape) - 1)), shape), single, tuple(numbers)))
    return pieces


def layout_of(parameter: Tensor, name: str, mesh: DeviceMesh | None, ranks: Sequence[int]) -> Layout:
    """The layout of a parameter: a DTensor's own, for a plain tensor a copy on each of `ranks`.

    Args:
        parameter: a plain tensor or a DTensor.
        name: its name in messages.
        mesh: that all ranks of the optimizer form; a DTensor on some of its axes is copied along the others. None
            where every parameter is plain.
        ranks: the global ranks of the optimizer.

    Raises:
        ValueError: a placement that holds no box of the parameter, or a mesh that is not part of `mesh`.
    """
    from torch.distributed.tensor import DTensor

    shape = tuple(parameter.shape)
    if not isinstance(parameter, DTensor):
        return Layout(shape, (len(ranks),), (None,), None, tuple(ranks))
    own = parameter.device_mesh
    what = f"{name} with placements {parameter.placements} on {own}"
    dims = tuple(_dim(placement, what) for placement in parameter.placements)
    order = _order(parameter.placements, tuple(own.mesh.shape), what)
    if own.mesh.flatten().tolist() == list(ranks):
        layout = Layout(shape, tuple(own.mesh.shape), dims, order, tuple(ranks))
    else:
        layout = _spread(shape, dims, order, own, mesh, ranks, what)
    coordinate = layout.ranks.index(_rank()) if layout.ranks is not None else 0
    if layout.tiles[coordinate].size != tuple(parameter.to_local().shape):
        raise ValueError(
            f"{what} holds {tuple(parameter.to_local().shape)} here, where its placements say "
            f"{layout.tiles[coordinate].size}; make it with distribute_tensor or fully_shard"
        )
    return layout


def _rank() -> int:
    import torch.distributed

    return torch.distributed.get_rank()


def _dim(placement: Any, what: str) -> int | None:
    from torch.distributed.tensor import Replicate, Shard

    if type(placement) is Replicate:
        return None
    if type(placement) is Shard or type(placement).__name__ == "_StridedShard":
        return int(placement.dim)
    raise ValueError(
        f"{what}: {placement} is not supported; a parameter must be Replicate or Shard along each axis of its mesh"
    )


def _order(placements: Sequence[Any], mesh: Sequence[int], what: str) -> tuple[int, ...] | None:
    """The axes in the order in which they cut: strided shards cut what the axes to their right have left."""
    strided = [i for i, placement in enumerate(placements) if type(placement).__name__ == "_StridedShard"]
    if not strided:
        return None
    for i in strided:
        right = [j for j in range(i + 1, len(mesh)) if _dim(placements[j], what) == placements[i].dim]
        if placements[i].split_factor != math.prod(mesh[j] for j in right):
            raise ValueError(
                f"{what}: a strided shard must cut the blocks of all axes to its right, which are "
                f"{math.prod(mesh[j] for j in right)}, got split_factor={placements[i].split_factor}"
            )
    return (*(i for i in range(len(mesh)) if i not in strided), *reversed(strided))


def root_of(mesh: DeviceMesh) -> DeviceMesh:
    """The mesh that `mesh` was sliced from, or itself."""
    return mesh._get_root_mesh()


def _spread(
    shape: tuple[int, ...],
    dims: tuple[int | None, ...],
    order: tuple[int, ...] | None,
    own: DeviceMesh,
    mesh: DeviceMesh | None,
    ranks: Sequence[int],
    what: str,
) -> Layout:
    """A layout on some axes of the optimizer's mesh, copied along the others."""
    names, axes = own.mesh_dim_names, None if mesh is None else mesh.mesh_dim_names
    if mesh is None or not names or not axes or root_of(own) != root_of(mesh) or not set(names) <= set(axes):
        raise ValueError(
            f"{what} lives on ranks {own.mesh.flatten().tolist()}, the optimizer on {list(ranks)}, and its mesh is not "
            "made of axes of theirs; slice all meshes from one init_device_mesh(..., mesh_dim_names=...)"
        )
    place = {name: i for i, name in enumerate(axes)}
    full: list[int | None] = [None] * len(axes)
    for name, dim in zip(names, dims, strict=True):
        full[place[name]] = dim
    spread = None if order is None else tuple(place[names[axis]] for axis in order)
    return Layout(shape, tuple(mesh.mesh.shape), tuple(full), spread, tuple(ranks))
