"""Momentum orders: where the average sits, before the direction or after it.

Each works in place on lists of buffers M and knows two moments of a step: `source`, what the direction is taken of, and
`direction`, what the weights move along. `keep` is None, or one boolean tensor per buffer that broadcasts against it;
where it is False, the buffer stays bit for bit what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MOMENTUM_ORDERS", "HeavyBall", "Momentum", "MomentumFirst", "PolarFirst"]

Keep = Sequence[Tensor] | None


@dataclass(frozen=True)
class Momentum:
    """One order of averaging and taking the direction; this one takes no average at all.

    Args:
        beta: in [0, 1).
        nesterov: look ahead by one step.
    """

    beta: float
    nesterov: bool = False

    @property
    def gain(self) -> float:
        """Bound on max |M| over the largest gradient entry ever seen; it keeps the buffers from overflowing."""
        return 1.0

    def source(self, gradients: list[Tensor], buffers: list[Tensor], keep: Keep) -> list[Tensor]:
        """What the direction is taken of; finite wherever the buffers are."""
        return gradients if keep is None else _where(keep, gradients, 0.0)

    def direction(self, directions: list[Tensor], buffers: list[Tensor], keep: Keep) -> list[Tensor]:
        """What the weights move along."""
        return directions


def _where(keep: Sequence[Tensor], tensors: Sequence[Tensor], other: Sequence[Tensor] | float) -> list[Tensor]:
    others = [other if isinstance(other, int | float) else other[i] for i in range(len(tensors))]
    return [torch.where(k, t, o) for k, t, o in zip(keep, tensors, others, strict=True)]


def _average(tensors: list[Tensor], buffers: list[Tensor], keep: Keep, beta: float, nesterov: bool) -> list[Tensor]:
    """M <- beta M + (1 - beta) T; with Nesterov beta M + (1 - beta) T of the new M, which leaves T as it is."""
    if keep is not None:
        tensors = _where(keep, tensors, buffers)  # M + (1 - beta) (M - M) is M exactly
    torch._foreach_lerp_(buffers, tensors, 1 - beta)
    return list(torch._foreach_lerp(tensors, buffers, beta)) if nesterov else buffers


class MomentumFirst(Momentum):
    """M <- beta M + (1 - beta) G, direction of M; with Nesterov of beta M + (1 - beta) G."""

    def source(self, gradients: list[Tensor], buffers: list[Tensor], keep: Keep) -> list[Tensor]:
        return _average(gradients, buffers, keep, self.beta, self.nesterov)


class PolarFirst(Momentum):
    """U from G, M <- beta M + (1 - beta) U, step along M; with Nesterov along beta M + (1 - beta) U."""

    def direction(self, directions: list[Tensor], buffers: list[Tensor], keep: Keep) -> list[Tensor]:
        return _average(directions, buffers, keep, self.beta, self.nesterov)


class HeavyBall(Momentum):
    """M <- beta M + G, direction of M; with Nesterov of beta M + G."""

    @property
    def gain(self) -> float:
        return 1.0 / (1.0 - self.beta)

    def source(self, gradients: list[Tensor], buffers: list[Tensor], keep: Keep) -> list[Tensor]:
        if keep is None:
            torch._foreach_mul_(buffers, self.beta)
            torch._foreach_add_(buffers, gradients)
        else:
            gradients = _where(keep, gradients, 0.0)
            stepped = torch._foreach_add(torch._foreach_mul(buffers, self.beta), gradients)
            torch._foreach_copy_(buffers, _where(keep, stepped, buffers))
        return list(torch._foreach_add(gradients, buffers, alpha=self.beta)) if self.nesterov else buffers


MOMENTUM_ORDERS: dict[str, type[Momentum]] = {
    "momentum-first": MomentumFirst,
    "polar-first": PolarFirst,
    "heavy-ball": HeavyBall,
}
