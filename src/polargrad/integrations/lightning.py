"""Lightning: `def configure_optimizers(self): return polargrad.integrations.lightning.configure_optimizers(self)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from polargrad.lab.train import lr_scheduler
from polargrad.optim import PolarGrad, parameter_groups
from polargrad.optim.roles import Rule

__all__ = ["configure_optimizers"]


class _ByRole(PolarGrad):
    """PolarGrad that sorts by role what Lightning's `BackboneFinetuning` adds: parameters of all kinds, with one rate.

    The callback goes on to set the rate of the last group, which the others that came with it follow in proportion.
    """

    all_groups: Callable[[], list[dict[str, Any]]] | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group that names its rule as it is, and any other as one group for each role, if there are several."""
        if self.all_groups is None or "rule" in param_group:
            return super().add_param_group(param_group)
        params = param_group["params"]
        added = {id(p) for p in ([params] if isinstance(params, Tensor) else params)}
        groups = [
            {**group, "params": [(name, p) for name, p in group["params"] if id(p) in added]}
            for group in self.all_groups()
        ]
        groups = [group for group in groups if group["params"]]
        if sum(len(group["params"]) for group in groups) < len(added):
            if all(p.ndim > 1 for p in ([params] if isinstance(params, Tensor) else params)):
                return super().add_param_group(param_group)
            raise ValueError(
                "parameters are added that are not of the module that configure_optimizers was given, so that nothing "
                "tells their roles; give it the whole module (`self`): what is frozen stays out until it is added"
            )
        own = {key: value for key, value in param_group.items() if key not in ("params", "lr")}
        groups.sort(key=lambda group: group["role"] == self.param_groups[0].get("role"))
        for group in groups:
            ratio = group["lr"] / groups[-1]["lr"] if groups[-1]["lr"] else 1.0
            super().add_param_group({**group, **own, "lr": ratio * param_group.get("lr", groups[-1]["lr"])})
            if group is not groups[-1]:
                self.param_groups[-1]["lr_ratio"] = ratio

    def _current_rules(self) -> list[Any]:
        leader: dict[str, Any] = {}
        for group in reversed(self.param_groups):
            if "lr_ratio" not in group:
                leader = group
            elif group["lr"] != (lr := group["lr_ratio"] * leader["lr"]):
                group["lr"] = lr
        return super()._current_rules()


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

    Callbacks may add parameters of `module` later: `BackboneFinetuning` adds those of its backbone with one rate, which
    goes to those of the first group's role; other roles keep the proportions of their rates.

    Returns:
        "optimizer", and "lr_scheduler" where there is a schedule.

    Raises:
        ValueError: what `polargrad.parameter_groups` and `PolarGrad` refuse.

    Example:
        >>> from torch import nn
        >>> made = configure_optimizers(nn.Linear(4, 3), schedule=lambda step: 0.5, hidden={"lr": 0.02})
        >>> [(group["role"], group["lr"]) for group in made["optimizer"].param_groups]
        [('hidden', 0.01), ('vector', 0.03)]
    """
    chosen: dict[str, Any] = {"example": example, "rules": rules, "defaults": defaults, **options}
    optimizer = _ByRole(parameter_groups(module, **chosen))
    optimizer.all_groups = lambda: parameter_groups(module, partial=True, **chosen)
    if schedule is None:
        return {"optimizer": optimizer}
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": lr_scheduler(optimizer, schedule), "interval": "step"},
    }
