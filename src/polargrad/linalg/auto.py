"""Auto: choose the algorithm from the input, and say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polargrad.linalg.method import Iterate, PolarMethod, register
from polargrad.linalg.svd import SVD

__all__ = ["Auto"]


@register
@dataclass(frozen=True)
class Auto(PolarMethod):
    """The full-accuracy factor at any rank: by the singular value decomposition."""

    name: ClassVar[str] = "auto"

    def iterate(self, X: Tensor) -> Iterate:
        return SVD().iterate(X)
