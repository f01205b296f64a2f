"""The spectral norm: its oracle is the polar factor, its dual the nuclear norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.geometry.base import Geometry, Reduction, register
from polargrad.linalg import PolarMethod, polar_factor, resolve_method
from polargrad.linalg.decomposition import unwidened_factor
from polargrad.linalg.method import Accuracy

__all__ = ["Spectral"]


@register
@dataclass(frozen=True)
class Spectral(Geometry):
    """||X||_2, with lmo(G) = U and ||G||_* = ||G||_nuc = <G, U>, where G = U H.

    With the dual norm it is PolarGrad and stochastic spectral descent, without it Muon.

    Args:
        method: the algorithm for U, a name or a `PolarMethod`.
        max_steps: limit on its iterations.
        accuracy: what to ask of `method="auto"`: a number, or "full".

    Example:
        >>> import torch
        >>> Spectral("svd").dual_norm(torch.diag(torch.tensor([3.0, -4.0]))).item()
        7.0

    Source: Lau, Long, Su, arXiv 2505.21799, eq. of PolarGrad.
    """

    name: ClassVar[str] = "spectral"
    reduction: ClassVar[Reduction | None] = "gram"
    method: str | PolarMethod = "auto"
    max_steps: int | None = None
    accuracy: Accuracy | None = None

    def __post_init__(self) -> None:
        self.resolved_method(torch.float64)

    def resolved_method(self, dtype: torch.dtype) -> PolarMethod:
        """The polar method with its steps or accuracy, for matrices of `dtype`.

        Raises:
            ValueError: the method cannot be held to the accuracy in `dtype`.
        """
        return resolve_method(self.method, self.max_steps, self.accuracy, dtype)

    def resolved_lmo(self, dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
        """The polar factor by the resolved method, in the half precision that this works in, if it does."""
        return partial(unwidened_factor, method=self.resolved_method(dtype).on(device))

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Refuse a dtype in which the method cannot be held to the accuracy."""
        self.resolved_method(dtype)

    def squared_length(self, m: int, n: int) -> float:
        """min(m, n), the rank."""
        return float(min(m, n))

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Floating-point operations of the polar method on m >= n."""
        return self.resolved_method(dtype).operations(max(m, n), min(m, n), dtype)

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which the polar method works."""
        return self.resolved_method(dtype).working_dtype(dtype)

    @property
    def peak_memory(self) -> float:
        """The most memory that the polar method holds at once, in sizes of G in the dtype in which it works."""
        return self.resolved_method(torch.float64).peak_memory

    def bytes_per_entry(self, dtype: torch.dtype, device: torch.device) -> float:
        """`peak_memory` in the dtype in which the polar method works on `device`."""
        return self.peak_memory * self.resolved_method(dtype).on(device).working_dtype(dtype).itemsize

    def lmo(self, G: Tensor) -> Tensor:
        """The unitary polar factor of each matrix of G (*batch, m, n)."""
        return polar_factor(G, self.resolved_method(G.dtype))

    def lmo_above(self, G: Tensor, norm_floor: float | Tensor) -> Tensor:
        """The polar factor where ||G||_F is at least `norm_floor`; below, a direction that goes to zero with G."""
        return polar_factor(G, self.resolved_method(G.dtype), norm_floor=norm_floor)
