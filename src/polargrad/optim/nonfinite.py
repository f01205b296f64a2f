"""Matrices that did not step because a gradient was not finite: counted on the device, named when the count is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["SkipLedger", "clip_gradients", "listed"]

# The largest number of each dtype times this has a square in range, as has any whose own square overflows.
_TINY = {torch.float32: 2.0**-90, torch.float64: 2.0**-700}

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
        """The number of skips so far, and the parameters skipped since the last reading, as (group, position).

        One copy from each device.
        """
        skips: dict[tuple[int, int], int] = {}
        for device in {counts.device for counts in self._counts.values()}:
            there = {key: counts for key, counts in self._counts.items() if counts.device == device}
            slots = [(group, position) for group, positions in there for position in positions]
            for slot, count in zip(slots, torch.cat(list(there.values())).tolist(), strict=True):
                skips[slot] = skips.get(slot, 0) + count
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
        limit: positive and finite.

    Returns:
        The norm before, of the gradients that are finite; infinity where it is beyond float32 (float64, where a
        gradient is float64), and then it is clipped all the same.

    Raises:
        ValueError: a limit that is not a positive, finite number; no gradient is changed.

    Example:
        >>> import torch
        >>> p, q = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        >>> p.grad, q.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, torch.inf])
        >>> clip_gradients([p, q], 1.0).item()
        5.0
        >>> round(p.grad.norm().item(), 4)
        1.0
    """
    if isinstance(limit, bool) or not isinstance(limit, Real) or not 0.0 < limit < math.inf:
        raise ValueError(f"limit must be a positive, finite number, got {limit!r}")
    alike: dict[tuple[Any, torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        if (grad := parameter.grad) is not None:
            # torch works on tensors of one kind: all plain, or all on one mesh.
            key = (getattr(grad, "device_mesh", None), grad.dtype, grad.device)
            alike.setdefault(key, []).append(grad)
    if not alike:
        return torch.zeros(())
    common = torch.promote_types(torch.float32, max((g[0].dtype for g in alike.values()), key=lambda one: one.itemsize))
    tiny = _TINY[common]
    found: list[tuple[Tensor, Tensor]] = []
    for gradients in alike.values():
        wide = torch.promote_types(torch.float32, gradients[0].dtype)
        # Scaled by a power of two, which rounds nothing, no square overflows: one copy at a time.
        plain = torch._foreach_norm(gradients, 2.0, wide)
        small = [torch._foreach_norm([gradient * _TINY[wide]], 2.0, wide)[0] for gradient in gradients]
        found.append((_whole(plain).to(common), _whole(small).to(common) * (tiny / _TINY[wide])))
    plain, small = (torch.cat([part.to(found[0][0].device) for part in parts]) for parts in zip(*found, strict=True))
    total = torch.linalg.vector_norm(torch.where(plain.isfinite(), plain, 0.0))
    overflows = ~total.isfinite() | (small.isfinite() & ~plain.isfinite()).any()
    small = torch.where(plain.isfinite(), plain * tiny, torch.where(small.isfinite(), small, 0.0))
    total = torch.where(overflows, torch.linalg.vector_norm(small), total)
    scale = torch.where(overflows, tiny, torch.ones_like(total))
    factor = (limit / (total + 1e-6 * scale) * scale).clamp(max=1.0)
    for gradients in alike.values():
        torch._foreach_mul_(gradients, factor.to(gradients[0].device))
    return total / scale


def _whole(norms: Sequence[Tensor]) -> Tensor:
    """Norms of tensors that are all plain, or all on one mesh, as one plain vector."""
    stacked: Any = torch.stack(list(norms))
    return stacked.full_tensor() if hasattr(stacked, "full_tensor") else stacked
