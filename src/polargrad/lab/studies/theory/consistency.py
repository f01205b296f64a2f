"""Null-gradient consistency: does the update vanish with the gradient?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from polargrad.lab.studies.theory.levels import log_slope
from polargrad.optim import PolarGrad
from polargrad.optim.update import SCALES

MakeOptimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def _polargrad(**options: Any) -> MakeOptimizer:
    return lambda p: PolarGrad(p, lr=0.01, **options)


# Steepest descent in each norm: the geometry, and the polar method of those that have one.
_NORMS: Mapping[str, Mapping[str, str]] = {
    "Frobenius": {"geometry": "frobenius"},
    "entrywise": {"geometry": "entrywise"},
    "rows": {"geometry": "rows"},
    "columns": {"geometry": "columns"},
    "spectral": {"geometry": "spectral", "method": "svd"},
    "one-sided spectral": {"geometry": "right-polar"},
}


OPTIMIZERS: Mapping[str, MakeOptimizer] = MappingProxyType(
    {
        "gradient descent": lambda p: torch.optim.SGD(p, lr=0.01),
        "heavy ball": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "Adam, eps 0": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0),
        "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
        "AdaGrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
        "torch Muon": lambda p: torch.optim.Muon(p, lr=0.01, weight_decay=0.0),
        "Muon": _polargrad(momentum=0.95, nesterov=True, scale="spectral", method="newton-schulz", max_steps=5),
        **{f"PolarGrad, scale {scale}": _polargrad(momentum=0.95, scale=scale) for scale in SCALES},
        **{
            f"{norm} norm, {size}": _polargrad(momentum=0.0, scale=scale, **options)
            for norm, options in _NORMS.items()
            for size, scale in (("with dual norm", "nuclear"), ("without", "none"))
        },
    }
)


@dataclass(frozen=True)
class Response:
    """How the size of an update follows the size of the gradient.

    Args:
        optimizer: its name.
        gradient_norms: Frobenius norms of the gradient.
        update_norms: Frobenius norms of the last update.
    """

    optimizer: str
    gradient_norms: list[float]
    update_norms: list[float]

    @property
    def slope(self) -> float:
        """Exponent of the update's size as a power of the gradient's, over the whole range."""
        return log_slope(self.gradient_norms, self.update_norms)

    @property
    def local_slopes(self) -> list[float]:
        """The exponent between neighbouring gradients."""
        g, u = self.gradient_norms, self.update_norms
        return [log_slope(g[i : i + 2], u[i : i + 2]) for i in range(len(g) - 1)]

    @property
    def verdict(self) -> str:
        """Proportional all the way ("yes"), constant ("no"), or constant until an eps takes over ("below eps")."""
        slopes = self.local_slopes
        if all(abs(slope - 1.0) < 0.01 for slope in slopes):
            return "yes"
        return "no" if all(abs(slope) < 0.01 for slope in slopes) else "below eps"


def response(optimizer: str, generator: torch.Generator, *, decades: int = 12, repeats: int = 20) -> Response:
    """Feed one gradient, scaled over `decades` powers of ten, `repeats` times each, and measure the last update.

    Repeating lets averages of gradients and of their squares settle. The parameter is set to zero before each step, so
    that rounding of the parameter does not hide a tiny update.
    """
    G: Tensor = torch.randn(12, 8, dtype=torch.float64, generator=generator)
    G = G / torch.linalg.matrix_norm(G)
    result = Response(optimizer, [], [])
    for exponent in range(decades + 1):
        scale = 10.0**-exponent
        p = torch.nn.Parameter(torch.zeros_like(G))
        instance = OPTIMIZERS[optimizer]([p])
        for _ in range(repeats):
            p.data.zero_()
            p.grad = scale * G
            instance.step()
        result.gradient_norms.append(scale)
        result.update_norms.append(float(torch.linalg.matrix_norm(p.detach())))
    return result
