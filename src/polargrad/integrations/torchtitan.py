"""A torchtitan-style optimizer: one `PolarGrad` for each model part in one container, with a flat state by name.

Written to the contract of torchtitan 0.3.0's `OptimizersContainer` and `LRSchedulersContainer`, which is imported only
by `optimizer_config`. Its own schedulers run over this container too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from polargrad.lab.train import lr_scheduler
from polargrad.optim import PolarGrad, parameter_groups
from polargrad.optim.roles import Rule

__all__ = [
    "LRSchedulersContainer",
    "OptimizersContainer",
    "build_lr_schedulers",
    "build_optimizers",
    "optimizer_config",
]


class OptimizersContainer(torch.optim.Optimizer):
    """One optimizer for each model part, stepped, saved and loaded as one.

    The state is flat: `state.NAME.KEY` for every number and tensor of a parameter's state, `param_groups.NAME.OPTION`
    for the options of its group, with the parameter's qualified name in its model part. Names of parameters do not
    depend on how the model is cut into parts, so a state can be loaded into another cut.

    Args:
        model_parts: the parts, whose parameters have different names.
        optimizers: one for each part, over its trainable parameters.

    Raises:
        ValueError: a name that two parts have, or another number of optimizers than of parts.
    """

    def __init__(self, model_parts: Sequence[nn.Module], optimizers: Sequence[PolarGrad]) -> None:
        self.model_parts = list(model_parts)
        self.optimizers = list(optimizers)
        if len(self.model_parts) != len(self.optimizers):
            raise ValueError(
                f"{len(self.model_parts)} model parts and {len(self.optimizers)} optimizers; give one for each part"
            )
        owners: dict[str, int] = {}
        for index, part in enumerate(self.model_parts):
            for name, _ in part.named_parameters():
                if owners.setdefault(name, index) != index:
                    raise ValueError(
                        f"model parts {owners[name]} and {index} both have a parameter {name!r}, which one state by "
                        "name cannot hold; name the layers of a part as in the whole model"
                    )
        # The groups are those of the parts, the very same objects: a scheduler or a logger sees all of them.
        super().__init__([group for optimizer in self.optimizers for group in optimizer.param_groups], {})

    def __iter__(self) -> Iterator[PolarGrad]:
        return iter(self.optimizers)

    def __len__(self) -> int:
        return len(self.optimizers)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every part; a closure is evaluated once, with gradients enabled, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of every part."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def init_cache_state_dict(self) -> None:
        """Do nothing; torchtitan calls it on every container, since its fault-tolerant one caches a state dict."""

    def state_dict(self) -> dict[str, Any]:
        """The flat state of all parts, complete before the first step too, as `torch.distributed.checkpoint` wants."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        flat: dict[str, Any] = {}
        for part, optimizer in zip(self.model_parts, self.optimizers, strict=True):
            with _unstepped(optimizer):
                options = StateDictOptions(flatten_optimizer_state_dict=True)
                flat.update(get_optimizer_state_dict(part, optimizer, options=options))
        # A list of the whole group's names, which another cut does not share.
        return {key: value for key, value in flat.items() if not key.endswith(".param_names")}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a flat state, of these model parts or of more.

        A parameter that was never stepped has no state and gets none; options that the state lacks stay as they are.

        Raises:
            ValueError: a parameter of which the state has no entries.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        own = self.state_dict()
        known, stepped = (_names(state_dict, section) for section in ("param_groups", "state"))
        for part, optimizer in zip(self.model_parts, self.optimizers, strict=True):
            names = {_clean(name): p for group in optimizer.param_groups for name, p in _named(group)}
            if absent := [name for name in names if name not in known]:
                raise ValueError(
                    f"the state to load has no entries of {', '.join(absent[:8])}; it is of another model, or of a "
                    "part of this one"
                )
            grouped = {
                f"param_groups.{_clean(name)}.param_names": group["param_names"]
                for group in optimizer.param_groups
                for name in group["param_names"]
            }
            with _unstepped(optimizer, keep=True):
                set_optimizer_state_dict(
                    part,
                    optimizer,
                    {**own, **state_dict, **grouped},
                    options=StateDictOptions(flatten_optimizer_state_dict=True),
                )
            for name, p in names.items():
                if name not in stepped:
                    optimizer.state.pop(p, None)
        self.param_groups[:] = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def _names(state: Mapping[str, Any], section: str) -> set[str]:
    """The parameters that a section of a flat state has entries of."""
    return {key.removeprefix(f"{section}.").rpartition(".")[0] for key in state if key.startswith(f"{section}.")}


def _named(group: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return zip(group["param_names"], group["params"], strict=True)


def _clean(name: str) -> str:
    """The qualified name without what `torch.compile` and activation checkpointing wrap around a module."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


@contextlib.contextmanager
def _unstepped(optimizer: PolarGrad, *, keep: bool = False) -> Iterator[None]:
    """Context in which torch may make a state by stepping zero gradients at rate zero, as it does without gradients.

    Afterwards the gradients are back, and a state that was made so is gone unless `keep`: it counts a step that never
    was.
    """
    fresh = not optimizer.state
    gradients: list[tuple[Tensor, Tensor | None]] = [(p, p.grad) for g in optimizer.param_groups for p in g["params"]]
    for p, _ in gradients:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in gradients:
            p.grad = gradient
        if fresh and not keep:
            optimizer.state.clear()


def build_optimizers(
    model_parts: Sequence[nn.Module],
    *,
    rules: Sequence[Rule] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Mapping[str, Any],
) -> OptimizersContainer:
    """PolarGrad for every model part of this rank, with one group for each role in it.

    A pipeline rank holds a part of the model, so rules and options that concern other parts are no error here.

    Args:
        model_parts: as torchtitan hands them over: usually one, several with pipeline parallelism.
        rules: as for `polargrad.parameter_groups`, and so are the others; torchtitan's models want
            `("output.weight", "head")`, since a plain module does not tell which layer is its head.
        defaults: options per role instead of the built-in ones.
        **options: a mapping of group options per role.

    Returns:
        The container.

    Raises:
        ValueError: no part at all, or what `polargrad.parameter_groups` and `PolarGrad` refuse.

    Example:
        >>> from torch import nn
        >>> part = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
        >>> optimizers = build_optimizers([part], rules=[("1.weight", "head")], head={"lr": 0.01})
        >>> sorted(key for key in optimizers.state_dict() if key.endswith(".lr"))
        ['param_groups.0.weight.lr', 'param_groups.1.bias.lr', 'param_groups.1.weight.lr']
    """
    if not model_parts:
        raise ValueError("there is no model part to optimize; give at least one")
    parts = [parameter_groups(p, rules=rules, defaults=defaults, partial=True, **options) for p in model_parts]
    return OptimizersContainer(model_parts, [PolarGrad(groups) for groups in parts])


def optimizer_config(
    *,
    rules: Sequence[Rule] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Mapping[str, Any],
) -> Any:
    """The `optimizer` of a torchtitan `Trainer.Config`, whose `build(model_parts=...)` is `build_optimizers`.

    torchtitan's learning rates multiply those of every role by its schedule::

        config = llama3_debugmodel()
        config.optimizer = optimizer_config(rules=[("output.weight", "head")], hidden={"lr": 0.02})

    Args:
        rules: as of `build_optimizers`, and so are the others.
        defaults: options per role instead of the built-in ones.
        **options: a mapping of group options per role.

    Raises:
        ImportError: torchtitan is not installed.
    """
    from torchtitan.components.optimizer import OptimizersContainer as Theirs  # pyright: ignore[reportMissingImports]

    @dataclass(kw_only=True, slots=True)
    class Config(Theirs.Config):
        """PolarGrad for every model part."""

        rules: Sequence[Rule] = ()
        defaults: Mapping[str, Mapping[str, Any]] | None = None
        options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

        def build(self, *, model_parts: Sequence[nn.Module]) -> OptimizersContainer:
            return build_optimizers(model_parts, rules=self.rules, defaults=self.defaults, **self.options)

    return Config(rules=rules, defaults=defaults, options=options)


class LRSchedulersContainer:
    """A `LambdaLR` for each optimizer of a container, moved on, saved and loaded as one.

    Only the number of steps is saved: the base rates differ from group to group and from part to part, and are those
    of the optimizers at hand.

    Args:
        optimizers: the container.
        schedule: step, counted from 0, to what every group's rate is multiplied by.
    """

    def __init__(self, optimizers: OptimizersContainer, schedule: Callable[[int], float]) -> None:
        self.schedulers = [lr_scheduler(optimizer, schedule) for optimizer in optimizers]

    def __iter__(self) -> Iterator[LambdaLR]:
        return iter(self.schedulers)

    def __len__(self) -> int:
        return len(self.schedulers)

    def get_metrics(self) -> dict[str, float]:
        """The current rates for a log: lr/ROLE of each group; groups of one role and rate are one entry.

        Groups of one role with different rates are told apart by a number, as are those without a role.
        """
        found: dict[str, float] = {}
        for scheduler in self.schedulers:
            groups = scheduler.optimizer.param_groups
            for position, (group, rate) in enumerate(zip(groups, scheduler.get_last_lr(), strict=True)):
                key = f"lr/{group.get('role', position)}"
                if found.setdefault(key, float(rate)) != float(rate):
                    found[f"{key}/{position}"] = float(rate)
        return found

    def step(self) -> None:
        """Move on by one step."""
        for scheduler in self.schedulers:
            scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps."""
        return {"last_epoch": self.schedulers[0].last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the schedule at the saved step, whatever the division into parts was."""
        step = int(state_dict["last_epoch"])
        for scheduler in self.schedulers:
            rates = [base * at(step) for base, at in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            scheduler.load_state_dict(
                {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates, "lr_lambdas": [None] * len(rates)}
            )
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def build_lr_schedulers(optimizers: OptimizersContainer, schedule: Callable[[int], float]) -> LRSchedulersContainer:
    """The schedulers of a container; `polargrad.lab.train` has schedules.

    Example:
        >>> from torch import nn
        >>> optimizers = build_optimizers([nn.Linear(4, 3)], hidden={"lr": 0.02}, vector={"lr": 0.01})
        >>> schedulers = build_lr_schedulers(optimizers, lambda step: 1 / (step + 1))
        >>> optimizers.step(), schedulers.step()
        (None, None)
        >>> [group["lr"] for group in optimizers.param_groups]
        [0.01, 0.005]
    """
    return LRSchedulersContainer(optimizers, schedule)
