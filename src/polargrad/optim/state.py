"""The optimizer's state before its first step, for whoever must know all of it beforehand, as a checkpoint must."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polargrad.optim.functional import statistics_dtype
from polargrad.optim.matrix_view import matrix_view
from polargrad.optim.options import momentum_dtype
from polargrad.optim.polargrad import PolarGrad
from polargrad.optim.rows import initial_rows

__all__ = ["initialize_state"]


def initialize_state(optimizer: PolarGrad) -> None:
    """Give every parameter the state that its first step would find: zeros. What is there stays as it is.

    A step makes the state of the parameters that have a gradient in it, so that two optimizers may hold different
    entries; after this they hold the same.

    Example:
        >>> optimizer = PolarGrad([torch.nn.Parameter(torch.eye(2))], scale="adaptive-nuclear")
        >>> initialize_state(optimizer)
        >>> sorted(optimizer.state[optimizer.param_groups[0]["params"][0]])
        ['dual_norm_rms', 'dual_norm_weight', 'momentum_buffer']
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.numel():
                for key, value in _initial(optimizer, p, group).items():
                    optimizer.state[p].setdefault(key, value)


def _initial(optimizer: PolarGrad, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    if group["rule"] == "adamw":
        on_device = group["capturable"] or p.device.type != "cpu"
        return {
            "step": torch.zeros((), dtype=torch.float32, device=p.device if on_device else None),
            "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
        }
    dtype = momentum_dtype(group, p)
    state = {"momentum_buffer": optimizer.distributor.zeros(p, dtype)}
    view = matrix_view(p.shape, group)
    if group["scale"] == "adaptive-nuclear":
        count = sum(k for k, _, _ in view.batches)
        for key in ("dual_norm_rms", "dual_norm_weight"):
            state[key] = torch.zeros(count, dtype=statistics_dtype(dtype), device=p.device)
    if group["row_beta"] is not None:
        state |= initial_rows(view, p, dtype, optimizer.distributor)
    return state
