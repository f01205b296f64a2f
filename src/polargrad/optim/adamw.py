"""The auxiliary AdamW of vectors, and of embeddings and heads where asked: torch's own functional form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from polargrad.optim.functional import decay_

__all__ = ["adamw_step"]


def adamw_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    keep: list[Tensor] | None,
    part: Callable[[Tensor], Tensor] = lambda whole: whole,
) -> None:
    """One AdamW step (Loshchilov and Hutter 2019) on a list of parameters; their states are made on first use.

    Args:
        parameters: of any shape, on one device.
        gradients: the parts of them that are here.
        states: "step", "exp_avg", "exp_avg_sq" of each.
        group: lr, betas, eps, weight_decay, weight_decay_mode, maximize, capturable.
        keep: boolean scalars on the device, where False nothing of that parameter changes; None steps all.
        part: what is here of a parameter or a moment, sharing its memory.
    """
    for p, state in zip(parameters, states, strict=True):
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=None if keep is None else p.device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        elif keep is not None and state["step"].device != p.device:
            state["step"] = state["step"].to(p.device)
    parameters = [part(p) for p in parameters]
    states = [{key: value if key == "step" else part(value) for key, value in state.items()} for state in states]
    decay = group["weight_decay"]
    if decay and group["weight_decay_mode"] == "cautious":
        # The step goes along the new first moment, whose sign is known before the step.
        moments = [state["exp_avg"].lerp(g, 1 - group["betas"][0]) for g, state in zip(gradients, states, strict=True)]
        sign = -1.0 if group["maximize"] else 1.0
        decay_(parameters, moments, group["lr"] * decay, cautious=True, sign=sign, keep=keep)
        decay = 0.0
    if keep is None:
        _torch_adamw(parameters, gradients, states, group, decay)
        return
    # The fused kernel leaves parameter, moments and step alone where found_inf is 1, without asking the host.
    for p, g, state, usable in zip(parameters, gradients, states, keep, strict=True):
        _torch_adamw([p], [g], [state], group, decay, fused=True, found_inf=1 - usable.to(torch.float32))


def _torch_adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    weight_decay: float,
    fused: bool | None = None,
    found_inf: Tensor | None = None,
) -> None:
    beta1, beta2 = group["betas"]
    lr = group["lr"]
    adamw(
        parameters,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        foreach=None,
        capturable=group["capturable"] and fused is True,
        fused=fused,
        found_inf=found_inf,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=group["eps"],
        maximize=group["maximize"],
    )
