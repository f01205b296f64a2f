"""The mathematics of one direction: what a geometry says about a batch of matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from polargrad.geometry import Geometry, inner
from polargrad.optim.functional import statistics_dtype

__all__ = ["Answer", "Oracle"]


class Answer(NamedTuple):
    """What an oracle says about a batch M (k, m, n).

    Attributes:
        direction: (k, m, n), for the spectral geometry the unitary factors U.
        dual_norm: (k,), <M, U> in at least float32.
        squared_length: (k,), ||U||_F^2 (the rank, for an exact polar factor), or None where the oracle was not asked.
    """

    direction: Tensor
    dual_norm: Tensor
    squared_length: Tensor | None


@dataclass(frozen=True)
class Oracle:
    """M (k, m, n) -> (lmo(M), <M, lmo(M)>, ||lmo(M)||_F^2 where asked).

    Args:
        geometry: the norm.
        squared_lengths: whether to ask for the last.

    Example:
        >>> import torch
        >>> from polargrad.geometry import Spectral
        >>> Oracle(Spectral("svd"))(torch.eye(2).expand(1, 2, 2)).dual_norm.tolist()
        [2.0]
    """

    geometry: Geometry
    squared_lengths: bool = False

    def __call__(self, M: Tensor) -> Answer:
        U = self.geometry.lmo(M)
        wide = statistics_dtype(M.dtype)
        nu = inner(M.to(wide), U.to(wide))
        return Answer(U, nu, U.to(wide).square().sum((-2, -1)) if self.squared_lengths else None)
