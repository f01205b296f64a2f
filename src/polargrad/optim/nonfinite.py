"""Matrices that did not step because a gradient was not finite: counted on the device, named when the count is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["SkipLedger", "clip_gradients", "listed"]

# The most parameters that a message names.
_NAMED = 8


class SkipLedger:
    """How often each parameter's update was skipped.

    Counts are added on the device they come from and read only by `read`. Parameters are keyed by the index of their
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

    def read(self) -> tuple[int, list[tuple[int, int]]]:
        """All skips so far; and those parameters that were skipped since the last reading, as (group, position)."""
        skips: dict[tuple[int, int], int] = {}
        for (group, positions), counts in self._counts.items():
            for position, count in zip(positions, counts.tolist(), strict=True):
                skips[group, position] = skips.get((group, position), 0) + count
        fresh = [key for key, count in skips.items() if count > self._reported.get(key, 0)]
        self._reported, self.seen = skips, False
        return sum(skips.values()), sorted(fresh)


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many others there are.

    Example:
        >>> listed(["a", "b"])
        'a, b'
    """
    others = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + others


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their Frobenius norm, taken together, is at most `limit`.

    A gradient with NaN or infinity has no part in the norm, and the optimizer skips it. (By
    `torch.nn.utils.clip_grad_norm_` a single infinite entry makes all other gradients zero.) Gradients may be plain
    tensors, equal on every rank, and DTensors on any mesh, side by side. The host reads nothing.

    Args:
        parameters: parameters; those without a gradient are passed over.
        limit: positive.

    Returns:
        The norm before, of the gradients that are finite.

    Example:
        >>> import torch
        >>> p, q = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        >>> p.grad, q.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, torch.inf])
        >>> clip_gradients([p, q], 1.0).item()
        5.0
        >>> round(p.grad.norm().item(), 4)
        1.0
    """
    alike: dict[tuple[Any, torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        if (grad := parameter.grad) is not None:
            # torch works on tensors of one kind: all plain, or all on one mesh.
            key = (getattr(grad, "device_mesh", None), grad.dtype, grad.device)
            alike.setdefault(key, []).append(parameter)
    found: list[Tensor] = []
    for (_, dtype, _), members in alike.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        norms: Any = torch.stack(torch._foreach_norm([p.grad for p in members if p.grad is not None], 2, wide))
        found.append(norms.full_tensor() if hasattr(norms, "full_tensor") else norms)
    if not found:
        return torch.zeros(())
    norms = torch.cat([norm.to(found[0].device) for norm in found])
    total = torch.linalg.vector_norm(torch.where(norms.isfinite(), norms, 0.0))
    for members in alike.values():
        torch.nn.utils.clip_grads_with_norm_(members, limit, total)
    return total
