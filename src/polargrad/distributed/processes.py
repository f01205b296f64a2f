"""Many processes: the executor over torch.distributed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from polargrad.distributed.agreement import Agreement
from polargrad.distributed.communicator import Communicator
from polargrad.distributed.exchange import TransferPlan, exchange, plan_transfers
from polargrad.distributed.gram import directions_by_gram
from polargrad.distributed.layout import Layout, layout_of, pieces_of, root_of
from polargrad.distributed.strategy import Strategy, assign_owners, choose_strategies, polar_parameters
from polargrad.distributed.sums import (
    directions_by_sums,
    local_slice,
    matrix_index,
    matrix_sums,
    row_lengths,
    row_zeros,
)
from polargrad.optim.execution import (
    LMO,
    DirectionRequest,
    Directions,
    Executor,
    all_within,
    register_executor,
)
from polargrad.optim.matrix_view import MatrixView
from polargrad.optim.options import parameter_name

__all__ = ["ManyProcesses"]


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def _local(tensor: Any) -> Tensor:
    """The local tensor of a DTensor, sharing its memory, or a plain tensor itself."""
    return tensor._local_tensor if _is_distributed(tensor) else tensor


@register_executor
def _many_processes(process_group: Any, groups: Sequence[Mapping[str, Any]], shard_momentum: bool) -> Executor | None:
    """The executor for a process group, or for DTensors; None where there is neither."""
    parameters = [p for group in groups for p in group["params"]]
    if shard_momentum and process_group is None:
        raise ValueError("shard_momentum=True needs process_group=, the ranks that divide the momentum of their copies")
    if process_group is None and not any(map(_is_distributed, parameters)):
        return None
    return ManyProcesses(process_group, groups, shard_momentum)


class ManyProcesses(Executor):
    """The executor of many ranks: each parameter has a `Strategy` by which its directions are found.

    Args:
        process_group: the ranks that hold copies of plain parameters; None where all matrices are DTensors.
        groups: the parameter groups.
        shard_momentum: whether each rank keeps some rows of the momentum of copies whose matrices have owners.

    Raises:
        ValueError: a placement or a mesh that is not supported; the message names the parameter.
    """

    def __init__(self, process_group: Any, groups: Sequence[Mapping[str, Any]], shard_momentum: bool = False) -> None:
        named = [(p, parameter_name(g, i), g) for g in groups for i, p in enumerate(g["params"])]
        mesh = _joint_mesh([p for p, _, _ in named])
        group, ranks = _ranks(process_group, mesh)
        for p, name, options in named:
            if process_group is None and not _is_distributed(p) and options["rule"] == "polar":
                raise ValueError(
                    f"{name} is a plain tensor among DTensors; if every rank holds a copy of it, say so by "
                    "process_group=, otherwise make it a DTensor"
                )
        self._layouts: dict[Tensor, Layout] = {p: layout_of(p, name, mesh, ranks) for p, name, _ in named}
        self._communicator = Communicator(group, ranks)
        self._process_group: Any = process_group
        self._mesh: Any = None
        self._momentum_layouts = dict(self._layouts)
        polar = polar_parameters(groups, self._layouts)
        self._strategies = choose_strategies(polar)
        owned = [one for one in polar if self._strategies[one.parameter] is Strategy.OWNER]
        self._owners = assign_owners(owned, len(ranks))
        self._whole = {one.parameter for one in polar if one.whole}
        for p, _, options in named:
            if shard_momentum and p in self._owners and not _is_distributed(p):
                self._momentum_layouts[p] = self._layout_in_rows(self._layouts[p], options)
        self._agreement = Agreement(self._communicator, self._layouts, self._momentum_layouts)
        self._transfers: dict[tuple[Tensor, ...], TransferPlan] = {}
        self._clean = False

    def begin(
        self,
        groups: Sequence[Mapping[str, Any]],
        limits: Sequence[Callable[[torch.dtype], float]],
        present: Sequence[Sequence[int]],
    ) -> None:
        """Agree with the other ranks on what is about to be stepped, and on whether gradients are finite."""
        self._communicator.steps += 1
        clean = True
        for group, limit, positions in zip(groups, limits, present, strict=True):
            for i in positions:
                p = group["params"][i]
                if p.device.type == "cpu" and clean:
                    clean = all_within(self.gradients([p]), limit(p.dtype))
        self._clean = self._agreement.check(groups, present, clean=clean)

    def gather_names(self, names: list[str]) -> list[str]:
        """The names of all ranks; gathered only where some rank may have one."""
        if self._clean and not names:
            return []
        return sorted(set().union(*self._communicator.objects(names)))

    def local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The local tensors of DTensors; copies themselves."""
        return [_local(tensor) for tensor in tensors]

    def gradients(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The local gradients; a gradient with other placements is redistributed like its parameter."""
        return [self._gradient(p) for p in parameters]

    def _gradient(self, parameter: Tensor) -> Tensor:
        gradient: Any = parameter.grad
        if _is_distributed(parameter) != _is_distributed(gradient):
            kinds = ["a DTensor" if _is_distributed(t) else "a plain tensor" for t in (parameter, gradient)]
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} is {kinds[0]}, its gradient {kinds[1]}; give it a "
                "gradient of its own kind"
            )
        if _is_distributed(gradient) and gradient.placements != parameter.placements:  # pyright: ignore[reportAttributeAccessIssue]
            gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)  # pyright: ignore[reportAttributeAccessIssue]
        part: Any = _local(gradient)
        # The result of a functional collective may not have arrived yet.
        return part.wait() if hasattr(part, "wait") else part

    def _layout_in_rows(self, layout: Layout, group: Mapping[str, Any]) -> Layout:
        if group["momentum_order"] == "polar-first":
            raise ValueError(
                "shard_momentum=True cannot go with momentum_order='polar-first', which averages directions that every "
                "rank needs whole; use another order, or shard_momentum=False"
            )
        return Layout(layout.shape, layout.mesh, (0,), None, layout.ranks)

    def _is_momentum_sharded(self, parameter: Tensor) -> bool:
        return self._momentum_layouts[parameter] is not self._layouts[parameter]

    def zeros(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """A new momentum buffer: like the parameter, or a DTensor of some of its rows."""
        if not self._is_momentum_sharded(parameter):
            return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
        size = self._momentum_layouts[parameter].tiles[self._communicator.here].size
        return self._in_rows(parameter, torch.zeros(size, dtype=dtype, device=parameter.device))

    def _in_rows(self, parameter: Tensor, rows: Tensor) -> Tensor:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        if self._mesh is None:
            self._mesh = DeviceMesh.from_group(self._process_group, parameter.device.type)
        stride = torch.empty(parameter.shape, device="meta").stride()
        return DTensor.from_local(rows, self._mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=stride)

    def owns(self, parameter: Tensor) -> bool:
        """Whether this rank computes the directions of all matrices of a parameter."""
        return self._communicator.here in self._owners.get(parameter, (self._communicator.here,))

    def adopt(self, template: Any, value: Any) -> Tensor:
        """A copy with the dtype, device and placement of `template`; whole in between, where placements differ."""
        where = getattr(value, "device_mesh", None), getattr(value, "placements", None)
        if where == (getattr(template, "device_mesh", None), getattr(template, "placements", None)):
            return value.to(template.device, template.dtype, copy=True)
        whole: Tensor = value.full_tensor() if _is_distributed(value) else value
        whole = whole.to(template.device, template.dtype, copy=True)
        if not _is_distributed(template):
            return whole
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, template.device_mesh, template.placements, src_data_rank=None)

    def momentum_shard(self, parameters: Sequence[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The rows of each gradient whose momentum this rank keeps."""
        return [self._momentum_rows(p, gradient) for p, gradient in zip(parameters, gradients, strict=True)]

    def _momentum_rows(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        if not self._is_momentum_sharded(parameter):
            return gradient
        here = self._communicator.here
        return gradient[self._momentum_layouts[parameter].tiles[here].within(self._layouts[parameter].tiles[here])]

    def local_slices(
        self, parameters: Sequence[Tensor], tensors: list[Tensor], *, momentum: bool = False
    ) -> list[Tensor]:
        """The slices that belong to the tiles of this rank."""
        layouts, here = self._momentum_layouts if momentum else self._layouts, self._communicator.here
        return [local_slice(tensor, layouts[p].tiles[here]) for p, tensor in zip(parameters, tensors, strict=True)]

    def row_zeros(self, view: MatrixView, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """A zero for each row of a copy; for a DTensor a DTensor that is divided as its rows are."""
        if not _is_distributed(parameter):
            return torch.zeros(view.row_shape, dtype=dtype, device=parameter.device)
        return row_zeros(view, parameter, dtype, self._layouts[parameter].tiles[self._communicator.here])

    def row_lengths(self, view: MatrixView, parameters: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
        """The lengths themselves where rows are whole, otherwise from a sum over the ranks."""
        return row_lengths(lengths, view, self._layouts[parameters[0]], self._communicator)

    def bucket_key(self, parameter: Tensor) -> Hashable:
        """The layout of the parameter."""
        return self._layouts[parameter]

    def max_bucket(self, count: int) -> int:
        """A quarter of them, so that sending and computing overlap, but at least one for every rank."""
        return max(self._communicator.size, -(-count // 4))

    def finite_mask(
        self,
        view: MatrixView | None,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        limit: float,
        *,
        masked: bool,
    ) -> Tensor | None:
        """The mask of all ranks; nothing is sent where every rank found its gradients finite when the step began."""
        if not masked and self._clean:
            return None
        bad = torch.cat([self._count_nonfinite(view, p, g, limit) for p, g in zip(parameters, gradients, strict=True)])
        return self._communicator.all_reduce(bad)() == 0

    def _count_nonfinite(self, view: MatrixView | None, parameter: Tensor, gradient: Tensor, limit: float) -> Tensor:
        """How many entries of the local part of each matrix are too large or not finite, (k,)."""
        bad = (~(gradient.abs() <= limit)).to(torch.int32)
        if view is None:
            return bad.sum(dtype=torch.int32).reshape(1)
        layout = self._layouts[parameter]
        index = matrix_index(view, layout.tiles[self._communicator.here], gradient.device)
        return matrix_sums(bad, index, view.count).to(torch.int32)

    def compute_directions(
        self, requests: Iterable[DirectionRequest], lmo: LMO, workspace: int
    ) -> Iterator[Directions]:
        """The directions in three phases: while one request is computed, the next is sent and the last comes back."""
        waiting: deque[Generator[None, None, Directions]] = deque()
        for request in requests:
            job = self._job(request, lmo, workspace)
            next(job)
            if waiting:
                next(waiting[-1])
            if len(waiting) == 2:
                yield _result(waiting.popleft())
            waiting.append(job)
        if waiting:
            next(waiting[-1])
        while waiting:
            yield _result(waiting.popleft())

    def _job(self, request: DirectionRequest, lmo: LMO, workspace: int) -> Generator[None, None, Directions]:
        layout = self._layouts[request.parameters[0]]
        if request.transform is not None and layout.world > 1 and request.parameters[0] not in self._whole:
            raise ValueError(
                f"whitening was turned on for a parameter of shape {layout.shape} after the ranks had divided the work"
                "; make the optimizer with it"
            )
        match self._strategies[request.parameters[0]]:
            case Strategy.REPLICATED:
                return _replicated(request, lmo, workspace)
            case Strategy.REDUCE:
                return directions_by_sums(request, layout, lmo, self._communicator)
            case Strategy.GRAM:
                return directions_by_gram(request, layout, lmo, self._communicator)
            case Strategy.OWNER:
                sources = self._momentum_layouts[request.parameters[0]]
                transfers = self._transfers_of(request, layout, sources)
                return exchange(request, transfers, layout, sources, lmo, workspace, self._communicator)

    def _transfers_of(self, request: DirectionRequest, layout: Layout, sources: Layout) -> TransferPlan:
        key = tuple(request.parameters)
        if key not in self._transfers:
            owners = [self._owners[p] for p in key]
            pieces = pieces_of(request.view, whole=key[0] in self._whole)
            self._transfers[key] = plan_transfers(layout, sources, pieces, owners, self._communicator.here)
        return self._transfers[key]


def _replicated(request: DirectionRequest, lmo: LMO, workspace: int) -> Generator[None, None, Directions]:
    yield
    (found,) = Executor().compute_directions([request], lmo, workspace)
    yield
    return found


def _result(job: Generator[None, None, Directions]) -> Directions:
    try:
        next(job)
    except StopIteration as done:
        return done.value
    raise AssertionError("a request has three phases")


def _joint_mesh(parameters: Sequence[Any]) -> Any:
    """The smallest mesh that all meshes of the parameters are axes of; None without DTensors."""
    meshes = []
    for p in parameters:
        if _is_distributed(p) and p.device_mesh not in meshes:
            meshes.append(p.device_mesh)
    if len(meshes) <= 1:
        return meshes[0] if meshes else None
    largest = max(meshes, key=lambda mesh: mesh.size())
    ranks = set(largest.mesh.flatten().tolist())
    if all(set(mesh.mesh.flatten().tolist()) == ranks for mesh in meshes):
        return largest
    root = root_of(largest)
    names = {name for mesh in meshes for name in mesh.mesh_dim_names or ()}
    joint = tuple(name for name in root.mesh_dim_names or () if name in names)
    if all(root_of(mesh) == root for mesh in meshes) and joint:
        return root if joint == root.mesh_dim_names else root[joint]
    return largest


def _ranks(process_group: Any, mesh: Any) -> tuple[Any, list[int]]:
    """The process group of the optimizer, where there is one already, and its global ranks."""
    if not dist.is_initialized():
        raise ValueError("process_group= needs torch.distributed: call init_process_group first, or start by torchrun")
    of_mesh: Any = None if mesh is None else mesh.mesh.flatten().tolist()
    if process_group is None:
        assert mesh is not None
        return (mesh.get_group() if mesh.ndim == 1 else None), of_mesh
    ranks = dist.get_process_group_ranks(process_group)
    if of_mesh is not None and sorted(of_mesh) != sorted(ranks):
        raise ValueError(
            f"process_group has ranks {ranks}, the mesh of the DTensors {of_mesh}; give the group of all ranks that "
            "share the parameters, or leave process_group out"
        )
    return (process_group, ranks) if of_mesh in (None, ranks) else (None, of_mesh)
