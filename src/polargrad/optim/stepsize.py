"""Rules for the step size gamma: given, from the smoothness of the objective, or from its minimum.

Along the steepest-descent direction nu U the objective obeys f+ <= f - gamma nu^2 + (L/2) gamma^2 nu^2 ||U||_F^2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["STEP_RULES", "step_size"]

STEP_RULES = ("fixed", "smoothness", "polyak")


def step_size(
    group: dict[str, Any], dual_norms: Tensor, squared_lengths: Tensor | None, keep: Tensor | None, loss: Any
) -> float | Tensor:
    """Gamma by the group's `step_rule`.

    - "fixed": lr.
    - "smoothness": lr / (L r), the minimizer of the bound above for lr = 1, with L = `smoothness`. r = ||U||_F^2 is
      measured on the direction: the rank of the gradient for an exact factor, and what the inexact one asks for
      otherwise. With scope="group", r is summed over the group.
    - "polyak": lr (f - f*) / sum of nu^2, with f* = `minimum`: for lr = 1 the step at which the linear model reaches
      the minimum. With scope="group" the denominator is the square of the sum.

    Args:
        group: the options.
        dual_norms: nu (K,) of the matrices that step together.
        squared_lengths: r (K,), or None where the rule has no use for it.
        keep: bool (K,), matrices that take part; None for all.
        loss: f, a number or a tensor with one element.

    Returns:
        One number, or a tensor that broadcasts against (K,).

    Source: arXiv 2505.21799, the rate of PolarGrad with gamma = 1/(L r); Polyak, Introduction to Optimization (1987).
    """
    rule, lr = group["step_rule"], group["lr"]
    if rule == "fixed":
        return lr
    together = group["scope"] == "group"
    if rule == "smoothness":
        assert squared_lengths is not None
        r = squared_lengths if keep is None else torch.where(keep, squared_lengths, 0.0)
        r = r.sum() if together else r
        return torch.where(r > 0, lr / (group["smoothness"] * r), 0.0)
    if loss is None:
        raise ValueError("step_rule='polyak' needs the loss: call step(closure) with a closure that returns it")
    nu = dual_norms if keep is None else torch.where(keep, dual_norms, 0.0)
    slope = nu.sum().square() if together else nu.square().sum()
    value = loss.detach().to(nu) if isinstance(loss, Tensor) else nu.new_full((), loss)
    gap = (value - group["minimum"]).clamp_min(0.0)
    return torch.where(slope > 0, lr * gap / slope, 0.0)
