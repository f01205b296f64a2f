"""Matrices that did not step because a gradient was not finite: counted on the device, named when the count is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor

__all__ = ["SkipLedger"]

# The most parameters that a warning names.
_NAMED = 8


class SkipLedger:
    """How often each parameter's update was skipped.

    Counts are added on the device they come from and read only by `total`. Parameters are keyed by the index of their
    group and their positions in it, which copies and pickles keep.

    Attributes:
        seen: whether a skip was added that the host knows of, so that reading costs nothing.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._reported: dict[tuple[int, int], int] = {}
        self.seen = False

    def add(self, group: int, positions: tuple[int, ...], keep: Tensor, *, unread: bool) -> None:
        """Count the matrices that did not step.

        Args:
            group: the index of the group.
            positions: of P parameters in it.
            keep: bool (K,), the matrices that stepped, K / P for each parameter.
            unread: whether only the device knows them.
        """
        self.seen = self.seen or not unread
        skipped = (~keep).view(len(positions), -1).sum(1)
        key = (group, positions)
        if key in self._counts:
            self._counts[key] += skipped
        else:
            self._counts[key] = skipped

    def total(self, name: Callable[[int, int], str]) -> int:
        """All skips so far; warns of those parameters that were skipped since the last reading.

        Args:
            name: from (group, position) to the name of the parameter in the warning.
        """
        skips: dict[tuple[int, int], int] = {}
        for (group, positions), counts in self._counts.items():
            for position, count in zip(positions, counts.tolist(), strict=True):
                skips[group, position] = skips.get((group, position), 0) + count
        fresh = [key for key, count in skips.items() if count > self._reported.get(key, 0)]
        self._reported, self.seen = skips, False
        if fresh:
            names = ", ".join(name(*key) for key in sorted(fresh)[:_NAMED])
            others = f" and {len(fresh) - _NAMED} others" if len(fresh) > _NAMED else ""
            warnings.warn(
                f"skipped updates of {names}{others}: the gradient, or the direction computed from it, holds NaN or "
                "infinity; weights and state stayed as they were. If that is every parameter, the loss itself is not "
                "finite, as after too large a learning rate",
                stacklevel=4,
            )
        return sum(skips.values())
