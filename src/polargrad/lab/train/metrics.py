"""What a gradient matrix looks like: probes of the raw gradients of chosen parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from polargrad.diagnostics import matrix_metrics

__all__ = ["GradientProbe", "matrix_metrics", "whole"]


def whole(tensor: Any) -> Tensor:
    """All of a DTensor, for which every rank has to ask, or a plain tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class GradientProbe:
    """Records the figures of the raw gradients of chosen matrices, as the training loop's `probe`.

    The loop calls it between the backward pass and the optimizer's step, off the timed path. The figures are of the
    gradient itself: of no momentum, and before clipping.

    Args:
        parameters: names and their parameters, each a matrix (m, n).
        roles: names and their roles ("embedding", "head", "hidden", ...); "" where a name is missing.

    Raises:
        ValueError: nothing to probe, or a parameter that is not a matrix.
    """

    def __init__(self, parameters: Mapping[str, Tensor], roles: Mapping[str, str] | None = None) -> None:
        if not parameters:
            raise ValueError("a probe needs at least one parameter to look at; leave probe out to look at none")
        for name, parameter in parameters.items():
            if parameter.ndim != 2:
                raise ValueError(f"{name!r} has the shape {tuple(parameter.shape)}: a probe looks at matrices (m, n)")
        self._parameters = dict(parameters)
        self._roles = dict(roles or {})

    def __call__(self) -> Iterable[dict[str, Any]]:
        """One entry for each parameter that has a gradient."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            yield {
                "role": self._roles.get(name, ""),
                "parameter": name,
                "shape": list(parameter.shape),
                **matrix_metrics(whole(parameter.grad)),
            }
