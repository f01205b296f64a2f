"""The spectral norm: its oracle is the polar factor, its dual the nuclear norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polargrad.geometry.base import Geometry
from polargrad.linalg import PolarMethod, polar_factor, resolve_method
from polargrad.linalg.method import Accuracy

__all__ = ["Spectral"]


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
    method: str | PolarMethod = "auto"
    max_steps: int | None = None
    accuracy: Accuracy | None = None

    def __post_init__(self) -> None:
        resolve_method(self.method, self.max_steps)

    def squared_length(self, m: int, n: int) -> float:
        """min(m, n), the rank."""
        return float(min(m, n))

    def footprint(self) -> float:
        """That of the polar method."""
        return resolve_method(self.method, self.max_steps).peak_memory

    def lmo(self, G: Tensor) -> Tensor:
        """The unitary polar factor of each matrix of G (*batch, m, n)."""
        return polar_factor(G, self.method, accuracy=self.accuracy, max_steps=self.max_steps)
