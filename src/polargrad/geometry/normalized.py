"""Norms whose oracle divides the entries, rows or columns of a matrix, or the matrix itself, by their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.geometry.base import Geometry, Reduction, register

__all__ = ["Columns", "Entrywise", "Frobenius", "Rows"]


@dataclass(frozen=True)
class _Normalized(Geometry):
    """lmo(G) divides each part of G along `dims` by its Euclidean length; parts that are zero stay zero."""

    dims: ClassVar[tuple[int, ...]]

    def lmo(self, G: Tensor) -> Tensor:
        """G (*batch, m, n) over the lengths of its parts."""
        length = torch.linalg.vector_norm(G, dim=self.dims, keepdim=True)
        return G / torch.where(length > 0, length, torch.ones_like(length))


@register
@dataclass(frozen=True)
class Rows(_Normalized):
    """max over rows of ||x_i||_2, with lmo(G) = rows of G normalized and ||G||_* = sum of the row norms.

    Example:
        >>> import torch
        >>> Rows().dual_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).item()
        7.0
    """

    name: ClassVar[str] = "rows"
    reduction: ClassVar[Reduction | None] = "rows"
    dims: ClassVar[tuple[int, ...]] = (-1,)

    def squared_length(self, m: int, n: int) -> float:
        """m, since every row has length 1."""
        return float(m)


@register
@dataclass(frozen=True)
class Columns(_Normalized):
    """max over columns of ||x_j||_2, the transpose of `Rows`.

    Example:
        >>> import torch
        >>> Columns().dual_norm(torch.tensor([[3.0, 0.0], [4.0, 2.0]])).item()
        7.0
    """

    name: ClassVar[str] = "columns"
    reduction: ClassVar[Reduction | None] = "columns"
    dims: ClassVar[tuple[int, ...]] = (-2,)

    def squared_length(self, m: int, n: int) -> float:
        """n, since every column has length 1."""
        return float(n)


@register
@dataclass(frozen=True)
class Frobenius(_Normalized):
    """||X||_F, self-dual, with lmo(G) = G / ||G||_F: normalized gradient descent, and gradient descent with the norm.

    Example:
        >>> import torch
        >>> Frobenius().dual_norm(torch.tensor([[3.0, 4.0]])).item()
        5.0
    """

    name: ClassVar[str] = "frobenius"
    reduction: ClassVar[Reduction | None] = "matrix"
    dims: ClassVar[tuple[int, ...]] = (-2, -1)

    def squared_length(self, m: int, n: int) -> float:
        """1."""
        return 1.0


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
        """m n, since every entry is a sign."""
        return float(m * n)

    def lmo(self, G: Tensor) -> Tensor:
        """sign(G), for complex entries g / |g|."""
        return G.sgn()
