"""AdamW for vectors, and for embeddings and heads where asked: torch's own functional form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from polargrad.optim.execution import Executor, check_state
from polargrad.optim.update import StepContext, decay_factors

__all__ = ["AdamWRule"]


@dataclass(frozen=True, eq=False)
class AdamWRule:
    """The resolved options of an AdamW group, and its step (Loshchilov and Hutter 2019).

    On a CPU, parameters whose gradient is not finite are left out. On a device, and with `capturable`, where the host
    may not look, the whole group keeps its weights and state if one gradient is not finite: one fused call for all.

    Args:
        betas: decays of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: lambda.
        cautious: whether to decay only entries that the step moves towards zero.
        maximize: whether to ascend.
        capturable: whether the host reads nothing from the device, on a CPU too.
        options: the plain options that the others were resolved from.
    """

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    cautious: bool
    maximize: bool
    capturable: bool
    options: Mapping[str, Any]

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest usable gradient entry."""
        return torch.finfo(dtype).max

    def step(self, group: Mapping[str, Any], positions: Sequence[int], context: StepContext) -> None:
        """Step the parameters at `positions` of a group."""
        lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i in positions:
            p = group["params"][i]
            alike.setdefault((p.device, p.dtype), []).append(i)
        for (device, dtype), members in alike.items():
            parameters = [group["params"][i] for i in members]
            gradients = context.executor.gradients(parameters)
            masked = self.capturable or device.type != "cpu"
            limit = self.gradient_limit(dtype)
            keep = context.executor.finite_mask(None, parameters, gradients, limit, masked=masked)
            chosen = range(len(members))
            if keep is not None and masked:
                keep = keep.all().expand(len(members))
            if keep is not None:
                context.skips.add(context.group_index, tuple(members), keep, unread=masked)
                if not masked:
                    chosen = keep.nonzero().flatten().tolist()
                    context.done.append((context.group_index, tuple(sorted({*members} - {members[i] for i in chosen}))))
            parameters, gradients = [parameters[i] for i in chosen], [gradients[i] for i in chosen]
            # One call on a device; elsewhere one parameter after the other, which torch does as well.
            for own in [slice(None)] if masked else [slice(i, i + 1) for i in range(len(parameters))]:
                self._move(lr, parameters[own], gradients[own], context, keep if masked else None)
                context.done.append((context.group_index, tuple(members[i] for i in chosen[own])))

    def check_state(
        self, parameter: Tensor, state: Mapping[str, Any], name: str, executor: Executor, *, loaded: bool = True
    ) -> None:
        """Refuse a loaded state whose tensors are missing or have other shapes than the parameter's own."""
        for key in ("exp_avg", "exp_avg_sq"):
            check_state(state, {key: parameter.shape, "step": ()}, name, loaded=loaded)

    def add_state(self, parameter: Tensor, state: dict[str, Any], executor: Executor) -> None:
        """Give a parameter the state before its first step, zeros, where it is missing."""
        masked = self.capturable or parameter.device.type != "cpu"
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if masked else None)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        elif masked and state["step"].device != parameter.device:
            state["step"] = state["step"].to(parameter.device)

    def _move(
        self,
        lr: float | Tensor,
        parameters: list[Tensor],
        gradients: list[Tensor],
        context: StepContext,
        keep: Tensor | None,
    ) -> None:
        """Step parameters on one device; where `keep`, equal booleans (P,) there, is False, nothing changes.

        They step with their whole state or, where torch's AdamW fails, not at all: it works on copies of what it would
        leave half done. The fused kernel leaves nothing half done by itself; but it walks through memory without a look
        at strides, so that what is not contiguous goes through copies there too.
        """
        executor, states = context.executor, [context.states[p] for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            self.add_state(p, state, executor)
        W, steps = executor.local(parameters), [state["step"] for state in states]
        m, v = (executor.local([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq"))
        decay, held = self.weight_decay, [W, m, v, steps]
        if keep is not None:
            gradients = [g.contiguous() for g in gradients]
            strided = not all(map(Tensor.is_contiguous, chain(W, m, v)))
            held = [W, m, v] if strided else [W] if self.cautious else []
        copies = [[tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors] for tensors in held]
        W, m, v, steps = (*copies, *[W, m, v, steps][len(copies) :])
        if decay and self.cautious:
            # The step goes along the new first moment, whose sign is known before the step.
            moments = [old.lerp(g, 1 - self.betas[0]) for g, old in zip(gradients, m, strict=True)]
            step = None if keep is None else list(keep.unbind())
            sign = -1.0 if self.maximize else 1.0
            factors = decay_factors(W, moments, lr * decay, cautious=True, sign=sign, keep=step)
            torch._foreach_mul_(W, factors)
            decay = 0.0
        # Where found_inf is 1 the fused kernel leaves parameters, moments and steps alone, without asking the host.
        found_inf = None if keep is None else 1 - keep[0].to(torch.float32)
        self._torch_adamw(lr, W, gradients, m, v, steps, decay, found_inf)
        for tensors, new in zip(held, copies, strict=True):
            torch._foreach_copy_(tensors, new)

    def _torch_adamw(
        self,
        lr: float | Tensor,
        parameters: list[Tensor],
        gradients: list[Tensor],
        first_moments: list[Tensor],
        second_moments: list[Tensor],
        steps: list[Tensor],
        weight_decay: float,
        found_inf: Tensor | None = None,
    ) -> None:
        """Torch's functional AdamW, fused where there is a `found_inf`."""
        fused = None if found_inf is None else True
        adamw(
            parameters,
            gradients,
            first_moments,
            second_moments,
            [],
            steps,
            foreach=None,
            capturable=self.capturable and fused is True,
            fused=fused,
            found_inf=found_inf,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=self.maximize,
        )
