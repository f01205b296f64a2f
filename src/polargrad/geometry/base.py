"""Steepest descent in a norm: what every optimizer of the library is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from polargrad.linalg.registry import Registry
from polargrad.linalg.scaling import attenuation

__all__ = ["GEOMETRIES", "Geometry", "Reduction", "inner", "register"]

Reduction = Literal["entries", "rows", "columns", "matrix", "gram"]


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

    A subclass is a frozen dataclass whose fields are plain data. It implements `lmo` and `squared_length`, declares
    what `lmo` costs (`operations`, `working_dtype`, `peak_memory`, and `bytes_per_entry` if that depends on the device)
    and how it is found where matrices are divided among processes (`reduction`), and becomes an option of `PolarGrad`
    by `register`.

    Attributes:
        name: what it is called as an option; the name of the class if it gives none.
        reduction: how the direction of a matrix in parts is found. "entries", "rows", "columns" or "matrix": `lmo`
            divides each of these by its Euclidean length, so that only lengths are summed over the processes. "gram":
            lmo(B T) = B lmo(T) for orthonormal columns B, so that a tall matrix, likewise a wide one, is reduced to a
            small square one by sums of Gram matrices. None: in no such way, the whole matrix has to be in one place.

    Source: Lau, Long, Su, arXiv 2505.21799, section on the unifying view.
    """

    name: ClassVar[str]
    reduction: ClassVar[Reduction | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = vars(cls).get("name", cls.__name__)

    @abstractmethod
    def lmo(self, G: Tensor) -> Tensor:
        """The direction of unit norm with the largest inner product with G (*batch, m, n); zero where G is zero."""

    @abstractmethod
    def squared_length(self, m: int, n: int) -> float:
        """||lmo(G)||_F^2 for a G (m, n) in general position: the rank for the spectral norm, 1 for Frobenius."""

    def lmo_above(self, G: Tensor, norm_floor: float | Tensor) -> Tensor:
        """min(1, ||G||_F / norm_floor) lmo(G), which goes to zero with G; a number, or one for each matrix."""
        D = self.lmo(G)
        if not isinstance(D, Tensor) or D.shape != G.shape:
            shape = tuple(getattr(D, "shape", ()))
            raise ValueError(f"{self.name}.lmo must return directions of G's shape {tuple(G.shape)}; got {shape}")
        return D if isinstance(norm_floor, float) and not norm_floor else D * attenuation(G, norm_floor).to(D.dtype)

    def resolved_lmo(self, dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
        """`lmo_above` for many matrices of `dtype` on `device`, with everything decided that depends on these alone.

        Its result may be in half precision, where that loses nothing.
        """
        return self.lmo_above

    def check_shape(self, m: int, n: int) -> None:  # noqa: B027 - most geometries take every shape
        """Raise ValueError if matrices (m, n) are not for this geometry."""

    def check_dtype(self, dtype: torch.dtype) -> None:  # noqa: B027 - most geometries take every dtype
        """Raise ValueError if the options of this geometry cannot be met for matrices of `dtype`."""

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Floating-point operations of `lmo` for one matrix (m, n) of `dtype`; here those of one normalization."""
        return 4.0 * m * n

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of most operations of `lmo` for matrices of `dtype`."""
        return dtype

    @property
    def peak_memory(self) -> float:
        """The most memory that `lmo` holds at once, in sizes of G counted with at least 4 bytes for an entry."""
        return 4.0

    def bytes_per_entry(self, dtype: torch.dtype, device: torch.device) -> float:
        """The same in bytes for each entry of matrices of `dtype` on `device`; what a step's `workspace` goes by."""
        return self.peak_memory * max(4, dtype.itemsize)

    def dual_norm(self, G: Tensor) -> Tensor:
        """||G||_* of each matrix, shape batch."""
        return inner(G, self.lmo(G))

    def sharp(self, G: Tensor) -> Tensor:
        """The steepest-descent direction ||G||_* lmo(G), of G's shape: it vanishes with G."""
        direction = self.lmo(G)
        return inner(G, direction)[..., None, None] * direction


T = TypeVar("T", bound=Geometry)

# Every geometry by its name, which `PolarGrad(geometry=...)` takes.
GEOMETRIES: Registry[type[Geometry]] = Registry(
    "geometry",
    wanted="a geometry (a subclass of polargrad.geometry.Geometry)",
    fits=lambda found: isinstance(found, type) and issubclass(found, Geometry),
    group="polargrad.geometries",
)


def register(cls: type[T]) -> type[T]:
    """Class decorator: make a geometry, a frozen dataclass whose fields are plain data, available under its `name`.

    Raises:
        ValueError: another geometry has the name.
    """
    GEOMETRIES.add(cls.name, cls)
    return cls
