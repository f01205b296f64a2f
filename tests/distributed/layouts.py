"""Layouts by name: how a test's parameters are put on the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

# What the axes of the mesh do to a parameter; a mesh of two axes is 2 x (world / 2). None: a plain tensor everywhere.
LAYOUTS = {
    "ddp": None,
    "ddp, momentum in parts": None,
    "copies": (Replicate(),),
    "rows": (Shard(0),),
    "columns": (Shard(1),),
    "hsdp": (Replicate(), Shard(0)),
    "hsdp-columns": (Replicate(), Shard(1)),
    "rows-by-columns": (Shard(0), Shard(1)),
    "rows-of-rows": (Shard(0), Shard(0)),
}
# Which of them need how many ranks.
TWO_AXES = ("hsdp", "hsdp-columns", "rows-by-columns", "rows-of-rows")

_MESHES = {}


def layouts_of(world: int) -> list[str]:
    """The layouts that this many ranks can have."""
    return [name for name in LAYOUTS if world % 4 == 0 or name not in TWO_AXES]


def mesh_of(layout: str, world: int):
    """The mesh of a layout, made once per process; None for plain tensors."""
    if LAYOUTS[layout] is None:
        return None
    sizes = (2, world // 2) if layout in TWO_AXES else (world,)
    if sizes not in _MESHES:
        _MESHES[sizes] = init_device_mesh("cpu", sizes, mesh_dim_names=("outer", "inner")[2 - len(sizes) :])
    return _MESHES[sizes]


class Place:
    """Where a tensor of `shape` lives on this rank, by torch's own account."""

    def __init__(self, shape: torch.Size, layout: str, world: int) -> None:
        self.mesh = mesh_of(layout, world)
        self.placements = None
        self.slices = tuple(slice(0, size) for size in shape)
        if self.mesh is not None:
            # A dimension that the tensor lacks is not cut: vectors are copied by the axis that cuts columns.
            self.placements = [
                Replicate() if isinstance(one, Shard) and one.dim >= len(shape) else one for one in LAYOUTS[layout]
            ]
            size, start = compute_local_shape_and_global_offset(shape, self.mesh, self.placements)
            self.slices = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))

    def part(self, tensor: Tensor) -> Tensor:
        """What this rank holds of the whole tensor."""
        return tensor[self.slices]

    def put(self, tensor: Tensor) -> Tensor:
        """The whole tensor as this layout has it, a copy; nothing travels."""
        part = self.part(tensor).clone(memory_format=torch.contiguous_format)
        if self.mesh is None:
            return part
        return DTensor.from_local(
            part, self.mesh, self.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )


def local(tensor: Tensor) -> Tensor:
    """What is here of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parameters_on(layout: str, world: int, starts: list[Tensor]) -> tuple[list[nn.Parameter], list[Place]]:
    """Parameters with these values, the same on every rank, and where they are."""
    places = [Place(start.shape, layout, world) for start in starts]
    return [nn.Parameter(place.put(start)) for place, start in zip(places, starts, strict=True)], places


def arguments_of(layout: str) -> dict[str, object]:
    """What the optimizer is told about the processes."""
    if LAYOUTS[layout] is not None:
        return {}
    return {"process_group": dist.group.WORLD, "shard_momentum": layout == "ddp, momentum in parts"}
