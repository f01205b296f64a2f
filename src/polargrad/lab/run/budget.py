"""How many steps fit into a time."""

from __future__ import annotations

import dataclasses
import statistics
from itertools import pairwise

from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import Constant, LoopConfig

MEASURED = 10


def steps_within(spec: RunSpec, minutes: float) -> int:
    """Steps of forward, backward and optimizer that a run takes in so many minutes, measured on its first few.

    Args:
        spec: the run; its own number of steps and its schedule do not matter.
        minutes: the time; evaluations come on top of it.

    Raises:
        ValueError: the time does not suffice for a step.
    """
    from polargrad.lab.run.runner import train_unrecorded

    few = LoopConfig(steps=MEASURED + 3)
    records = train_unrecorded(dataclasses.replace(spec, loop=few, schedule=Constant(), probe=()))
    seconds = [record["seconds"] for record in records if record["kind"] == "step"]
    each = statistics.median(later - earlier for earlier, later in pairwise(seconds[2:]))  # the first ones warm up
    if (steps := int(60 * minutes / each)) < 1:
        raise ValueError(f"a step of {spec.name} takes {each:.2g} s, and {minutes:g} minutes do not suffice; give more")
    return steps
