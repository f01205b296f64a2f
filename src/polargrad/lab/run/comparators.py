"""Optimizers of other libraries to compare with: Shampoo and SOAP of pytorch-optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RULES = ("shampoo", "soap")
# What a parameter group of each holds for itself; the other options are of the whole optimizer.
_OF_A_GROUP = ("lr", "betas", "weight_decay", "eps")

__all__ = ["RULES", "comparator", "comparator_rule"]


def comparator_rule(optimizer: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The rule of another library that a spec's optimizer follows in every role; None if it is ours.

    Raises:
        ValueError: if some roles follow it and others do not.
    """
    rules = {str(options.get("rule")) for options in optimizer.values()}
    if not (foreign := rules & set(RULES)):
        return None
    if len(rules) > 1:
        raise ValueError(
            f"{', '.join(sorted(foreign))} steps a whole model and cannot share one with "
            f"{', '.join(sorted(rules - foreign)) or 'the other'}; give every role the same rule"
        )
    return foreign.pop()


def comparator(rule: str, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """An optimizer of pytorch-optimizer.

    Args:
        rule: "shampoo" (the distributed one: blocks of 512, grafted onto RMSProp's step lengths) or "soap".
        groups: parameter groups with `params`, `role` and options, of which those of the whole optimizer must agree.

    Raises:
        ImportError: pytorch-optimizer is not installed.
        ValueError: an option that differs from role to role, or that the optimizer does not have.
    """
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ImportError(f"{rule} is of pytorch-optimizer; pip install 'polargrad[comparators]'") from error
    shared: dict[str, Any] = {}
    kept = []
    for group in groups:
        own = {key: value for key, value in group.items() if key in ("params", "role", *_OF_A_GROUP)}
        kept.append(own)
        for key, value in group.items():
            if key in own or key in ("rule", "layout"):
                continue
            if shared.setdefault(key, value) != value:
                raise ValueError(f"{key} of {rule} is {shared[key]!r} and {value!r} in different roles; give one value")
    try:
        if rule == "soap":
            return pytorch_optimizer.SOAP(kept, **shared)
        from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

        fixed = {"graft_type": LayerWiseGrafting.RMSPROP, "moving_average_for_momentum": True}
        return pytorch_optimizer.ScalableShampoo(kept, **fixed, **shared)
    except TypeError as error:
        raise ValueError(f"{rule} cannot be made with {', '.join(sorted(shared))}: {error}") from error
