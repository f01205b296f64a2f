"""Gradients that are not finite: found per matrix, counted where they are, named when somebody looks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["SkipLedger", "all_within", "matrices_within"]


def all_within(tensors: Sequence[Tensor], limit: float) -> bool:
    """Whether every entry of every tensor is a number of size at most `limit`; for tensors on the host."""
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        # One vectorized pass; both ends are NaN if an entry is, and the comparison is then false.
        lowest, highest = torch.aminmax(tensor)
        if not -limit <= lowest.item() <= highest.item() <= limit:
            return False
    return True


def matrices_within(batches: Sequence[Tensor], limit: float) -> Tensor:
    """The same for each matrix of batches (k_i, m, n), as a boolean tensor of all of them; stays on the device."""
    return torch.cat([torch.linalg.vector_norm(batch, torch.inf, dim=(-2, -1)) <= limit for batch in batches])


# So many parameters are named in a warning.
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

    def add(self, group: int, positions: tuple[int, ...], counts: Tensor, *, unread: bool) -> None:
        """Add counts (P,) of the parameters at `positions` of a group; `unread` if only the device knows them."""
        self.seen = self.seen or not unread
        key = (group, positions)
        if key in self._counts:
            self._counts[key] += counts
        else:
            self._counts[key] = counts.clone()

    def total(self, name: Callable[[int, int], str]) -> int:
        """All skips so far; warns of those parameters that were skipped since the last reading.

        Args:
            name: from (group, position) to what the parameter is called.
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
