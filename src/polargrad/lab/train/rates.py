"""Learning rates of an optimizer's groups under a schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


class Rates:
    """The groups' learning rates: base rate times the schedule's multiplier."""

    def __init__(self, groups: list[dict[str, Any]], schedule: Callable[[int], float]) -> None:
        self._groups = groups
        self._schedule = schedule
        self.base = [float(group["lr"]) for group in groups]
        self._names = _group_names(groups)

    def set(self, step: int) -> dict[str, float]:
        """Give every group its rate of a step, counted from 0, and return the rates by the groups' names."""
        multiplier = self._schedule(step)
        rates = [base * multiplier for base in self.base]
        for group, rate in zip(self._groups, rates, strict=True):
            _assign(group, rate)
        return dict(zip(self._names, rates, strict=True))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put the base rates back in the end."""
        try:
            yield
        finally:
            for group, rate in zip(self._groups, self.base, strict=True):
                _assign(group, rate)


def _assign(group: dict[str, Any], rate: float) -> None:
    # A rate that is a tensor keeps its identity: a compiled or captured optimizer reads it from there.
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _group_names(groups: list[dict[str, Any]]) -> list[str]:
    roles = [str(group.get("role") or f"group{index}") for index, group in enumerate(groups)]
    return [
        role if roles.count(role) == 1 else f"{role}.{roles[:index].count(role)}" for index, role in enumerate(roles)
    ]
