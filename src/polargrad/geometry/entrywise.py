"""The largest entry as a norm: sign descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polargrad.geometry.base import Geometry, Reduction, register

__all__ = ["Entrywise"]


@register
@dataclass(frozen=True)
class Entrywise(Geometry):
    """max |x_ij|, with lmo(G) = sign(G) and ||G||_* = sum |g_ij|: signSGD, and Adam without memory.

    Example:
        >>> import torch
        >>> Entrywise().dual_norm(torch.tensor([[3.0, -4.0]])).item()
        7.0
    """

    name: ClassVar[str] = "entrywise"
    reduction: ClassVar[Reduction | None] = "entries"

    def squared_length(self, m: int, n: int) -> float:
        """M n: every entry is a sign."""
        return float(m * n)

    def lmo(self, G: Tensor) -> Tensor:
        """sign(G), for complex entries g / |g|."""
        return G.sgn()
