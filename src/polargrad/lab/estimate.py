"""One model of operations, bytes, memory and time of a training step, before anything runs.

`polargrad plan`, `polargrad pretrain --dry-run` and `--minutes` all ask it. Needs no process group and no storage:
parameters are on the meta device, and there may be a thousand ranks. On a mesh D x S x T of copies, shards and
tensor-parallel ranks, with P parameters of w bytes on a rank, t tokens of a part of its batch, L layers of width h and
MLP width f, vocabulary V, activations of a bytes (2 in bfloat16, also mixed; 4; 8)::

    weights, gradients   2 w P
    optimizer            a momentum (and sizes of rows) or AdamW's two moments of what the rank holds
    activations          a t L (8 h + k f), k = 4 for a gated MLP and 2 for a plain one; with activation checkpointing
                         a t (L h + 8 h + k f)
    logits               t V (2 a + 3 max(4, a)): as computed, in float32, their log-softmax, and the gradients of both
    workspace            what a step holds for the largest matrix, when activations and logits are gone

    forward, backward    (6 N + 12 L h s) / T operations a token, N the parameters that multiply (no lookup table), s
                         the context; a third more with activation checkpointing
    optimizer            what the geometry of each matrix declares, on the rank that computes it

Bytes sent by the optimizer are exact but for padding; operations are leading terms. Not counted are the libraries, what
`fully_shard` gathers, the averaging of gradients, and work that is bound by memory, such as AdamW's.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from polargrad.distributed.cost import (
    Machine,
    Operations,
    Traffic,
    all_reduce_traffic,
    gram_operations,
    gram_traffic,
    operations,
    owner_traffic,
    seconds,
)
from polargrad.distributed.layout import Layout, pieces_of
from polargrad.distributed.strategy import PolarParameter, Strategy, assign_owners, choose_strategies, polar_parameters
from polargrad.distributed.sums import rows_are_cut, rows_of, summed_lengths
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import Constant, LoopConfig
from polargrad.lab.train.optimizers import outside_rules
from polargrad.optim import PolarGrad, parameter_groups
from polargrad.optim.execution import statistics_dtype
from polargrad.optim.matrix_view import MatrixView
from polargrad.optim.options import parameter_name, resolve
from polargrad.optim.roles import roles
from polargrad.optim.update import PolarRule

_NOTHING = Operations(0.0, 0.0)
# The four numbers by which ranks compare, in every step, what they are about to do.
_AGREEMENT = 32
# The longest side that SOAP preconditions.
_SOAP_SIDE = 10_000
# Steps that are timed, and those before them that warm up.
_TIMED, _WARMING = 10, 3


@dataclass(frozen=True)
class ParameterCost:
    """What the optimizer's step takes for one parameter.

    Args:
        name: name of the parameter.
        role: role of its group.
        layout: how it lives on the ranks.
        strategy: how its directions are found; None for AdamW, which works on what each rank holds.
        operations: floating-point operations on each rank.
        traffic: bytes of each rank.
        workspace: bytes on the busiest rank while it is stepped.
        state: bytes of the optimizer's state on the rank with most of it.
    """

    name: str
    role: str
    layout: Layout
    strategy: Strategy | None
    operations: tuple[Operations, ...]
    traffic: Traffic
    workspace: float
    state: float


@dataclass(frozen=True)
class OptimizerStep:
    """What a step of the optimizer takes on all ranks.

    Args:
        costs: one for each parameter.
        world: number of ranks.
        collectives: number of collectives in a step.
        machine: the machine that seconds are of.
    """

    costs: tuple[ParameterCost, ...]
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
        """Operations of the rank that computes longest."""
        totals = [sum((cost.operations[rank] for cost in self.costs), _NOTHING) for rank in range(self.world)]
        return max(totals, key=lambda work: seconds(work, 0.0, 0.0, self.machine))

    @property
    def seconds(self) -> float:
        """Time of a step with nothing overlapped: the longest computation, then the most bytes, then the latencies."""
        return seconds(self.operations, max(*self.sent, *self.received), self.collectives, self.machine)

    @property
    def workspace(self) -> float:
        """Bytes on the busiest rank, of the parameter that takes most."""
        return max((cost.workspace for cost in self.costs), default=0.0)

    @property
    def state(self) -> float:
        """Bytes of the optimizer's state on a rank."""
        return sum(cost.state for cost in self.costs)

    def _by_rank(self, direction: str) -> tuple[float, ...]:
        agreement = _AGREEMENT * (self.world - 1) if self.world > 1 else 0
        columns = zip(*(getattr(cost.traffic, direction) for cost in self.costs), strict=True)
        return tuple(agreement + sum(column) for column in columns)


@dataclass(frozen=True)
class Estimate:
    """What a training step of a language model takes; bytes and operations are those of one rank.

    Args:
        parameters: number of parameters of the model.
        tokens: tokens of a step on all ranks together.
        weights: bytes of weights and gradients.
        activations: bytes kept for the backward pass.
        logits: bytes around the loss.
        passes: operations of forward and backward pass.
        optimizer: the optimizer's step.
        unpriced: rule of another library whose operations are not known; None if there is none.
    """

    parameters: int
    tokens: int
    weights: float
    activations: float
    logits: float
    passes: Operations
    optimizer: OptimizerStep
    unpriced: str | None = None

    @property
    def memory(self) -> float:
        """Bytes at most: weights and state, and activations and logits or the optimizer's workspace, which follow."""
        return self.weights + self.optimizer.state + max(self.activations + self.logits, self.optimizer.workspace)

    @property
    def pass_seconds(self) -> float:
        """Time of forward and backward pass."""
        return seconds(self.passes, 0.0, 0.0, self.optimizer.machine)

    @property
    def seconds(self) -> float:
        """Time of a step, with nothing overlapped."""
        return self.pass_seconds + self.optimizer.seconds

    @property
    def optimizer_share(self) -> float:
        """The optimizer's share of a step's time."""
        return self.optimizer.seconds / self.seconds


def estimate(
    model: LanguageModel,
    optimizer: Mapping[str, Mapping[str, Any]],
    mesh: tuple[int, int, int] = (1, 1, 1),
    machine: Machine | None = None,
    *,
    tokens: int | None = None,
) -> Estimate:
    """Estimate a training step of a language model on a mesh of ranks.

    Args:
        model: what is trained.
        optimizer: role -> options, as in a spec; roles that the model does not have are left out.
        mesh: numbers (D, S, T) of copies, shards and tensor-parallel ranks.
        machine: the machine that seconds are of.
        tokens: tokens that a data-parallel rank sees in a step, in one part; by default as the batch of `model` is
            divided among D S ranks and its parts.

    Raises:
        ValueError: ranks that divide neither the batch nor the matrices, or several for another library's optimizer.

    Example:
        >>> from polargrad.lab.recipes import spec_of
        >>> spec = spec_of("adamw")
        >>> estimate(spec.objective, spec.optimizer).parameters
        1895424
    """
    copies, shards, tensor_ranks = mesh
    ranks, parts = copies * shards, model.accumulation
    if tokens is None:
        if model.batch % (parts * ranks):
            raise ValueError(f"{ranks} devices times {parts} parts do not divide the batch of {model.batch} sequences")
        tokens = model.batch * model.sequence // ranks
    else:
        parts = 1
    module = nn.Module.to(model.build(device="meta"), model.dtype)
    layouts = _mesh_layouts(module, mesh)
    width = model.dtype.itemsize
    activation = 2 if model.precision == "bfloat16-mixed" else width
    gated_mlp = (2 if model.family == "gpt2" else 4) * (model.mlp or 0) * model.experts_per_token
    # Tensor-parallel ranks divide what lies inside attention and MLP, and each hold the residual stream.
    block = 4 * model.hidden_size + (4 * model.hidden_size + gated_mlp) / tensor_ranks
    checkpointed = model.layers * model.hidden_size + block
    kept = checkpointed if model.activation_checkpointing else model.layers * block
    return Estimate(
        parameters=sum(p.numel() for p in module.parameters()),
        tokens=tokens * ranks,
        weights=2.0 * width * sum(max(tile.numel for tile in layout.tiles) for layout in layouts.values()),
        activations=activation * tokens / parts * kept,
        logits=tokens / parts * model.vocabulary * (2 * activation + 3 * max(4, activation)),
        passes=_passes(model, module, tokens / tensor_ranks),
        optimizer=_step_of(module, optimizer, layouts, machine or Machine()),
        unpriced=" and ".join(outside_rules(optimizer)) or None,
    )


def _passes(model: LanguageModel, module: nn.Module, tokens: float) -> Operations:
    """Operations of forward and backward pass over this many tokens."""
    sizes, role_of = {name: p.numel() for name, p in module.named_parameters()}, roles(module)
    lookups = sum(size for name, size in sizes.items() if role_of[name] in ("position", "embedding"))
    experts = sum(size for name, size in sizes.items() if role_of[name] == "expert")
    multiplying = sum(sizes.values()) - lookups - experts + experts * model.experts_per_token // model.experts
    again = 4 / 3 if model.activation_checkpointing else 1.0
    count = again * (6.0 * multiplying + 12 * model.layers * model.hidden_size * model.sequence) * tokens
    # TF32 lies between: half of the fast rate on NVIDIA's GPUs.
    fast = {"bfloat16-mixed": count, "bfloat16": count, "tf32": 2 * count}.get(model.precision, 0.0)
    return Operations(fast, 0.0 if fast else count)


def _mesh_layouts(module: nn.Module, mesh: tuple[int, int, int]) -> dict[Tensor, Layout]:
    """How the parameters of a decoder live on D x S x T ranks: rows cut by S, and as `tensor_cuts` says by T.

    Where both cut the rows, the tensor-parallel ranks cut first, as in torch.
    """
    from polargrad.lab.lm.tensor_parallel import tensor_cuts

    cuts = tensor_cuts(module, mesh[2]) if mesh[2] > 1 else {}
    made: dict[tuple[Any, ...], Layout] = {}  # shared where equal, since each lists the tiles of every rank
    layouts = {}
    for name, p in module.named_parameters():
        key = shape, cut = tuple(p.shape), cuts.get(name)
        if key not in made:
            made[key] = Layout(shape, mesh, (None, 0, cut), (0, 2, 1) if cut == 0 else None)
        layouts[p] = made[key]
    return layouts


def _step_of(
    module: nn.Module, optimizer: Mapping[str, Mapping[str, Any]], layouts: Mapping[Tensor, Layout], machine: Machine
) -> OptimizerStep:
    """The optimizer's step of a model; of an optimizer from outside the state alone, as two tensors a parameter."""
    groups = [
        {"params": group["params"], "role": group["role"], **optimizer[group["role"]]}
        for group in parameter_groups(module)
    ]
    outside = outside_rules(optimizer)
    (world,) = {layout.world for layout in layouts.values()}
    if outside and world > 1:
        raise ValueError(f"{outside[0]} works on one process; give one device")
    ours = [group for group in groups if group.get("rule", "polar") not in outside]
    step = OptimizerStep((), world, 0, machine)
    if ours:
        step = optimizer_step(PolarGrad(ours).param_groups, layouts, machine)
    costs = [
        _elementwise(
            name, group["role"], layouts[p], 2.0 * p.element_size() * p.numel() + _side_bytes(group["rule"], p)
        )
        for group in groups
        if group.get("rule", "polar") in outside
        for name, p in group["params"]
    ]
    return dataclasses.replace(step, costs=(*step.costs, *costs))


def _side_bytes(rule: str, p: Tensor) -> float:
    """Bytes of SOAP's and Shampoo's statistics: two matrices of float32 for each side that is not too long."""
    if not rule.endswith((":SOAP", ":Shampoo")):
        return 0.0
    stack = math.prod(p.shape[:-2])
    return 8.0 * stack * sum(side * side for side in p.shape[-2:] if p.ndim > 1 and 1 < side <= _SOAP_SIDE)


def optimizer_step(
    groups: Sequence[Mapping[str, Any]], layouts: Mapping[Tensor, Layout], machine: Machine | None = None
) -> OptimizerStep:
    """Estimate a step of the parameter groups of a `PolarGrad`.

    Args:
        groups: its `param_groups`; the parameters may be on the meta device.
        layouts: how each parameter lives on the ranks, all on a mesh of the same size.
        machine: the machine that seconds are of.

    Raises:
        ValueError: layouts on meshes of different sizes.

    Example:
        >>> import torch
        >>> W = torch.nn.Parameter(torch.empty(64, 64, device="meta"))
        >>> four = optimizer_step(PolarGrad([W]).param_groups, {W: Layout((64, 64), mesh=(4,), dims=(0,))})
        >>> four.costs[0].strategy.value, four.sent[1]
        ('owner', 4192.0)
    """
    worlds = {layout.world for layout in layouts.values()}
    if len(worlds) != 1:
        raise ValueError(f"the layouts are on meshes of {sorted(worlds)} ranks; give one mesh to all parameters")
    (world,) = worlds
    polar = {one.parameter: one for one in polar_parameters(groups, layouts)}
    strategies = choose_strategies(list(polar.values()))
    owners = assign_owners([one for p, one in polar.items() if strategies[p] is Strategy.OWNER], world)
    costs, alike = [], {}
    for group in groups:
        rule = resolve(group)
        for position, p in enumerate(group["params"]):
            name, role = parameter_name(group, position).strip("'"), str(group.get("role", ""))
            if not isinstance(rule, PolarRule):
                held = max(tile.numel for tile in layouts[p].tiles)
                costs.append(_elementwise(name, role, layouts[p], 2.0 * held * p.element_size()))
                continue
            cost = _polar_cost(name, role, polar[p], strategies[p], owners.get(p, ()), rule)
            costs.append(cost)
            if cost.traffic.collectives:
                key = (id(group), polar[p].view, polar[p].dtype, layouts[p])
                alike.setdefault(key, []).append(cost.traffic.collectives)
    collectives = sum(max(found) * _requests(len(found), world) for found in alike.values())
    return OptimizerStep(tuple(costs), world, collectives + (world > 1), machine or Machine())


def _requests(count: int, world: int) -> int:
    """The number of requests in which the executor asks for directions of `count` parameters that are alike."""
    return -(-count // max(world, -(-count // 4)))


def _elementwise(name: str, role: str, layout: Layout, state: float) -> ParameterCost:
    """The cost of AdamW: its state, on the rank with most of the parameter."""
    nothing = Traffic((0.0,) * layout.world, (0.0,) * layout.world, 0)
    return ParameterCost(name, role, layout, None, (_NOTHING,) * layout.world, nothing, 0.0, state)


def _polar_cost(
    name: str, role: str, one: PolarParameter, strategy: Strategy, owners: Sequence[int], rule: PolarRule
) -> ParameterCost:
    layout, view, geometry, dtype = one.layout, one.view, one.geometry, one.dtype
    world, numbers = layout.world, 1 + rule.lmo.squared_lengths
    tiles = [tile.numel * dtype.itemsize for tile in layout.tiles]
    held = rule.lmo.held(dtype, torch.device("meta"))  # as wherever half precision is fast
    traffic = Traffic((0.0,) * world, (0.0,) * world, 0)
    match strategy:
        case Strategy.REPLICATED:
            work = (_work(view, one),) * world
            workspace = held * max(m * n for _, m, n in view.batches)
        case Strategy.REDUCE:
            whole, entries = _work(view, one), math.prod(view.shape)
            work = tuple(whole.times(tile.numel / entries) for tile in layout.tiles)
            lengths = summed_lengths(geometry, view, layout)
            numbers += rule.lmo.floor > 0
            traffic = all_reduce_traffic(world, lengths + numbers * view.count, 1 + (lengths > 0))
            workspace = 2.0 * max(tiles)
        case Strategy.GRAM:
            work, traffic = (gram_operations(layout, geometry, dtype),) * world, gram_traffic(layout, dtype)
            workspace = 3.0 * max(tiles) + 6.0 * 8 * min(layout.shape) ** 2
        case Strategy.OWNER:
            traffic = owner_traffic(layout, view, owners, dtype.itemsize, numbers, whole=one.whole)
            each, pieces = [_NOTHING] * world, pieces_of(view, whole=one.whole)
            for piece, owner in zip(pieces, owners, strict=True):
                each[owner] += _work(piece.view, one)
            work = tuple(each)
            workspace = held * max(m * n for piece in pieces for _, m, n in piece.view.batches)
    state = max(tiles)
    if rule.row_beta is not None:
        if rows_are_cut(view, layout):
            traffic = traffic.plus(all_reduce_traffic(world, math.prod(view.row_shape)))
        rows = [rows_of(view, tile).numel * statistics_dtype(dtype).itemsize for tile in layout.tiles]
        state = max(momentum + own for momentum, own in zip(tiles, rows, strict=True))
    if rule.whitening is not None:
        extra = sum((Operations(0.0, k * rule.whitening.operations(m, n)) for k, m, n in view.batches), _NOTHING)
        held = 2.0 * sum(rule.whitening.sizes(view).values()) * statistics_dtype(dtype).itemsize
        busy = set(owners) or set(range(world))
        work = tuple(own + extra if rank in busy else own for rank, own in enumerate(work))
        state = max(tile + held * (rank in busy) for rank, tile in enumerate(tiles))
        workspace += rule.whitening.workspace(view, dtype)
    return ParameterCost(name, role, layout, strategy, work, traffic, workspace, float(state))


def _work(view: MatrixView, one: PolarParameter) -> Operations:
    """Operations of all matrices of a view, in one place."""
    return sum((operations(one.geometry, m, n, one.dtype).times(k) for k, m, n in view.batches), _NOTHING)


def steps_within(spec: RunSpec, minutes: float) -> int:
    """Steps of forward, backward and optimizer that a run takes in the given minutes, measured on its first few.

    Args:
        spec: the run; its own number of steps and its schedule do not matter.
        minutes: the time; evaluations come on top of it.

    Raises:
        ValueError: the time does not suffice for a step.
    """
    from polargrad.lab.run.runner import train_unrecorded

    few = LoopConfig(steps=_TIMED + _WARMING)
    objective = spec.objective
    if isinstance(objective, LanguageModel):
        objective = dataclasses.replace(objective, evaluation_windows=1)
    records = train_unrecorded(dataclasses.replace(spec, objective=objective, loop=few, schedule=Constant(), probe=()))
    ends = [record["seconds"] for record in records if record["kind"] == "step"][_WARMING - 1 :]
    each = statistics.median(later - earlier for earlier, later in pairwise(ends))
    if (steps := int(60 * minutes / each)) < 1:
        raise ValueError(f"a step of {spec.name} takes {each:.2g} s, and {minutes:g} minutes do not suffice; give more")
    return steps
