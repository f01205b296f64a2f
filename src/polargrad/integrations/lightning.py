"""Lightning: `def configure_optimizers(self): return polargrad.integrations.lightning.configure_optimizers(self)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from polargrad.lab.train import lr_scheduler
from polargrad.optim import PolarGrad, parameter_groups
from polargrad.optim.roles import Rule

__all__ = ["configure_optimizers"]


def configure_optimizers(
    module: nn.Module,
    *,
    schedule: Callable[[int], float] | None = None,
    example: Any = None,
    rules: Sequence[Rule] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Mapping[str, Any],
) -> dict[str, Any]:
    """The return value of `LightningModule.configure_optimizers`: PolarGrad with a group for each role, and a schedule.

    Args:
        module: the LightningModule itself, or what of it is to be trained.
        schedule: step, counted from 0, to what every group's rate is multiplied by; moved on after every optimizer
            step. `polargrad.lab.train` has some. None: constant rates.
        example: what one call of `module` takes, see `polargrad.parameter_groups`.
        rules: as for `polargrad.parameter_groups`, and so are the others.
        defaults: options per role instead of the built-in ones.
        **options: a mapping of group options per role.

    Returns:
        "optimizer", and "lr_scheduler" where there is a schedule.

    Raises:
        ValueError: what `polargrad.parameter_groups` and `PolarGrad` refuse.

    Example:
        >>> from torch import nn
        >>> made = configure_optimizers(nn.Linear(4, 3), schedule=lambda step: 0.5, hidden={"lr": 0.02})
        >>> [(group["role"], group["lr"]) for group in made["optimizer"].param_groups]
        [('hidden', 0.01), ('vector', 0.015)]
    """
    optimizer = PolarGrad(
        parameter_groups(module, example=example, rules=rules, defaults=defaults, partial=False, **options)
    )
    if schedule is None:
        return {"optimizer": optimizer}
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": lr_scheduler(optimizer, schedule), "interval": "step"},
    }
