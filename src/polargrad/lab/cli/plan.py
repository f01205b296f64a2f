"""`polargrad plan`: an optimizer step on a mesh of GPUs, on paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rich.table import Table

from polargrad.distributed.cost import Machine
from polargrad.lab.cli import terminal
from polargrad.lab.cli.arguments import option
from polargrad.lab.planning import ModelPlan, plan_model, rows
from polargrad.lab.train.parallel import parse_mesh

__all__ = ["PlanModel"]

_MACHINE = Machine()


@dataclass(frozen=True)
class PlanModel:
    """Say which way each matrix goes on a mesh of ranks, and what a step sends, computes and holds.

    Nothing runs and no weights are made, so that the mesh may be of any size.

    Example: polargrad plan --model gpt2-small --mesh 1x8x1

    Example: polargrad plan --model qwen2.5-540m --mesh 16x64x1 --optimizer polargrad
    """

    model: Annotated[
        str,
        option(metavar="NAME", help="demo, laptop, gpt2-small, gpt2-medium, qwen2.5-540m (the paper's), moe-demo"),
    ]
    mesh: Annotated[str, option(metavar="DxSxT", help="copies x shards x tensor-parallel ranks, such as 16x64x1")]
    optimizer: Annotated[
        str, option(metavar="NAME", help="adamw, muon+adamw, muon+polargrad, polargrad, one-sided, ...")
    ] = "muon+polargrad"
    tokens: Annotated[
        int,
        option(metavar="N", help="that a data-parallel rank sees in a step; tensor-parallel ones share them"),
    ] = 16384
    half: Annotated[float, option(metavar="FLOP/S", help="of bfloat16 products, as reached on one rank")] = (
        _MACHINE.half
    )
    single: Annotated[
        float, option(metavar="FLOP/S", help="of float32 and float64 products, as reached on one rank")
    ] = _MACHINE.single
    bandwidth: Annotated[float, option(metavar="BYTE/S", help="that a rank sends")] = _MACHINE.bandwidth
    latency: Annotated[float, option(metavar="S", help="of a collective")] = _MACHINE.latency
    full: Annotated[bool, option(help="a line for every parameter")] = False

    def __call__(self) -> None:
        """Print the table and what it adds up to."""
        if self.tokens < 1:
            raise ValueError(f"--tokens must be at least 1, got {self.tokens}")
        machine = Machine(self.half, self.single, self.bandwidth, self.latency)
        made = plan_model(self.model, parse_mesh(self.mesh), self.optimizer, machine, self.tokens)
        console = terminal.console()
        console.print(_table(made, full=self.full))
        for sentence in _sentences(made, self.tokens):
            console.print(sentence)


def _table(made: ModelPlan, *, full: bool) -> Table:
    heads = ("parameters", "shape", "role", "way", "operations", "sent a rank", "busiest", "workspace")
    table = terminal.table(*heads)
    for row in rows(made.plan):
        more = len(row.names) - 1
        names = row.names if full else (row.names[0] + (f" and {more} more" if more else ""),)
        each = len(names)
        for name in names:
            cells = (
                name,
                " x ".join(map(str, row.shape)),
                row.role,
                row.way,
                _short(row.operations / each),
                _bytes(row.sent / each),
                _bytes(row.busiest / each),
                _bytes(row.workspace),
            )
            table.add_row(*terminal.texts(*cells))
    return table


def _sentences(made: ModelPlan, tokens: int) -> list[str]:
    step, machine = made.plan, made.plan.machine
    mean = sum(step.sent) / step.world
    work = step.operations
    return [
        f"{made.parameters:,} parameters on {step.world:,} ranks.",
        f"A step of the optimizer sends {_bytes(mean)} a rank on average, {_bytes(max(step.sent))} from the busiest, "
        f"in {step.collectives} collectives.",
        f"The busiest rank has {_short(work.half)} operations in half precision and {_short(work.single)} "
        f"in single or double. State: {_bytes(step.state)} a rank; workspace: {_bytes(step.workspace)} at most.",
        f"At {machine.half:g} and {machine.single:g} operations and {machine.bandwidth:g} bytes a second it takes "
        f"{1e3 * step.seconds:.2f} ms with nothing overlapped; forward and backward pass of {tokens:,} tokens take "
        f"{1e3 * made.pass_seconds:.0f} ms: {made.share:.1%} of a step.",
    ]


def _bytes(number: float) -> str:
    return f"{_short(number)}B"


def _short(number: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} " if number else "0 "
