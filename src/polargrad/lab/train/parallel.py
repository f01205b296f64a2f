"""One run on several processes, as torchrun starts them: their mesh, and how a model and its batches lie on it."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed
from torch import Tensor

from polargrad.distributed.checkpoint import reshard
from polargrad.lab.exit_codes import exit_code
from polargrad.lab.options import divisors, unknown_name

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# The mesh copies x shards x tensor-parallel ranks of each mode.
_MESHES = {"ddp": "Dx1x1", "fsdp": "1xSx1", "hsdp": "DxSx1", "tp": "1xSxT"}
MODES = tuple(_MESHES)
AXES = ("replicate", "shard", "tensor")
# How long the processes wait for one that does not answer.
TIMEOUT = datetime.timedelta(minutes=10)
# What torch's backends say when a process is gone; the errors have no class of their own.
_GONE = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|timed out|socket", re.IGNORECASE)


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
        control: all ranks, by a backend that sends what lies on CPUs; None for a single process.
        messages: what rank 0 tells the others; None for a single process.
    """

    mode: str = "none"
    sizes: tuple[int, int, int] = (1, 1, 1)
    mesh: DeviceMesh | None = dataclasses.field(default=None, compare=False)
    device: torch.device | None = None
    control: torch.distributed.ProcessGroup | None = dataclasses.field(default=None, compare=False)
    messages: Messages | None = dataclasses.field(default=None, compare=False)

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
            raise ValueError(
                f"a batch of {batch} cannot be divided equally among {parts} processes; their number may be one of "
                f"{divisors(batch)}"
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
            group = self.mesh["replicate"].get_group()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
                # Buffers are functions of the configuration here, equal on every rank.
                return torch.nn.parallel.DistributedDataParallel(
                    module, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
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

    def maxima(self, *values: int) -> list[int]:
        """The largest of each value over the ranks."""
        if self.mesh is None:
            return list(values)
        found = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self.control)
        return found.tolist()

    def check_copies(self, module: torch.nn.Module) -> None:
        """Compare the weights that several ranks hold copies of, bit by bit through a sum of their bits.

        Raises:
            RuntimeError: on every rank, where copies differ; it names the first parameter.
        """
        if self.mesh is None:
            return
        reshard(module)
        named = list(module.named_parameters())
        first = len(named)
        for axis, size in zip(AXES, self.sizes, strict=True):
            copies = [(number, p) for number, (_, p) in enumerate(named) if _is_copied(p, axis)]
            if size == 1 or not copies:
                continue
            sums = torch.stack([_sum_of_bits(p) for _, p in copies])
            extremes = torch.stack([sums, -sums])
            torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=self.mesh[axis].get_group())
            apart = (extremes[0] != -extremes[1]).nonzero().flatten().tolist()
            first = min([first, *(copies[place][0] for place in apart[:1])])
        (found,) = self.maxima(len(named) - first)
        if found:
            raise RuntimeError(
                f"the processes hold different copies of {named[len(named) - found][0]}, which must be equal: a device "
                "or its memory failed, or the machines are not of one kind"
            )

    @contextlib.contextmanager
    def lost_processes(self) -> Iterator[None]:
        """Turn what torch says in the block when a process is gone into one sentence.

        Raises:
            ConnectionError: a process died, or did not answer for `TIMEOUT`.
        """
        try:
            yield
        except RuntimeError as error:
            if self.mesh is None or not _GONE.search(str(error)):
                raise
            reason = re.sub(r"^\[.*?\]\s*", "", (str(error).strip().splitlines() or [""])[0]).partition(". ")[0][:120]
            raise ConnectionError(
                f"another process of this run died, or has not answered for {TIMEOUT.total_seconds() / 60:g} minutes "
                f"({reason})"
            ) from error

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others do, so that they find its files; it may take hours."""
        if self.messages is not None and not self.is_main_process:
            self.messages.receive()
        try:
            yield
        finally:
            if self.messages is not None and self.is_main_process:
                self.messages.send("the block is done")

    def metadata(self) -> dict[str, Any]:
        """Mode, mesh and number of processes, as plain data for the records; empty for a single process."""
        if self.is_single:
            return {}
        return {"parallel": self.mode, "mesh": "x".join(map(str, self.sizes)), "processes": math.prod(self.sizes)}


class Messages:
    """What rank 0 tells all others, through the store by which the processes found each other.

    A receiver waits for as long as it takes, which a collective would not; the sender does not wait.

    Args:
        store: of torch.distributed.
    """

    _END, _RECEIPTS, _PAUSE = "end", "polargrad/receipts", 0.5

    def __init__(self, store: Any) -> None:
        self._store, self._number = store, 0

    def send(self, message: Any) -> None:
        """Tell the others some plain data."""
        self._store.set(f"polargrad/{self._number}", json.dumps(message))
        self._number += 1

    def end(self, code: int) -> None:
        """Tell the others that there is nothing more to do, and the exit code."""
        self.send({self._END: code})

    def end_and_leave(self, code: int, others: int) -> None:
        """The same as the last act of rank 0, whose own the store may be: wait until the others have read it.

        Not for long, since some of them may be gone.
        """
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            self.end(code)
            until = time.monotonic() + 3 * self._PAUSE
            while self._store.add(self._RECEIPTS, 0) < others and time.monotonic() < until:
                time.sleep(0.01)

    def receive(self) -> Any:
        """The next message.

        Raises:
            SystemExit: rank 0 has come to its end, with this exit code; it has said why.
            ConnectionError: the store is gone, and rank 0 with it.
        """
        key, pause = f"polargrad/{self._number}", 0.01
        try:
            while not self._store.check([key]):
                time.sleep(pause)
                pause = min(2 * pause, self._PAUSE)
            message = json.loads(self._store.get(key))
        except RuntimeError as error:
            raise ConnectionError("the first process of this run is gone, and this one ends with it") from error
        self._number += 1
        if isinstance(message, dict) and self._END in message:
            with contextlib.suppress(RuntimeError):
                self._store.add(self._RECEIPTS, 1)
            raise SystemExit(message[self._END])
        return message


def _is_copied(parameter: Tensor, axis: str) -> bool:
    """Whether the ranks along an axis hold the same of a parameter."""
    mesh = getattr(parameter, "device_mesh", None)
    names = () if mesh is None else mesh.mesh_dim_names or ()
    return mesh is None or axis not in names or parameter.placements[names.index(axis)].is_replicate()  # pyright: ignore[reportAttributeAccessIssue]


def _sum_of_bits(parameter: Tensor) -> Tensor:
    """A number that changes when a bit of what this rank holds does, int64."""
    held: Any = parameter.detach()
    local: Tensor = (held.to_local() if hasattr(held, "to_local") else held).contiguous()
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return local.view(words[local.element_size()]).sum(dtype=torch.int64)


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
    if not torch.distributed.is_available():
        raise ValueError(
            "this torch was built without torch.distributed; leave --parallel out, or install one that has it"
        )
    if not launched:
        raise ValueError(
            f"--parallel {mode} runs on several processes, which torchrun starts: "
            f"torchrun --nproc-per-node 2 -m polargrad ... --parallel {mode}"
        )
    sizes = mesh_sizes(mode, world, mesh)
    device = _device()
    rank, messages = int(os.environ.get("RANK", "0")), None
    try:
        with _meeting():
            store, rank, world = next(torch.distributed.rendezvous("env://"))
            # torchrun keeps the store when it starts its processes anew; what earlier ones wrote must not be read.
            store = torch.distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            on_gpus = device.type == "cuda"
            torch.distributed.init_process_group(
                "nccl" if on_gpus else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=TIMEOUT,
                device_id=device if on_gpus else None,  # else NCCL guesses one at the first exchange
            )
            messages = Messages(store)
            control = cast(torch.distributed.ProcessGroup, torch.distributed.new_group(backend="gloo", timeout=TIMEOUT))
            axes = torch.distributed.device_mesh.init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
        parallel = Parallel(mode, sizes, axes, device, control, messages)
        with parallel.lost_processes():
            yield parallel
        if rank == 0:
            messages.end(0)
        torch.distributed.barrier(control)  # the store may be rank 0's own
    except BaseException as error:
        # Last of all: torchrun ends the processes that are left once the first is gone.
        if rank == 0 and messages is not None:
            atexit.register(messages.end_and_leave, exit_code(error), world - 1)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    """What torch says in the block when the processes do not find each other becomes one sentence."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = re.sub(r"^\[.*?\]\s*", "", (str(error).strip().splitlines() or [type(error).__name__])[0])[:160]
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ConnectionError(
            f"the processes did not find each other at {where} ({reason}); MASTER_ADDR and MASTER_PORT must name a "
            "free port of the first process's machine, and GLOO_SOCKET_IFNAME, where it is set, a network interface"
        ) from error


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; start that "
            "many processes, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    if not torch.distributed.is_nccl_available():
        raise ValueError(
            "this torch has no NCCL, by which GPUs exchange tensors; hide the GPUs with CUDA_VISIBLE_DEVICES= to train "
            "on CPUs, or install a torch that has it"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
