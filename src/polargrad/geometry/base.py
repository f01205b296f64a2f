"""Steepest descent in a norm: what every optimizer of the library is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

__all__ = ["GEOMETRIES", "Geometry", "inner", "register"]


def inner(A: Tensor, B: Tensor) -> Tensor:
    """The Frobenius inner product Re tr(A^H B) of each matrix of a batch: (*batch, m, n) twice -> batch.

    Example:
        >>> import torch
        >>> inner(torch.eye(2), torch.ones(2, 2)).item()
        2.0
    """
    product = (A.conj() * B).real if A.is_complex() else A * B
    return product.sum(dim=(-2, -1))


@dataclass(frozen=True)
class Geometry(ABC):
    """A norm on matrices, through its linear minimization oracle.

    For a norm ||.|| with dual ||G||_* = max over ||X|| <= 1 of <G, X>, `lmo(G)` is a maximizer and
    ||G||_* = <G, lmo(G)>. Steepest descent X <- X - gamma ||G||_* lmo(G) minimizes
    <G, X' - X> + ||X' - X||^2 / (2 gamma); without the factor ||G||_* it is sign descent in that norm.

    Source: Lau, Long, Su, arXiv 2505.21799, section on the unifying view.
    """

    name: ClassVar[str]

    @abstractmethod
    def lmo(self, G: Tensor) -> Tensor:
        """The direction of unit norm with the largest inner product with G (*batch, m, n); zero where G is zero."""

    @abstractmethod
    def squared_length(self, m: int, n: int) -> float:
        """||lmo(G)||_F^2 for a G (m, n) in general position: the rank for the spectral norm, 1 for Frobenius."""

    def check_shape(self, m: int, n: int) -> None:  # noqa: B027 - most geometries take every shape
        """Raise ValueError if matrices (m, n) are not for this geometry."""

    def check_dtype(self, dtype: torch.dtype) -> None:  # noqa: B027 - most geometries take every dtype
        """Raise ValueError if the options of this geometry cannot be met for matrices of `dtype`."""

    @property
    def peak_memory(self) -> float:
        """The most memory that `lmo` holds at once, in sizes of G counted with at least 4 bytes for an entry."""
        return 4.0

    def dual_norm(self, G: Tensor) -> Tensor:
        """||G||_* of each matrix, shape batch."""
        return inner(G, self.lmo(G))

    def sharp(self, G: Tensor) -> Tensor:
        """The steepest-descent direction ||G||_* lmo(G), of G's shape: it vanishes with G."""
        direction = self.lmo(G)
        return inner(G, direction)[..., None, None] * direction


T = TypeVar("T", bound=Geometry)

# Every geometry by its name, which `PolarGrad(geometry=...)` takes.
GEOMETRIES: dict[str, type[Geometry]] = {}


def register(cls: type[T]) -> type[T]:
    """Class decorator: make a geometry, a frozen dataclass whose fields are plain data, available under its `name`."""
    GEOMETRIES[cls.name] = cls
    return cls
