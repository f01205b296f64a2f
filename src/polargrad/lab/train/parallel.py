"""One run on several processes, as torchrun starts them: their mesh, and how a model and its batches lie on it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor

from polargrad.lab.options import unknown_name

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# The mesh copies x shards x tensor-parallel ranks of each mode.
_MESHES = {"ddp": "Dx1x1", "fsdp": "1xSx1", "hsdp": "DxSx1", "tp": "1xSxT"}
MODES = tuple(_MESHES)
AXES = ("replicate", "shard", "tensor")


@dataclass(frozen=True)
class Parallel:
    """The processes of a run, on a mesh D x S x T: D copies of the model, each cut by S (data) and by T (tensor).

    A batch is divided among the D S ranks of the first two axes; the T ranks of the last axis see the same part of it.

    Args:
        mode: "none" for a single process, "ddp" (D copies), "fsdp" (cut by S), "hsdp" (D copies, each cut by S) or
            "tp" (each matrix cut by T, and by S besides where S > 1).
        sizes: (D, S, T).
        mesh: the ranks, with the axes "replicate", "shard" and "tensor"; None for a single process.
        device: this rank's device; None leaves everything where it is.
    """

    mode: str = "none"
    sizes: tuple[int, int, int] = (1, 1, 1)
    mesh: DeviceMesh | None = dataclasses.field(default=None, compare=False)
    device: torch.device | None = None

    @property
    def is_single(self) -> bool:
        """Whether this is the only process."""
        return self.mesh is None

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the only one that writes and prints."""
        return self.mesh is None or torch.distributed.get_rank() == 0

    @property
    def data_group(self) -> torch.distributed.ProcessGroup | None:
        """The ranks that divide a batch among them; None if every rank sees all of it."""
        if self.mesh is None or self.sizes[0] * self.sizes[1] == 1:
            return None
        cut = [axis for axis, size in zip(AXES[:2], self.sizes, strict=False) if size > 1]
        return self.mesh[cut[0]].get_group() if len(cut) == 1 else torch.distributed.group.WORLD

    @property
    def optimizer_group(self) -> torch.distributed.ProcessGroup | None:
        """The ranks that share the optimizer's work: all of them."""
        return None if self.mesh is None else torch.distributed.group.WORLD

    def check_batch(self, batch: int) -> None:
        """Raise ValueError if a batch cannot be divided into equal parts."""
        parts = self.sizes[0] * self.sizes[1]
        if batch % parts:
            divisors = [n for n in range(1, batch + 1) if batch % n == 0]
            raise ValueError(
                f"a batch of {batch} cannot be divided equally among {parts} processes; start one of {divisors} of them"
            )

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks that divide a batch; in place where there are several."""
        group = self.data_group
        if group is not None:
            torch.distributed.all_reduce(values, group=group)
            values /= self.sizes[0] * self.sizes[1]
        return values

    def shard(self, module: torch.nn.Module, tensor_plan: dict[str, Any] | None = None) -> Callable[..., Any]:
        """Distribute a model over the ranks.

        All ranks must call it with equal weights.

        Args:
            module: the model; moved and cut in place.
            tensor_plan: for "tp", the plan for `torch.distributed.tensor.parallel.parallelize_module`.

        Returns:
            The function to call for the forward pass. Backward passes through it leave on every rank, in the parameters
            of `module`, the gradient of the mean of the ranks' losses.
        """
        if self.device is not None:
            module.to(self.device)
        if self.mesh is None:
            return module
        if self.mode == "ddp":
            # Buffers are functions of the configuration here, equal on every rank.
            return torch.nn.parallel.DistributedDataParallel(
                module,
                process_group=self.mesh["replicate"].get_group(),
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        if self.sizes[2] > 1:
            from torch.distributed.tensor.parallel import parallelize_module

            parallelize_module(module, self.mesh["tensor"], tensor_plan or {})
        if self.sizes[0] * self.sizes[1] > 1:
            from torch.distributed.fsdp import fully_shard

            mesh = self.mesh["replicate", "shard"] if self.sizes[0] > 1 else self.mesh["shard"]
            # Each block of the model (the members of its module lists), then what is left.
            blocks = [block for part in module.modules() if isinstance(part, torch.nn.ModuleList) for block in part]
            for part in (*blocks, module):
                fully_shard(part, mesh=mesh)
        return module

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others do, so that they find its files."""
        if not self.is_main_process:
            torch.distributed.barrier()
        try:
            yield
        finally:
            if not self.is_single and self.is_main_process:
                torch.distributed.barrier()

    def metadata(self) -> dict[str, Any]:
        """Mode, mesh and number of processes, as plain data for the records; empty for a single process."""
        if self.is_single:
            return {}
        return {"parallel": self.mode, "mesh": "x".join(map(str, self.sizes)), "processes": math.prod(self.sizes)}


def mesh_sizes(mode: str, world: int, mesh: str | None = None) -> tuple[int, int, int]:
    """The sizes (D, S, T) of a mode's mesh over `world` ranks.

    Args:
        mode: one of `MODES`.
        world: number of ranks.
        mesh: "DxSxT"; None: all ranks along the mode's axis, for "hsdp" two copies.

    Raises:
        ValueError: sizes that cannot be read, that do not multiply to `world`, or that are not the mode's.

    Example:
        >>> mesh_sizes("fsdp", 4), mesh_sizes("hsdp", 8), mesh_sizes("tp", 4, "1x2x2")
        ((1, 4, 1), (2, 4, 1), (1, 2, 2))
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    if mesh is None:
        if mode == "hsdp" and world % 2:
            raise ValueError(f"hsdp makes two copies of the model unless --mesh says otherwise, and {world} is odd")
        return {"ddp": (world, 1, 1), "fsdp": (1, world, 1), "hsdp": (2, world // 2, 1), "tp": (1, 1, world)}[mode]
    sizes = parse_mesh(mesh)
    if math.prod(sizes) != world:
        raise ValueError(f"--mesh {mesh} has {math.prod(sizes)} ranks, and {world} processes were started")
    if any(axis == "1" and size != 1 for axis, size in zip(_MESHES[mode].split("x"), sizes, strict=True)):
        raise ValueError(f"--mesh {mesh} is not one of {mode}, whose meshes are {_MESHES[mode]}")
    return sizes


def parse_mesh(text: str) -> tuple[int, int, int]:
    """Read "DxSxT" as three numbers.

    Raises:
        ValueError: anything else.

    Example:
        >>> parse_mesh("2x4x1")
        (2, 4, 1)
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"cannot read the mesh {text!r}; give copies x shards x tensor-parallel ranks, such as 2x4x1")
    return int(parts[0]), int(parts[1]), int(parts[2])


@contextlib.contextmanager
def processes(mode: str | None, mesh: str | None = None) -> Iterator[Parallel]:
    """The processes that torchrun started, for the length of the block.

    Args:
        mode: one of `MODES`; None: a single process.
        mesh: "DxSxT", see `mesh_sizes`.

    Raises:
        ValueError: torchrun is missing or was not expected, or the mesh does not fit.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    launched = "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    if mode is None:
        if mesh is not None:
            raise ValueError("--mesh needs --parallel ddp, fsdp, hsdp or tp")
        if launched and world > 1:
            raise ValueError(
                f"torchrun started {world} processes that would all do the same; give --parallel ddp|fsdp|hsdp|tp"
            )
        yield Parallel()
        return
    if not launched:
        raise ValueError(
            f"--parallel {mode} runs on several processes, which torchrun starts: "
            f"torchrun --nproc-per-node 2 -m polargrad ... --parallel {mode}"
        )
    sizes = mesh_sizes(mode, world, mesh)
    device = _device()
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        axes = torch.distributed.device_mesh.init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
        yield Parallel(mode, sizes, axes, device)
    finally:
        torch.distributed.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; start that "
            "many processes, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
