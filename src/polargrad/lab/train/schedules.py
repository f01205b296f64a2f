"""Learning-rate schedules, and the learning rates of an optimizer's groups under one."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from polargrad.lab.options import check_integer, check_value, unknown_name

_SHARE = {"least": 0, "most": 1}


@dataclass(frozen=True)
class Schedule(ABC):
    """A multiplier of the base learning rate for every step, counted from 0.

    A schedule is plain data: `to_dict` writes it with its name, `schedule_from_dict` reads it back.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The multiplier of a step, counted from 0."""

    def to_dict(self) -> dict[str, Any]:
        """The name and the fields, as plain data."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Constant(Schedule):
    """The base rate at every step: `m(k) = 1`.

    Example:
        >>> Constant()(1000)
        1.0
    """

    name: ClassVar[str] = "constant"

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class _WithWarmup(Schedule):
    """A linear warm-up to the base rate, `m(k) = (k + 1) / warmup` for `k < warmup`, before `_after_warmup`."""

    total: int
    warmup: int = 0

    def __post_init__(self) -> None:
        check_integer("total", self.total)
        check_integer("warmup", self.warmup, 0)

    def __call__(self, step: int) -> float:
        if not 0 <= step < self.total:
            raise ValueError(f"{self} covers steps 0 to {self.total - 1} and not step {step}; make total larger")
        return (step + 1) / self.warmup if step < self.warmup else self._after_warmup(step)

    @abstractmethod
    def _after_warmup(self, step: int) -> float: ...

    def _check_room(self, room: int) -> None:
        if self.warmup > room:
            raise ValueError(
                f"a warm-up of {self.warmup} steps does not fit: {room} steps are left for it; make it shorter"
            )


@dataclass(frozen=True)
class Cosine(_WithWarmup):
    """Linear warm-up, then half a cosine down to `final`.

    `m(k) = (k + 1) / warmup` for `k < warmup`, then
    `m(k) = final + (1 - final) (1 + cos(pi (k - warmup) / (total - warmup))) / 2`.

    Args:
        total: number of steps that the schedule covers.
        warmup: steps of the warm-up, the last of them at the base rate.
        final: the multiplier that the cosine would reach at step `total`.

    Raises:
        ValueError: the warm-up does not fit into `total`, or `final` is not in [0, 1].

    Example:
        >>> schedule = Cosine(total=110, warmup=10)
        >>> schedule(0), schedule(9), round(schedule(60), 3)
        (0.1, 1.0, 0.5)
    """

    final: float = 0.0
    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_value("final", self.final, float, _SHARE)
        self._check_room(self.total)

    def _after_warmup(self, step: int) -> float:
        way = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * way)) / 2.0


@dataclass(frozen=True)
class WarmupLinearDecay(_WithWarmup):
    """Linear warm-up, constant, then linear to zero over the last part of the run.

    `m(k) = (k + 1) / warmup` for `k < warmup`, 1 until the decay begins at `b = total - round(decay_fraction total)`,
    then `m(k) = (total - k) / (total - b)`, which would be 0 at step `total`.

    Args:
        total: number of steps that the schedule covers.
        warmup: steps of the warm-up, the last of them at the base rate.
        decay_fraction: the share of `total` over which the rate falls, in [0, 1].

    Raises:
        ValueError: warm-up and decay overlap, or a field is out of range.

    Example:
        >>> schedule = WarmupLinearDecay(total=200, warmup=10)
        >>> schedule(0), schedule(9), schedule(120), schedule(160), schedule(199)
        (0.1, 1.0, 1.0, 0.5, 0.0125)
    """

    decay_fraction: float = 0.4
    name: ClassVar[str] = "warmup-linear-decay"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_value("decay_fraction", self.decay_fraction, float, _SHARE)
        self._check_room(self.total - self._decay_steps)

    @property
    def _decay_steps(self) -> int:
        return round(self.decay_fraction * self.total)

    def _after_warmup(self, step: int) -> float:
        left = self.total - step
        return min(1.0, left / self._decay_steps) if self._decay_steps else 1.0


@dataclass(frozen=True)
class StepDecay(Schedule):
    """The rate multiplied by `factor` every `every` steps: `m(k) = factor^floor(k / every)`.

    Args:
        every: steps at the same rate.
        factor: multiplier of the rate after them, in (0, 1].

    Raises:
        ValueError: a field is out of range.

    Example:
        >>> StepDecay(every=25, factor=0.5)(50)
        0.25
    """

    every: int
    factor: float
    name: ClassVar[str] = "step-decay"

    def __post_init__(self) -> None:
        check_integer("every", self.every)
        check_value("factor", self.factor, float, {"above": 0, "most": 1})

    def __call__(self, step: int) -> float:
        return self.factor ** (step // self.every)


SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Cosine, WarmupLinearDecay, StepDecay)}


class LearningRates:
    """The learning rates of an optimizer's groups: base rate times the schedule's multiplier.

    Args:
        groups: the optimizer's `param_groups`, at their base rates.
        schedule: step, counted from 0, to multiplier.
    """

    def __init__(self, groups: list[dict[str, Any]], schedule: Callable[[int], float]) -> None:
        self._groups, self._schedule = groups, schedule
        self.base = [float(group["lr"]) for group in groups]
        roles = [str(group.get("role") or f"group{index}") for index, group in enumerate(groups)]
        self._names = [
            role if roles.count(role) == 1 else f"{role}.{roles[:index].count(role)}"
            for index, role in enumerate(roles)
        ]

    def set(self, step: int) -> dict[str, float]:
        """Set every group's rate for a step, counted from 0, and return the rates by the groups' names."""
        multiplier = self._schedule(step)
        rates = [base * multiplier for base in self.base]
        self._assign(rates)
        return dict(zip(self._names, rates, strict=True))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the base rates when the block ends."""
        try:
            yield
        finally:
            self._assign(self.base)

    @contextlib.contextmanager
    def at_base(self) -> Iterator[None]:
        """The base rates within the block."""
        current = [float(group["lr"]) for group in self._groups]
        self._assign(self.base)
        try:
            yield
        finally:
            self._assign(current)

    def _assign(self, rates: list[float]) -> None:
        for group, rate in zip(self._groups, rates, strict=True):
            # A rate that is a tensor keeps its identity: a compiled or captured optimizer reads it from there.
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class _ForAllGroups(LambdaLR):
    """LambdaLR with one multiplier for all groups, also those that are added or replaced later or come with a state."""

    def get_lr(self) -> list[float | Tensor]:
        groups = self.optimizer.param_groups
        for group in groups:
            group.setdefault("initial_lr", group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"])
        self.base_lrs = [group["initial_lr"] for group in groups]
        self.lr_lambdas = self.lr_lambdas[:1] * len(groups)
        return super().get_lr()


def lr_scheduler(optimizer: torch.optim.Optimizer, schedule: Callable[[int], float]) -> LambdaLR:
    """A schedule as torch's own scheduler, for training loops other than ours.

    A torch scheduler moves on after the last step too, past the end of a schedule, and stays at the last multiplier.
    Groups that are added later follow it too, each from the rate that it has when the scheduler first meets it.

    Args:
        optimizer: optimizer whose groups' rates are multiplied.
        schedule: step, counted from 0, to multiplier.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> scheduler = lr_scheduler(optimizer, WarmupLinearDecay(total=2, decay_fraction=1.0))
        >>> rates = []
        >>> for step in range(2):
        ...     rates.append(scheduler.get_last_lr()[0])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates, scheduler.get_last_lr()
        ([0.5, 0.25], [0.25])
    """
    total = getattr(schedule, "total", None)

    def multiplier(step: int) -> float:
        return schedule(step - 1 if step == total else step)

    return _ForAllGroups(optimizer, multiplier)


def schedule_from_dict(plain: dict[str, Any]) -> Schedule:
    """The schedule that `to_dict` wrote.

    Args:
        plain: the name and the fields.

    Returns:
        The schedule.

    Raises:
        ValueError: an unknown name, a field that the schedule does not have, or one that it lacks.

    Example:
        >>> schedule_from_dict({"name": "step-decay", "every": 25, "factor": 0.95})
        StepDecay(every=25, factor=0.95)
    """
    entries = dict(plain)
    name = entries.pop("name", None)
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    kind = SCHEDULES[name]
    try:
        return kind(**entries)
    except TypeError as error:
        allowed = [field.name for field in fields(kind)]
        raise ValueError(f"schedule {name!r} takes {allowed}; got {sorted(entries)}") from error
