"""`polargrad plan`: estimate an optimizer step on a mesh of GPUs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from polargrad.distributed.cost import Machine
from polargrad.lab.cli import terminal
from polargrad.lab.estimate import Estimate, ParameterCost, estimate
from polargrad.lab.lm.models import architecture
from polargrad.lab.options import Options, option
from polargrad.lab.recipes import recipe
from polargrad.lab.run.spec import LanguageModel
from polargrad.lab.train.parallel import parse_mesh

_COLUMNS = ("parameters", "shape", "role", "strategy", "operations", "sent a rank", "busiest", "workspace")


@dataclass(frozen=True)
class Plan(Options):
    """Print how the direction of each matrix is found on a mesh of ranks, and what a step sends, computes and holds.

    Nothing runs and no weights are allocated, so that the mesh may be of any size. Forward and backward pass are those
    of mixed bfloat16.

    Example: polargrad plan --model gpt2-small --mesh 1x8x1

    Example: polargrad plan --model qwen2.5-540m --mesh 16x64x1 --optimizer polargrad

    Args:
        model: demo, mini, laptop, gpt2-small, gpt2-medium, qwen2.5-540m (the paper's) or moe-demo
        mesh: copies x shards x tensor-parallel ranks, such as 16x64x1
        optimizer: recipe of the optimizer: adamw, muon+adamw, polargrad, ...; see `polargrad list`
        tokens: tokens that a data-parallel rank sees in a step; tensor-parallel ranks share them
        full: print a line for every parameter
    """

    model: str
    mesh: str = option(dataclasses.MISSING, metavar="DxSxT")
    optimizer: str = "muon+polargrad"
    tokens: int = 16384
    full: bool = False
    machine: Machine = field(default_factory=Machine)

    def __call__(self) -> None:
        """Print the table and what it adds up to."""
        sizes = dataclasses.asdict(architecture(self.model))
        model = LanguageModel(**sizes, precision="bfloat16-mixed")
        mesh, optimizer = parse_mesh(self.mesh), recipe(self.optimizer).optimizer
        found = estimate(model, optimizer, mesh, self.machine, tokens=self.tokens)
        if found.unpriced is not None:
            raise ValueError(f"the operations of {found.unpriced}, which another library steps, are not known")
        terminal.print_table(_COLUMNS, [row for costs in _groups(found) for row in _rows(costs, full=self.full)])
        for sentence in _sentences(found, self.tokens):
            terminal.console().print(sentence)


def _groups(found: Estimate) -> list[list[ParameterCost]]:
    """The parameters of one role, layout and strategy together, the most bytes first."""
    alike: dict[tuple[object, ...], list[ParameterCost]] = {}
    for cost in found.optimizer.costs:
        alike.setdefault((cost.role, cost.layout, cost.strategy), []).append(cost)
    return sorted(alike.values(), key=lambda costs: (-sum(_sent(costs)), -_operations(costs)))


def _sent(costs: list[ParameterCost]) -> list[float]:
    """Bytes that each rank sends for some parameters."""
    return [sum(of_rank) for of_rank in zip(*(cost.traffic.sent for cost in costs), strict=True)]


def _operations(costs: list[ParameterCost]) -> float:
    """Operations on all ranks together for some parameters."""
    return sum(work.half + work.single for cost in costs for work in cost.operations)


def _rows(costs: list[ParameterCost], *, full: bool) -> list[tuple[str, ...]]:
    """A row for parameters that are alike, or one for each."""
    if full and len(costs) > 1:
        return [row for cost in costs for row in _rows([cost], full=True)]
    first, sent = costs[0], _sent(costs)
    return [
        (
            first.name + (f" and {len(costs) - 1} more" if len(costs) > 1 else ""),
            " x ".join(map(str, first.layout.shape)),
            first.role,
            "adamw" if first.strategy is None else first.strategy.value,
            _short(_operations(costs)),
            _bytes(sum(sent) / len(sent)),
            _bytes(max(sent)),
            _bytes(max(cost.workspace for cost in costs)),
        )
    ]


def _sentences(found: Estimate, tokens: int) -> list[str]:
    step = found.optimizer
    machine, work = step.machine, step.operations
    return [
        f"{found.parameters:,} parameters on {step.world:,} ranks.",
        f"A step of the optimizer sends {_bytes(sum(step.sent) / step.world)} a rank on average, "
        f"{_bytes(max(step.sent))} from the busiest, in {step.collectives} collectives.",
        f"The busiest rank has {_short(work.half)} operations in half precision and {_short(work.single)} in single or "
        f"double. State: {_bytes(step.state)} a rank; workspace: {_bytes(step.workspace)} at most.",
        f"At {machine.half:g} and {machine.single:g} operations and {machine.bandwidth:g} bytes a second it takes "
        f"{1e3 * step.seconds:.2f} ms with nothing overlapped; forward and backward pass of {tokens:,} tokens take "
        f"{1e3 * found.pass_seconds:.0f} ms: {found.optimizer_share:.1%} of a step.",
    ]


def _bytes(number: float) -> str:
    return f"{_short(number)} B" if number < 1e3 else f"{_short(number)}B"


def _short(number: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
