"""The Frobenius norm: gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.geometry.base import Geometry, Reduction, register

__all__ = ["Frobenius"]


@register
@dataclass(frozen=True)
class Frobenius(Geometry):
    """||X||_F, self-dual, with lmo(G) = G / ||G||_F: normalized gradient descent, and gradient descent with the norm.

    Example:
        >>> import torch
        >>> Frobenius().dual_norm(torch.tensor([[3.0, 4.0]])).item()
        5.0
    """

    name: ClassVar[str] = "frobenius"
    reduction: ClassVar[Reduction | None] = "matrix"

    def squared_length(self, m: int, n: int) -> float:
        """1."""
        return 1.0

    def lmo(self, G: Tensor) -> Tensor:
        """G / ||G||_F for each matrix, zero where G is zero."""
        norm = torch.linalg.matrix_norm(G, keepdim=True)
        return G / torch.where(norm > 0, norm, torch.ones_like(norm))
