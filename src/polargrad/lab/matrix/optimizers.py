"""From the options in a spec to an optimizer of a problem's matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from polargrad.lab.matrix.problems import (
    AlternatingGradientDescent,
    AlternatingNewton,
    MultiplicativeUpdates,
    ProblemObjective,
)
from polargrad.optim import PolarGrad

if TYPE_CHECKING:
    import torch

__all__ = ["COMPARATORS", "ROLE", "build_optimizer"]

ROLE = "matrix"
# Rules that need the problem, besides PolarGrad's own "polar" and "adamw".
COMPARATORS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "gradient-descent": AlternatingGradientDescent,
    "multiplicative": MultiplicativeUpdates,
    "newton": AlternatingNewton,
}


def build_optimizer(options: Mapping[str, Mapping[str, Any]], objective: ProblemObjective) -> torch.optim.Optimizer:
    """The optimizer that a spec's options ask for, all matrices in one group of the role "matrix".

    Args:
        options: {"matrix": {"rule": "polar", "lr": ..., ...}}; the rule may also be "adamw" or one of `COMPARATORS`.
        objective: whose matrices it steps.

    Raises:
        ValueError: another role, or an option that the rule does not have.
    """
    if set(options) != {ROLE}:
        raise ValueError(f"a matrix problem has the one role {ROLE!r}, got {', '.join(options)}")
    group = dict(options[ROLE])
    parameters = dict(objective.module.named_parameters())
    if group.get("rule") in COMPARATORS:
        rule = COMPARATORS[group.pop("rule")]
        if unknown := set(group) - {"lr"}:
            raise ValueError(f"{', '.join(sorted(unknown))}: a comparator has no option but lr")
        optimizer = rule(objective.problem, parameters, group["lr"])
    else:
        optimizer = PolarGrad([{"params": list(parameters.items()), "role": ROLE, **group}])
    if objective.problem.constrained:
        optimizer.register_step_post_hook(lambda *_: objective.problem.project(parameters))
    return optimizer
