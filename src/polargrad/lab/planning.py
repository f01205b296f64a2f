"""A model's optimizer step on a mesh of ranks, on paper: `polargrad.distributed.plan` of a model by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polargrad.distributed.cost import Machine
from polargrad.distributed.layout import Layout
from polargrad.distributed.plan import Line, Plan, plan
from polargrad.lab.checks import unknown_name
from polargrad.lab.recipes import RECIPES
from polargrad.optim import PolarGrad, parameter_groups

__all__ = ["ModelPlan", "Row", "plan_model", "rows"]

# Operations of forward and backward pass, for each parameter and token.
_PASSES = 6.0


@dataclass(frozen=True)
class Row:
    """Parameters of one shape that go the same way.

    Args:
        names: of the parameters.
        shape: of each.
        role: of their group.
        way: how their directions are found.
        layout: how each lives on the ranks.
        operations: on all ranks together.
        sent: bytes, on average over the ranks.
        busiest: bytes that the busiest rank sends.
        workspace: bytes on the busiest rank, of one of them.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    role: str
    way: str
    layout: str
    operations: float
    sent: float
    busiest: float
    workspace: float


@dataclass(frozen=True)
class ModelPlan:
    """A plan, and what the rest of a training step takes.

    Args:
        plan: of the optimizer's step.
        parameters: how many numbers the model has.
        pass_seconds: of forward and backward pass on a rank.
    """

    plan: Plan
    parameters: int
    pass_seconds: float

    @property
    def share(self) -> float:
        """The optimizer's share of a step, with nothing overlapped."""
        return self.plan.seconds / (self.plan.seconds + self.pass_seconds)


def plan_model(
    name: str,
    sizes: tuple[int, int, int],
    optimizer: str = "muon+polargrad",
    machine: Machine | None = None,
    tokens: int = 16384,
) -> ModelPlan:
    """Plan a model by name on a mesh of D copies, S shards and T tensor-parallel ranks, without storage.

    Args:
        name: one of `polargrad.lab.lm.ARCHITECTURES`.
        sizes: (D, S, T).
        optimizer: the name of an optimizer for whole models.
        machine: what seconds are of.
        tokens: that a data-parallel rank sees in a step; T ranks share them.

    Raises:
        ValueError: an unknown name, a model that T ranks cannot divide, an optimizer of another library.
    """
    from polargrad.lab.lm import architecture

    if optimizer not in RECIPES:
        raise unknown_name("optimizer", optimizer, RECIPES)
    model = architecture(name).build(device="meta")
    by_role = RECIPES[optimizer].optimizer()
    if foreign := {str(own["rule"]) for own in by_role.values()} - {"polar", "adamw"}:
        raise ValueError(f"{optimizer} is stepped by {', '.join(sorted(foreign))}, which the plan knows nothing of")
    groups = parameter_groups(model, defaults=by_role)
    held = PolarGrad(groups).param_groups
    machine = machine or Machine()
    made = plan(held, mesh_layouts(model, sizes), machine)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return ModelPlan(made, numbers, _PASSES * numbers * tokens / sizes[2] / machine.half)


def mesh_layouts(model: Any, sizes: tuple[int, int, int]) -> dict[torch.Tensor, Layout]:
    """How the parameters of a decoder live on D x S x T ranks: rows cut by S, and as `tensor_cuts` says by T.

    Where both cut the rows, the tensor-parallel ranks cut first, as in torch.
    """
    from polargrad.lab.lm.tensor_parallel import tensor_cuts

    cuts = tensor_cuts(model, sizes[2]) if sizes[2] > 1 else {}
    made: dict[tuple[Any, ...], Layout] = {}  # one for all that are alike, since each lists the tiles of every rank
    layouts = {}
    for name, p in model.named_parameters():
        key = (tuple(p.shape), cuts.get(name))
        if key not in made:
            shape, cut = key
            made[key] = Layout(shape, sizes, (None, 0, cut), (0, 2, 1) if cut == 0 else None)
        layouts[p] = made[key]
    return layouts


def rows(made: Plan) -> list[Row]:
    """The lines of a plan, those that are alike together, the most bytes first."""
    alike: dict[tuple[Any, ...], list[Line]] = {}
    for line in made.lines:
        alike.setdefault((line.role, line.layout, line.strategy), []).append(line)
    found = [_row(lines) for lines in alike.values()]
    return sorted(found, key=lambda row: (-row.sent, -row.operations))


def _row(lines: Sequence[Line]) -> Row:
    sent = [sum(by_line) for by_line in zip(*(line.traffic.sent for line in lines), strict=True)]
    return Row(
        names=tuple(line.name for line in lines),
        shape=lines[0].layout.shape,
        role=lines[0].role,
        way="adamw" if lines[0].strategy is None else lines[0].strategy.value,
        layout=str(lines[0].layout),
        operations=sum(work.half + work.single for line in lines for work in line.operations),
        sent=sum(sent) / len(sent),
        busiest=max(sent),
        workspace=max(line.workspace for line in lines),
    )
