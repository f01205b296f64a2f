"""Which matrices step together, and what computes their directions: the executor, here of a single process.

An executor knows where tensors are and no mathematics. What a process holds of a parameter, its gradient or its
momentum is its *local* tensor; in a single process that is the whole tensor. `update.py` works on local tensors, hands
over the local tensors that directions are to be taken of, and gets back the local tensors of the directions and the
norms of every matrix. Where these were computed, and what was sent for it, only the executor knows.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from polargrad.geometry import Geometry
from polargrad.optim.matrix_view import MatrixView

__all__ = [
    "LMO",
    "Batch",
    "DirectionRequest",
    "Directions",
    "Executor",
    "LMOResult",
    "all_within",
    "apply_lmo",
    "check_state",
    "concatenate",
    "default_workspace",
    "executor_for",
    "register_executor",
    "shared_group",
    "stack",
    "statistics_dtype",
]

# Entries of a matrix from which on a batch of them is no faster than one after the other, on a CPU.
_LARGE = 2**18


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of numbers per matrix and per row: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class LMOResult(NamedTuple):
    """What a linear minimization oracle returns for matrices M (k, m, n).

    Attributes:
        direction: D = lmo(M), (k, m, n), in the dtype of M or in half precision; for the spectral geometry the unitary
            factors.
        dual_norm: (k,), <M, D> in at least float32.
        squared_length: (k,), ||D||_F^2 (the rank, for an exact polar factor), or None where it was not asked for.
    """

    direction: Tensor
    dual_norm: Tensor
    squared_length: Tensor | None


@dataclass(frozen=True)
class LMO(ABC):
    """The linear minimization oracle that directions come from; `update.GeometryLMO` has the mathematics.

    Args:
        geometry: the norm.
        squared_lengths: whether results have `squared_length`.
        floor: of the Frobenius norm, below which directions go to zero with M; 0 is none.
    """

    geometry: Geometry
    squared_lengths: bool = False
    floor: float = 0.0

    @abstractmethod
    def __call__(self, M: Tensor, scale: Tensor | None = None) -> LMOResult:
        """The result for M (k, m, n), each matrix by itself.

        Args:
            M: the matrices.
            scale: (k,), what they have been multiplied by, if they have; `floor` is of the matrices before that.
        """

    def held(self, dtype: torch.dtype, device: torch.device, weights: torch.dtype | None = None) -> float:
        """Bytes that a step holds for each entry of M: M, what M was stacked from, and what is done with them.

        That is first what the geometry holds, then up to four matrices, with which the direction is measured and made
        into an update, in the wider of `dtype` and that of the weights, if it is another.
        """
        entry = max(4, dtype.itemsize)
        wider = entry if weights is None else max(entry, weights.itemsize)
        return 2.0 * entry + max(self.geometry.bytes_per_entry(dtype, device), 4.0 * wider)


class SourceTransform(Protocol):
    """Changes whole sources before directions are taken of them, with state that the process in charge holds."""

    @property
    def gradients(self) -> Sequence[Tensor]:
        """The local gradient of each parameter of the request, with the layout of its source."""
        ...

    def __call__(self, which: Sequence[int], sources: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The changed sources of the parameters at `which`, from their whole sources and gradients."""
        ...


class DirectionRequest(NamedTuple):
    """Input of `Executor.compute_directions`: parameters of one shape and placement.

    Attributes:
        view: how each whole parameter is split into matrices, K of them over all parameters.
        parameters: as the group has them.
        sources: the local tensor of each that the direction is taken of, momentum or gradient.
        transform: what is done to each whole source first; None for nothing. All matrices of a parameter then need one
            process in charge of them, which `Executor.owns` the parameter.
    """

    view: MatrixView
    parameters: Sequence[Tensor]
    sources: Sequence[Tensor]
    transform: SourceTransform | None = None


class Directions(NamedTuple):
    """Output of `Executor.compute_directions`.

    Attributes:
        local: the local tensors of the directions, one for each parameter, in its shape; in the dtype of the sources or
            in half precision.
        dual_norms: (K,), of whole matrices, ordered by parameter and then by the batches of the view.
        squared_lengths: (K,), or None where the oracle does not measure them.
    """

    local: list[Tensor]
    dual_norms: Tensor
    squared_lengths: Tensor | None


class Executor:
    """Computes the directions of a step, wherever the matrices are, and says what of each tensor is local.

    This is the executor of a single process, where every tensor is local. Executors of many processes override it.
    """

    def begin(
        self,
        groups: Sequence[Mapping[str, Any]],
        limits: Sequence[Callable[[torch.dtype], float]],
        present: Sequence[Sequence[int]],
    ) -> None:
        """Begin a step.

        Args:
            groups: the parameter groups.
            limits: for each group, from the dtype of a parameter to the largest usable entry of its gradient.
            present: for each group, the positions of its parameters that have gradients.

        Raises:
            RuntimeError: the ranks disagree on that, or on the options; every rank raises the same message.
        """

    def gather_names(self, names: list[str]) -> list[str]:
        """The names that any rank gives, sorted."""
        return names

    def local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The local tensor of each parameter, or of each state of a parameter's shape; shares its memory."""
        return list(tensors)

    def gradients(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The local gradient of each parameter."""
        return [p.grad for p in parameters if p.grad is not None]

    def zeros(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """A new momentum buffer of the parameter's shape, placed as this executor keeps momentum."""
        return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)

    def owns(self, parameter: Tensor) -> bool:
        """Whether this process is in charge of all matrices of a parameter, and holds the state of a transform."""
        return True

    def adopt(self, template: Tensor, value: Tensor) -> Tensor:
        """A copy of a state that comes from elsewhere, with the dtype, device and placement of `template`."""
        return value.to(template.device, template.dtype, copy=True)

    def momentum_shard(self, parameters: Sequence[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The part of each local gradient that belongs to the local momentum."""
        return gradients

    def local_slices(
        self, parameters: Sequence[Tensor], tensors: list[Tensor], *, momentum: bool = False
    ) -> list[Tensor]:
        """Tensors that broadcast against whole parameters, cut so that they broadcast against the local tensors.

        Args:
            parameters: as the group has them.
            tensors: one for each.
            momentum: whether to cut them for the local momentum instead of the local parameter.
        """
        return tensors

    def row_zeros(self, view: MatrixView, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """A zero for each row, in the view's `row_shape`, placed as the parameter's rows are."""
        return torch.zeros(view.row_shape, dtype=dtype, device=parameter.device)

    def row_lengths(self, view: MatrixView, parameters: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
        """The Euclidean lengths of whole rows, for the local rows.

        Args:
            view: of each parameter.
            parameters: as the group has them, all with one `bucket_key`.
            lengths: of the local parts of their rows.
        """
        return list(lengths)

    def bucket_key(self, parameter: Tensor) -> Hashable:
        """Parameters with different keys are never in one request."""
        return None

    def max_bucket(self, count: int) -> int:
        """The most parameters to put in one request, of `count` with the same key."""
        return count

    def finite_mask(
        self,
        view: MatrixView | None,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        limit: float,
        *,
        masked: bool,
    ) -> Tensor | None:
        """Whether the entries of each matrix are numbers of size at most `limit`, on every rank: bool (K,).

        Args:
            view: of each parameter; None takes each parameter as one matrix.
            parameters: as the group has them.
            gradients: their local gradients.
            limit: for all of them.
            masked: whether the host may not read from the device; otherwise None says that all of them are finite.
        """
        # Where the host may read, one pass usually finds everything finite.
        if not masked and all_within(gradients, limit):
            return None
        if view is None or view.count == 1:
            return torch.stack(torch._foreach_norm(list(gradients), torch.inf)) <= limit
        batches = _split(view, gradients)
        return torch.cat([torch.linalg.vector_norm(batch, torch.inf, dim=(-2, -1)) <= limit for batch in batches])

    def compute_directions(
        self, requests: Iterable[DirectionRequest], lmo: LMO, workspace: int
    ) -> Iterator[Directions]:
        """The directions of each request, in order.

        A request is made when it is drawn, so that an executor may draw the next one while the matrices of the last
        are still being sent. Every rank draws the same number of requests.

        Args:
            requests: of parameters with one `bucket_key` each.
            lmo: from matrices (k, m, n) to their result.
            workspace: bound in bytes on what is held at once besides results; a single matrix may exceed it.
        """
        # A generator would keep the last request until the next one has been made.
        return map(partial(_directions, lmo=lmo, workspace=workspace), requests)


def all_within(tensors: Sequence[Tensor], limit: float) -> bool:
    """Whether every entry of every tensor is a number of size at most `limit`; for tensors on the host."""
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        # One vectorized pass; both ends are NaN if an entry is, and the comparison is then false.
        lowest, highest = torch.aminmax(tensor)
        if not -limit <= lowest.item() <= highest.item() <= limit:
            return False
    return True


def _split(view: MatrixView, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The batches (k, m, n) of all tensors of the view's shape."""
    if view.is_matrix:
        return [tensor.unsqueeze(0) for tensor in tensors]
    return list(chain.from_iterable(map(view.split, tensors)))


def _directions(request: DirectionRequest, lmo: LMO, workspace: int) -> Directions:
    view, sources, transform = request.view, request.sources, request.transform
    if transform is not None:
        sources = transform(range(len(sources)), sources, transform.gradients)
    results = apply_lmo(lmo, _split(view, sources), workspace)
    directions, norms, lengths = map(list, zip(*results, strict=True))
    if view.is_matrix:
        local = [D.squeeze(0) for D in directions]
    else:
        slots = len(view.batches)
        local = [view.merge(directions[i : i + slots]) for i in range(0, len(directions), slots)]
    return Directions(local, concatenate(norms), concatenate(lengths) if lmo.squared_lengths else None)


def concatenate(vectors: list[Tensor]) -> Tensor:
    """One vector of all; a single one is not copied."""
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """(P, *shape) of P tensors; their own memory where they are the consecutive slices of one tensor."""
    first = tensors[0]
    whole = None if torch.compiler.is_compiling() else first._base
    if whole is None or whole.dtype != first.dtype or whole.numel() != len(tensors) * first.numel():
        return torch.stack(list(tensors))
    shape = (len(tensors), *first.shape)
    if not (whole.is_contiguous() and first.is_contiguous() and whole.storage_offset() == first.storage_offset()):
        return torch.stack(list(tensors))
    for i, tensor in enumerate(tensors):
        if tensor._base is not whole or tensor.storage_offset() != first.storage_offset() + i * first.numel():
            return torch.stack(list(tensors))
    return whole.view(shape)


def apply_lmo(lmo: LMO, batches: Sequence[Tensor], workspace: int) -> list[LMOResult]:
    """The result for each batch (k_i, m_i, n_i); batches of one shape are stacked, as many as `workspace` allows."""
    if len(batches) == 1:
        return [_in_pieces(batches[0], lmo, workspace)]
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, batch in enumerate(batches):
        # On a CPU a large matrix fills the cores by itself, and stacking it would only copy it.
        alone = i if batch.device.type == "cpu" and batch.shape[1] * batch.shape[2] >= _LARGE else None
        alike.setdefault((batch.shape[1:], batch.dtype, batch.device, alone), []).append(i)
    found: dict[int, LMOResult] = {}
    for members in alike.values():
        chosen = [batches[i] for i in members]
        if len(chosen) > 1 and all(len(batch) == 1 for batch in chosen):
            stacked = stack(chosen).flatten(0, 1)
        else:
            stacked = concatenate(chosen)
        whole = _in_pieces(stacked, lmo, workspace)
        sizes = [len(batches[i]) for i in members]
        parts = [[None] * len(sizes) if field is None else field.split(sizes) for field in whole]
        for i, *part in zip(members, *parts, strict=True):
            found[i] = LMOResult(*part)
    return [found[i] for i in range(len(batches))]


def _in_pieces(stacked: Tensor, lmo: LMO, workspace: int) -> LMOResult:
    """The oracle over as many matrices at a time as `workspace` allows."""
    if stacked.shape[0] <= 1:
        return lmo(stacked)
    matrix = stacked.shape[1] * stacked.shape[2] * lmo.held(stacked.dtype, stacked.device)
    piece = max(1, int(workspace / max(1.0, matrix)))
    if stacked.shape[0] <= piece:
        return lmo(stacked)
    direction, norms, lengths = torch.empty_like(stacked), [], []
    for part, place in zip(stacked.split(piece), direction.split(piece), strict=True):
        result = lmo(part)
        place.copy_(result.direction)
        norms.append(result.dual_norm)
        if result.squared_length is not None:
            lengths.append(result.squared_length)
    return LMOResult(direction, torch.cat(norms), torch.cat(lengths) if lengths else None)


class Batch:
    """Parameters of one shape, dtype, device and placement in one step.

    Numbers per matrix are kept in one vector (K,), ordered by parameter and then by the batches of the view.

    Attributes:
        positions: of the parameters in their group.
        parameters: as the group has them.
        weights: their local tensors.
        gradients: the local gradients, not modified.
        momentum_gradients: the part of them that belongs to the local momentum.
        buffers: the local momentum.
        states: of the parameters.
        view: how each parameter is split into matrices.
        count: K.
        masked: whether everything is decided by masks on the device, which the host does not read.
        keep: bool (K,), matrices that step; None where all do. Once the request is made, those with a finite gradient;
            once the directions are known, those of them whose direction is finite too.
        watched: whether an observer wants the last two attributes.
        undecided: calls of `write_later` that wait for the final `keep`.
        writes: what is to be written into state when the matrices step.
        sources: what the directions are taken of, a local tensor for each parameter.
        update_rms: (K,), root mean square of each matrix's step, without weight decay.
    """

    def __init__(
        self,
        positions: list[int],
        parameters: list[Tensor],
        states: list[dict[str, Any]],
        view: MatrixView,
        masked: bool,
        executor: Executor,
        watched: bool,
    ) -> None:
        self.positions, self.parameters, self.states, self.view = tuple(positions), parameters, states, view
        self.executor, self.masked, self.watched = executor, masked, watched
        self.weights = executor.local(parameters)
        self.gradients = executor.gradients(parameters)
        self.momentum_gradients = executor.momentum_shard(parameters, self.gradients)
        self.buffers = executor.local([state["momentum_buffer"] for state in states])
        self.count = view.count * len(parameters)
        # On a device a line of the step is one operation for all parameters, however many.
        self._folded = masked and len(parameters) > 1
        self.keep: Tensor | None = None
        self.undecided: list[Callable[[], object]] = []
        self.writes: list[Callable[[], object]] = []
        self.sources: list[Tensor] | None = None
        self.update_rms: Tensor | None = None

    def fold(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Local tensors, one for each parameter, as the lines of a step take them: on a device stacked into one."""
        return [stack(tensors)] if self._folded else list(tensors)

    def unfold(self, tensors: list[Tensor]) -> list[Tensor]:
        """The inverse of `fold`: a local tensor for each parameter."""
        return list(tensors[0].unbind()) if self._folded else tensors

    def write_later(self, targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Have values copied into state by `write`."""
        self.writes.append(partial(torch._foreach_copy_, list(targets), list(values)))

    def decide(self) -> None:
        """Make the calls that waited for the final `keep`, and forget them: they hold what is to be written."""
        for prepare in self.undecided:
            prepare()
        self.undecided.clear()

    def write(self) -> None:
        """Make the writes that were put off, when nothing can fail any more."""
        for write in self.writes:
            write()
        self.writes.clear()

    def spread(
        self, values: Tensor | None, factors: Sequence[float] | None = None, *, momentum: bool = False
    ) -> list[Tensor] | None:
        """Numbers (K,) as tensors that broadcast against folded local tensors.

        Args:
            values: the numbers; None gives None.
            factors: what each batch of the view is multiplied by.
            momentum: whether to broadcast against the local momentum.
        """
        if values is None:
            return None
        sizes = [k for k, _, _ in self.view.batches]
        if factors is None:
            factors = [1.0] * len(sizes)
        if self._folded and self.view.count == 1:
            scaled = values if factors[0] == 1.0 else values * factors[0]
            return [scaled.view(-1, *(1,) * self.weights[0].ndim)]
        parts = iter(values.split(sizes * len(self.parameters)))
        spread = [
            self.view.spread([next(parts) if f == 1.0 else next(parts) * f for f in factors]) for _ in self.parameters
        ]
        return self.fold(self.executor.local_slices(self.parameters, spread, momentum=momentum))


def check_state(
    state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], name: str, *, loaded: bool = True
) -> None:
    """Refuse a loaded state that lacks the first of its tensors, or has one of another shape.

    Args:
        state: of a parameter; one that was never stepped has none.
        shapes: of the tensors; those of options that the saved groups did not have may be missing.
        name: of the parameter, for the message.
        loaded: whether the state was loaded; one whose options were changed may lack the first tensor too.

    Raises:
        ValueError: the message names the parameter and both shapes.
    """
    required = next(iter(shapes))
    for key, shape in shapes.items() if state else ():
        if key not in state and not (loaded and key == required):
            continue
        found = state.get(key)
        if not isinstance(found, Tensor) or tuple(found.shape) != tuple(shape):
            what = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            source = (
                "it was saved for another model, or by another optimizer"
                if loaded
                else "it belongs to the options that the group had before; set those back, or make a new optimizer"
            )
            raise ValueError(f"the state of {name} has {key} {what}, where its shape must be {tuple(shape)}: {source}")


def default_workspace(parameters: Sequence[Any]) -> int:
    """The bound on a step's memory where none is given: 256 MiB, on a GPU a thirty-second of its memory."""
    device = next((p.device for p in parameters if isinstance(p, Tensor)), torch.device("cpu"))
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory // 32
    return 2**28 if device.type == "cpu" else 2**31


class _SharedGroup:
    """A process group in a copy or a pickle of an optimizer: a copy shares it, and a pickle names the default one."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __deepcopy__(self, memo: object) -> Any:
        return self.group

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        import torch.distributed as dist

        if self.group is not dist.group.WORLD:
            raise TypeError(
                "an optimizer of another process group than the default one cannot be pickled; save its state_dict(), "
                "and make the optimizer again with process_group="
            )
        return _default_group, ()


def _default_group() -> Any:
    import torch.distributed as dist

    if not dist.is_initialized():
        raise RuntimeError("the optimizer was pickled with a process group; call init_process_group before loading it")
    return dist.group.WORLD


def shared_group(group: Any) -> Any:
    """A stand-in for a process group where an optimizer is copied or pickled; None for None."""
    return None if group is None else _SharedGroup(group)


Maker = Callable[[Any, Sequence[Mapping[str, Any]], bool], "Executor | None"]
_MAKERS: list[Maker] = []
# Registers the executors of many processes; all that is known of it here is its name.
_MANY_PROCESSES = "polargrad.distributed"


def register_executor(maker: Maker) -> Maker:
    """Decorator: ask this function first, with the arguments of `executor_for`."""
    _MAKERS.insert(0, maker)
    return maker


def executor_for(process_group: Any, groups: Sequence[Mapping[str, Any]], shard_momentum: bool = False) -> Executor:
    """The executor of the first maker that has one for these parameters; otherwise that of a single process.

    Args:
        process_group: of torch.distributed, or None.
        groups: the parameter groups.
        shard_momentum: whether each rank keeps a part of the momentum of parameters that all ranks have copies of.
    """
    importlib.import_module(_MANY_PROCESSES)
    for maker in _MAKERS:
        executor = maker(process_group, groups, shard_momentum)
        if executor is not None:
            return executor
    return Executor()
