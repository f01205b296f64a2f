"""Chosen matrices before and after a step: the raw gradient, the momentum, the weight and how far it moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from polargrad.diagnostics import matrix_metrics
from polargrad.linalg.bounds import spectral_norm

# Names under which optimizers keep an average of the gradients.
_MOMENTA = ("momentum_buffer", "exp_avg", "momentum")
# Of the power iteration for the norm of a weight.
_PRODUCTS = 30


class MatrixProbe:
    """Measures chosen matrices, as the training loop's `probe`; all of it is computed off the timed path.

    Called between the backward pass and the optimizer's step, it gives the metrics of each raw gradient, before
    clipping and without momentum. With an optimizer, `stepped` gives after the step, for each matrix W with momentum
    M::

        update_rms       root mean square of the entries of W_after - W_before, weight decay included
        weight_norm      ||W||_2 after the step, by power iteration (a lower bound, in practice good to two digits)
        momentum_condition_number, momentum_nuclear_norm, momentum_stable_rank, momentum_alignment    of M

    Args:
        parameters: names and their parameters, each a matrix (m, n).
        roles: names and their roles ("embedding", "head", "hidden", ...); "" where a name is missing.
        optimizer: the optimizer that steps them; costs a copy of each matrix. None: gradients alone.

    Raises:
        ValueError: nothing to probe, or a parameter that is not a matrix.

    Example:
        >>> W = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = torch.optim.SGD([W], lr=0.5, momentum=0.9)
        >>> probe = MatrixProbe({"W": W}, optimizer=optimizer)
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
        roles: Mapping[str, str] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if not parameters:
            raise ValueError("a probe needs at least one parameter to look at; leave probe out to look at none")
        for name, parameter in parameters.items():
            if parameter.ndim != 2:
                raise ValueError(f"{name!r} has the shape {tuple(parameter.shape)}: a probe looks at matrices (m, n)")
        self._parameters, self._roles, self._optimizer = dict(parameters), dict(roles or {}), optimizer
        self._before: dict[str, Tensor] = {}

    def __call__(self) -> Iterator[dict[str, Any]]:
        """The metrics of each parameter that has a gradient; with an optimizer its weight is remembered."""
        present = {name: p for name, p in self._parameters.items() if p.grad is not None}
        if self._optimizer is not None:
            self._before = {name: _full(p.detach()).clone() for name, p in present.items()}
        for name, parameter in present.items():
            yield {**self._names(name), "shape": list(parameter.shape), **matrix_metrics(_full(parameter.grad))}

    @torch.no_grad()
    def stepped(self) -> Iterator[dict[str, Any]]:
        """The metrics of each parameter whose weight was remembered before the step."""
        for name, before in self._before.items():
            parameter = self._parameters[name]
            weight = _full(parameter.detach())
            moved = (weight.float() - before.float()).square().mean().sqrt()
            norm = float(spectral_norm(weight.float()[None], steps=_PRODUCTS))
            entry = {**self._names(name), "update_rms": float(moved), "weight_norm": norm}
            state = {} if self._optimizer is None else self._optimizer.state.get(parameter, {})
            momentum = next((state[key] for key in _MOMENTA if isinstance(state.get(key), Tensor)), None)
            if momentum is not None and momentum.shape == parameter.shape:
                entry |= {f"momentum_{metric}": value for metric, value in matrix_metrics(_full(momentum)).items()}
            yield entry
        self._before = {}

    def _names(self, name: str) -> dict[str, Any]:
        return {"role": self._roles.get(name, ""), "parameter": name}


def _full(tensor: Any) -> Tensor:
    """The whole tensor of a DTensor, for which every rank has to ask, or a plain tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
