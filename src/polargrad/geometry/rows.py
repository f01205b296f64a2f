"""Row-wise and column-wise Euclidean norms: each row or column normalized by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.geometry.base import Geometry, Reduction, register

__all__ = ["Columns", "Rows"]


def _normalize(G: Tensor, dim: int) -> Tensor:
    norm = torch.linalg.vector_norm(G, dim=dim, keepdim=True)
    return G / torch.where(norm > 0, norm, torch.ones_like(norm))


@register
@dataclass(frozen=True)
class Rows(Geometry):
    """max over rows of ||x_i||_2, with lmo(G) = rows of G normalized and ||G||_* = sum of the row norms.

    Example:
        >>> import torch
        >>> Rows().dual_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).item()
        7.0
    """

    name: ClassVar[str] = "rows"
    reduction: ClassVar[Reduction | None] = "rows"

    def squared_length(self, m: int, n: int) -> float:
        """m: every row has length 1."""
        return float(m)

    def lmo(self, G: Tensor) -> Tensor:
        """Each row divided by its length; zero rows stay zero."""
        return _normalize(G, -1)


@register
@dataclass(frozen=True)
class Columns(Geometry):
    """max over columns of ||x_j||_2, the transpose of `Rows`.

    Example:
        >>> import torch
        >>> Columns().dual_norm(torch.tensor([[3.0, 0.0], [4.0, 2.0]])).item()
        7.0
    """

    name: ClassVar[str] = "columns"
    reduction: ClassVar[Reduction | None] = "columns"

    def squared_length(self, m: int, n: int) -> float:
        """n: every column has length 1."""
        return float(n)

    def lmo(self, G: Tensor) -> Tensor:
        """Each column divided by its length; zero columns stay zero."""
        return _normalize(G, -2)
