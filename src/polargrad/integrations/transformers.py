"""Hugging Face Trainer: `Trainer(..., optimizer_cls_and_kwargs=polargrad.integrations.transformers.optimizer())`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from polargrad.optim import PolarGrad, parameter_groups
from polargrad.optim.roles import Rule

__all__ = ["ByRole", "optimizer"]


class ByRole:
    """The optimizer factory that the Trainer makes and then calls with its model."""

    def __call__(self, model: nn.Module, **routing: Any) -> PolarGrad:
        """PolarGrad over the model's parameters, one group for each role.

        Args:
            model: the Trainer's model.
            **routing: as for `polargrad.parameter_groups`.

        Raises:
            ValueError: the Trainer that calls has arguments that would be ignored, or what routing refuses.
        """
        # The Trainer hands over its model alone; its arguments are where it calls from.
        _refuse_ignored(getattr(sys._getframe(1).f_locals.get("self"), "args", None))
        return PolarGrad(parameter_groups(model, **routing))


# Arguments of the Trainer for an optimizer whose groups it makes itself.
_IGNORED = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


def _refuse_ignored(arguments: Any) -> None:
    """Refuse arguments of a Trainer that somebody has set and that nothing would read."""
    fields = getattr(type(arguments), "__dataclass_fields__", {})
    for name in _IGNORED:
        if name in fields and getattr(arguments, name) != fields[name].default:
            raise ValueError(
                f"TrainingArguments({name}={getattr(arguments, name)}) would be ignored: every role has options of its "
                f"own; leave it at its default, {fields[name].default}, and give optimizer(hidden={{'lr': ...}}, ...)"
            )


def optimizer(
    *,
    example: Any = None,
    rules: Sequence[Rule] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Mapping[str, Any],
) -> tuple[type[ByRole], dict[str, Any]]:
    """The argument of `Trainer(optimizer_cls_and_kwargs=...)`: it makes PolarGrad for its model when it trains.

    Learning rates and weight decay are those of the groups, and the Trainer's schedule multiplies each of them. Its
    arguments `learning_rate`, `weight_decay`, `adam_beta1`, `adam_beta2` and `adam_epsilon` are refused where they are
    not at their defaults, since one number cannot serve roles whose rates have different units.

    Args:
        example: a batch of the Trainer's data, which its model runs on once, see `polargrad.parameter_groups`.
        rules: as for `polargrad.parameter_groups`, and so are the others.
        defaults: options per role instead of the built-in ones.
        **options: a mapping of group options per role, for example `hidden={"lr": 0.01, "weight_decay": 0.1}`.

    Returns:
        An optimizer factory, which the Trainer calls with its model, and the routing that it passes on.

    Raises:
        ValueError: when training starts: arguments of the Trainer that would be ignored, and what
            `polargrad.parameter_groups` and `PolarGrad` refuse.

    Example:
        >>> from torch import nn
        >>> factory, routing = optimizer(hidden={"lr": 0.01})
        >>> made = factory()(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), **routing)
        >>> [(group["role"], group["lr"]) for group in made.param_groups]
        [('hidden', 0.01), ('embedding', 0.12), ('vector', 0.06)]
    """
    return ByRole, {"example": example, "rules": rules, "defaults": defaults, **options}
