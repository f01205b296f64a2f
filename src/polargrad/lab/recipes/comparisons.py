"""Comparisons under names: which recipes, over which grid, and how closely they are looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from polargrad.lab.run.spec import RunSpec

__all__ = ["COMPARISONS", "NamedComparison"]


@dataclass(frozen=True)
class NamedComparison:
    """What `polargrad compare NAME` stands for.

    Args:
        description: one line for people.
        recipes: their names.
        sweep: the axes of the grid, as they are written on the command line.
        steps: of every run.
        look_every: steps between evaluations, and between looks at the gradients.
    """

    description: str
    recipes: tuple[str, ...]
    sweep: tuple[str, ...]
    steps: int
    look_every: int

    def looked_at(self, spec: RunSpec) -> RunSpec:
        """One of its recipes, looked at as often as the comparison wants."""
        loop = dataclasses.replace(spec.loop, eval_every=self.look_every, probe_every=self.look_every)
        return dataclasses.replace(spec, loop=loop)


COMPARISONS: Mapping[str, NamedComparison] = MappingProxyType(
    {
        "phenomena": NamedComparison(
            "AdamW, Muon and Muon + PolarGrad with and without warm-up at half to eight times their rates.",
            ("adamw", "muon+adamw", "muon+polargrad"),
            ("warmup=0,10,30", "rates=0.5,1,2,4,8"),
            steps=100,
            look_every=25,
        ),
    }
)
