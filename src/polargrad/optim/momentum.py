"""Momentum: small pure updates on lists of buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ema_", "lookahead"]


def ema_(buffers: Sequence[Tensor], gradients: Sequence[Tensor], beta: float) -> None:
    """M <- beta M + (1 - beta) G, in place."""
    torch._foreach_lerp_(list(buffers), list(gradients), 1 - beta)


def lookahead(buffers: Sequence[Tensor], gradients: Sequence[Tensor], beta: float) -> list[Tensor]:
    """Nesterov's (1 - beta) G + beta M, as new tensors: the gradients stay what they are."""
    return list(torch._foreach_lerp(list(gradients), list(buffers), beta))
