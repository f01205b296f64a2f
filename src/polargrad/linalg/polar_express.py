"""Polar Express: a different minimax polynomial at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from polargrad.linalg.coefficients import Coefficients, map_interval
from polargrad.linalg.method import Accuracy, check_lower_bound, register, required_tolerance
from polargrad.linalg.minimax import composition, with_safety
from polargrad.linalg.newton_schulz import PolynomialMethod

__all__ = ["PolarExpress"]

# Every step multiplies the smallest singular values by at least 4 until they are near 1, so that this many steps reach
# full double precision from any lower bound that float64 can hold.
_MOST_STEPS = 64


@register
@dataclass(frozen=True)
class PolarExpress(PolynomialMethod):
    """X <- p_k(X) with minimax quintics p_k for singular values in [lower_bound, 1] relative to ||X||_F.

    p_1 is the best odd quintic approximation of 1 on [lower_bound, 1], p_k the best one on the interval that p_1, ...,
    p_{k-1} leave; the schedule is generated for the asked bound and number of steps and kept. Singular values in the
    interval end within `tolerance` of 1.

    Args:
        max_steps: number of steps (5 for Muon-like accuracy, 8 for full float32 accuracy, at the default bound).
        lower_bound: smallest sigma / ||A||_F that the schedule must bring to 1, in (0, 1).
        safety: at least 1; every polynomial before the limiting (1.875, -1.25, 0.375) becomes p(x / safety), against
            rounding past the end of its interval. 1.01 is meant for bfloat16; 1.001 is ample in float32.
        dtype: "bfloat16", "float16", or None for the working dtype of the input.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> method = PolarExpress(max_steps=9)
        >>> method.tolerance(torch.float64, 1) < 1e-12
        True

    Source: Amsel, Persson, Musco, Gower, arXiv 2505.16932, algorithm 1.
    """

    name: ClassVar[str] = "polar-express"
    max_steps: int = 8
    lower_bound: float = 1e-3
    safety: float = 1.01
    dtype: str | None = None

    def __post_init__(self) -> None:
        self._check_steps_and_dtype(self.max_steps)
        check_lower_bound(self.lower_bound)
        if not (math.isfinite(self.safety) and 1.0 <= self.safety <= 1.1):
            raise ValueError(f"safety must lie in [1, 1.1] (1 is none, 1.01 suits bfloat16), got {self.safety!r}")

    def schedule(self, dtype: torch.dtype) -> tuple[Coefficients, ...]:
        return with_safety(composition(self.lower_bound, self.max_steps), self.safety)

    def sigma_floor(self, dtype: torch.dtype) -> float:
        return self.lower_bound

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        return map_interval(self.schedule(dtype), self.lower_bound)

    def with_accuracy(self, accuracy: Accuracy, dtype: torch.dtype) -> PolarExpress:
        """The fewest steps that reach `accuracy` from this `lower_bound` with this `safety`."""
        work = self.working_dtype(dtype)
        for steps in range(1, _MOST_STEPS):
            method = replace(self, max_steps=steps)
            if method.tolerance(work, 1) <= required_tolerance(accuracy, dtype):
                return method
            if 1.0 - method.bounds(work)[0] <= torch.finfo(work).eps:
                break
        super().with_accuracy(accuracy, dtype)
        return self
