"""Chosen matrices before and after a step: the raw gradient, the momentum, the weight and how far it moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from polargrad.diagnostics import matrix_metrics
from polargrad.lab.train.metrics import GradientProbe, whole

__all__ = ["MatrixProbe"]

# Under which names optimizers keep an average of the gradients.
_MOMENTA = ("momentum_buffer", "exp_avg", "momentum")


class MatrixProbe(GradientProbe):
    """`GradientProbe`, and after the step the momentum's figures, the weight's size and how far the step moved it.

    The records after the step hold, for each matrix W with momentum M::

        momentum_condition_number, momentum_nuclear_norm, momentum_stable_rank, momentum_alignment    of M
        update_rms       root mean square of the entries of W_after - W_before, weight decay included
        weight_norm      ||W||_2 after the step, by power iteration (a lower bound, in practice good to two digits)

    All of it is computed off the timed path; what a look costs besides is a copy of each chosen weight.

    Args:
        parameters: names and their parameters, each a matrix (m, n).
        optimizer: steps them; its momentum is looked at where it keeps one.
        roles: names and their roles; "" where a name is missing.

    Raises:
        ValueError: nothing to probe, or a parameter that is not a matrix.

    Example:
        >>> W = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = torch.optim.SGD([W], lr=0.5, momentum=0.9)
        >>> probe = MatrixProbe({"W": W}, optimizer)
        >>> W.grad = torch.eye(2)
        >>> before = list(probe())
        >>> optimizer.step()
        >>> after = next(iter(probe.stepped()))
        >>> after["momentum_nuclear_norm"], round(after["update_rms"], 3), round(after["weight_norm"], 3)
        (2.0, 0.354, 0.5)
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(parameters, roles)
        self._optimizer = optimizer
        self._before: dict[str, Tensor] = {}

    def __call__(self) -> Iterator[dict[str, Any]]:
        """One entry for each parameter that has a gradient; its weight is remembered."""
        self._before = {name: whole(p.detach()).clone() for name, p in self._parameters.items() if p.grad is not None}
        yield from super().__call__()

    @torch.no_grad()
    def stepped(self) -> Iterator[dict[str, Any]]:
        """One entry for each parameter that was looked at before the step."""
        for name, before in self._before.items():
            weight = whole(self._parameters[name].detach())
            moved = (weight.float() - before.float()).square().mean().sqrt()
            entry = {
                "role": self._roles.get(name, ""),
                "parameter": name,
                "update_rms": float(moved),
                "weight_norm": spectral_norm(weight.float()),
            }
            momentum = self._momentum(self._parameters[name])
            if momentum is not None:
                entry |= {f"momentum_{figure}": value for figure, value in matrix_metrics(momentum).items()}
            yield entry
        self._before = {}

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        state = self._optimizer.state.get(parameter, {})
        held = next((state[key] for key in _MOMENTA if isinstance(state.get(key), Tensor)), None)
        return whole(held) if held is not None and held.shape == parameter.shape else None


def spectral_norm(W: Tensor, steps: int = 30) -> float:
    """||W||_2 of a matrix (m, n) by power iteration on W^T W, from below.

    Args:
        W: (m, n), real.
        steps: products with W^T W.

    Example:
        >>> round(spectral_norm(torch.diag(torch.tensor([3.0, 1.0]))), 6)
        3.0
    """
    x = torch.ones(W.shape[1], dtype=W.dtype, device=W.device)
    x += 0.5 * torch.cos(
        torch.arange(W.shape[1], dtype=W.dtype, device=W.device)
    )  # orthogonal to nothing in particular
    for _ in range(steps):
        y = W.mT @ (W @ x)
        size = torch.linalg.vector_norm(y)
        x = torch.where(size > 0, y / size, x / torch.linalg.vector_norm(x))
    return float(torch.linalg.vector_norm(W @ x))
