"""A geometry from outside the package: one class and one line of registration."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from polargrad.geometry import Geometry, register


@register
@dataclass(frozen=True)
class RankOne(Geometry):
    """The nuclear norm as a norm: lmo(G) = u v^T of the largest singular value, which is the dual norm.

    Args:
        rank: how many singular pairs to take; 1 is the nuclear norm.
    """

    name: ClassVar[str] = "rank-one"
    reduction: ClassVar[str] = "gram"
    rank: int = 1

    def squared_length(self, m, n):
        return float(min(self.rank, m, n))

    def operations(self, m, n, dtype=torch.float32):
        return 1000.0 * m * n

    def lmo(self, G):
        P, sigma, Qh = torch.linalg.svd(G, full_matrices=False)
        kept = (torch.arange(sigma.shape[-1]) < self.rank) & (sigma > 0)
        return (P * kept.unsqueeze(-2)) @ Qh
