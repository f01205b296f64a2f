"""How many steps a run makes in some minutes, by trying a few."""

from __future__ import annotations

import statistics
import time

from polargrad.lab.run.objectives import build_objective
from polargrad.lab.run.runner import build_optimizer
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train.loop import differentiate

__all__ = ["steps_in"]

_TRIED = 5
_WARMING = 2


def steps_in(minutes: float, spec: RunSpec) -> int:
    """The steps of a language-model run that take so many minutes on this machine, evaluations not counted.

    A few steps of a model of its own are timed, the first ones not, and the weights thrown away.

    Args:
        minutes: of forward, backward and optimizer.
        spec: the run; its number of steps does not matter.

    Returns:
        At least 1.

    Raises:
        ValueError: the time is not positive.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes is {minutes}; give a positive number of them")
    objective, _ = build_objective(spec)
    optimizer = build_optimizer(spec, objective.module)
    objective.module.train()
    seconds = []
    for step in range(_TRIED):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = differentiate(objective, step)
        optimizer.step()
        loss.item()
        next(objective.module.parameters()).sum().item()  # waits for a device that runs behind
        seconds.append(time.perf_counter() - began)
    return max(1, round(minutes * 60 / statistics.median(seconds[_WARMING:])))
