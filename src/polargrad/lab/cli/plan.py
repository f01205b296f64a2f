"""`polargrad plan`: an optimizer step on a mesh of GPUs, on paper."""

from __future__ import annotations

from dataclasses import dataclass, field

from polargrad.distributed.cost import Machine
from polargrad.lab.cli import terminal
from polargrad.lab.planning import ModelPlan, plan_model, rows
from polargrad.lab.train.parallel import parse_mesh

__all__ = ["Plan"]

_MACHINE = Machine()


@dataclass(frozen=True)
class Plan:
    """Say which way each matrix goes on a mesh of ranks, and what a step sends, computes and holds.

    Nothing runs and no weights are made, so that the mesh may be of any size.

    Example: polargrad plan --model gpt2-small --mesh 1x8x1

    Example: polargrad plan --model qwen2.5-540m --mesh 16x64x1 --optimizer polargrad

    Args:
        model: demo, laptop, gpt2-small, gpt2-medium, qwen2.5-540m (the paper's), moe-demo
        mesh: copies x shards x tensor-parallel ranks, such as 16x64x1
        optimizer: adamw, muon+adamw, muon+polargrad, polargrad, one-sided, ...
        tokens: that a data-parallel rank sees in a step; tensor-parallel ones share them
        half: of bfloat16 products, as reached on one rank
        single: of float32 and float64 products, as reached on one rank
        bandwidth: that a rank sends
        latency: of a collective
        full: a line for every parameter
    """

    model: str
    mesh: str = field(metadata={"metavar": "DxSxT"})
    optimizer: str = "muon+polargrad"
    tokens: int = 16384
    half: float = field(default=_MACHINE.half, metadata={"metavar": "FLOP/S"})
    single: float = field(default=_MACHINE.single, metadata={"metavar": "FLOP/S"})
    bandwidth: float = field(default=_MACHINE.bandwidth, metadata={"metavar": "BYTE/S"})
    latency: float = field(default=_MACHINE.latency, metadata={"metavar": "S"})
    full: bool = False

    def __call__(self) -> None:
        """Print the table and what it adds up to."""
        if self.tokens < 1:
            raise ValueError(f"--tokens must be at least 1, got {self.tokens}")
        machine = Machine(self.half, self.single, self.bandwidth, self.latency)
        made = plan_model(self.model, parse_mesh(self.mesh), self.optimizer, machine, self.tokens)
        heads = ("parameters", "shape", "role", "way", "operations", "sent a rank", "busiest", "workspace")
        terminal.print_table(heads, _cells(made, full=self.full))
        for sentence in _sentences(made, self.tokens):
            terminal.console().print(sentence)


def _cells(made: ModelPlan, *, full: bool) -> list[tuple[str, ...]]:
    cells = []
    for row in rows(made.plan):
        more = len(row.names) - 1
        names = row.names if full else (row.names[0] + (f" and {more} more" if more else ""),)
        each = len(names)
        shared = (" x ".join(map(str, row.shape)), row.role, row.way, _short(row.operations / each))
        traffic = (_bytes(row.sent / each), _bytes(row.busiest / each), _bytes(row.workspace))
        cells += [(name, *shared, *traffic) for name in names]
    return cells


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
