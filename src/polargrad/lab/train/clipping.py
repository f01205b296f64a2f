"""The gradient's norm bounded, whatever its parts live on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["clip_gradients"]


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their Frobenius norm, taken together, is at most `limit`.

    Gradients may be plain tensors, equal on every rank, and DTensors on any mesh, side by side.

    Args:
        parameters: those without a gradient are passed over.
        limit: positive.

    Returns:
        The norm before.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradients([p], 1.0).item()
        5.0
        >>> round(p.grad.norm().item(), 4)
        1.0
    """
    alike: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            # torch takes the norm of tensors of one kind: all plain, or all on one mesh.
            alike.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter)
    norms: list[Any] = [
        torch.nn.utils.get_total_norm([p.grad for p in members if p.grad is not None]) for members in alike.values()
    ]
    whole: list[Tensor] = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    if not whole:
        return torch.zeros(())
    total = torch.linalg.vector_norm(torch.stack(whole))
    for members in alike.values():
        torch.nn.utils.clip_grads_with_norm_(members, limit, total)
    return total
