"""PolarGrad: steepest descent along polar factors, as a torch optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from polargrad.geometry import Spectral, inner
from polargrad.optim.adamw import adamw_step
from polargrad.optim.distributor import SingleProcess
from polargrad.optim.matrix_view import matrix_view
from polargrad.optim.momentum import ema_, lookahead
from polargrad.optim.scaling import SCALES, step_scale

__all__ = ["PolarGrad"]

_RULES = ("polar", "adamw")


class PolarGrad(torch.optim.Optimizer):
    r"""Steps along the unitary polar factor of the momentum, scaled by its nuclear norm.

    With G the gradient of a weight matrix W (m, n) and scale s (PolarGrad: the nuclear norm nu = <M, U>)::

        M <- beta M + (1 - beta) G;   M = U H;   W <- (1 - lr * weight_decay) W - lr * s * U

    Groups with `rule="adamw"` are stepped by torch's AdamW in the same object, so a whole model needs one optimizer;
    `polargrad.parameter_groups(model)` makes the groups.

    Args:
        params: parameters, named parameters or groups. A group may set every option below for itself, and
            `rule="adamw"` with `betas` and `eps`.
        lr: step size gamma; for `scale="rms"` it is comparable with AdamW's.
        momentum: beta in [0, 1).
        nesterov: take the polar factor of (1 - beta) G + beta M instead of M.
        weight_decay: decoupled, times lr.
        scale: "nuclear" (PolarGrad), "mean-singular" (nuclear / min(m, n)), "none" (matrix sign descent),
            "spectral" (sqrt(max(1, m/n)), Muon), "rms" (0.2 sqrt(max(m, n)), matches AdamW).
        method: name of the polar method; "newton-schulz" with `max_steps=5` is Muon's, "qdwh" with `max_steps=2` the
            paper's.
        max_steps: limit on the iterations of the polar method.
        on_nonfinite: "skip" leaves a parameter whose gradient has NaN or infinity as it is and counts it in
            `skipped`; "raise" stops.
        betas: of AdamW groups.
        eps: of AdamW groups.

    Raises:
        ValueError: an option out of its range, a vector in a polar group, an unknown method, rule or scale.
        TypeError: integer or complex parameters.

    Example:
        >>> import torch, polargrad
        >>> W = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = polargrad.PolarGrad([W], lr=0.1, momentum=0.0)
        >>> (W.diagonal() * torch.tensor([3.0, 1.0])).sum().backward()
        >>> optimizer.step()
        >>> W.detach().diagonal().tolist()
        [0.6000000238418579, 0.6000000238418579]

    Source: Lau, Long, Su, arXiv 2505.21799, momentum-first PolarGrad; Muon: Jordan et al. (2024).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        scale: str = "nuclear",
        method: str = "auto",
        max_steps: int | None = None,
        on_nonfinite: str = "skip",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "rule": "polar",
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "scale": scale,
            "method": method,
            "max_steps": max_steps,
            "on_nonfinite": on_nonfinite,
            "betas": betas,
            "eps": eps,
        }
        self._skipped = 0
        self._distributor = SingleProcess()
        super().__init__(params, defaults)

    @property
    def skipped(self) -> int:
        """How many parameter updates were skipped because the gradient was not finite."""
        return self._skipped

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and parameters.

        Raises:
            ValueError: an unknown option, or a value out of range; the message names it.
            TypeError: a parameter of a dtype that cannot be optimized.
        """
        if isinstance(param_group, dict):
            unknown = set(param_group) - set(self.defaults) - {"params", "param_names", "role", "initial_lr"}
            if unknown:
                raise ValueError(
                    f"unknown option {', '.join(sorted(map(repr, unknown)))} in a parameter group; "
                    f"known: {', '.join(sorted(self.defaults))}, role"
                )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_options(group)
            _check_parameters(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group; a closure is evaluated with gradients enabled and its loss returned.

        Raises:
            RuntimeError: a sparse gradient; or, with `on_nonfinite="raise"`, a gradient with NaN or infinity.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = self._usable(group)
            if not parameters:
                continue
            gradients = [p.grad for p in parameters if p.grad is not None]
            states = [self.state[p] for p in parameters]
            if group["rule"] == "adamw":
                adamw_step(parameters, gradients, states, group)
            else:
                self._polar_step(parameters, gradients, states, group)
        return loss

    def _usable(self, group: dict[str, Any]) -> list[Tensor]:
        """The group's parameters that have a finite dense gradient."""
        having = [p for p in group["params"] if p.grad is not None]
        for p in having:
            if p.grad.is_sparse:
                raise RuntimeError(
                    f"{_name(group, p)} has a sparse gradient, which polar factors are not defined for; "
                    "make the embedding with sparse=False"
                )
        norms = torch._foreach_norm([p.grad for p in having], torch.inf) if having else ()
        finite = [bool(norm.isfinite()) if p.numel() else True for p, norm in zip(having, norms, strict=True)]
        bad = [p for p, ok in zip(having, finite, strict=True) if not ok]
        if bad:
            names = ", ".join(_name(group, p) for p in bad)
            if group["on_nonfinite"] == "raise":
                raise RuntimeError(f"the gradient of {names} holds NaN or infinity; nothing of this group was stepped")
            if not self._skipped:
                warnings.warn(f"skipped the update of {names}: its gradient holds NaN or infinity", stacklevel=4)
            self._skipped += len(bad)
        return [p for p, ok in zip(having, finite, strict=True) if ok]

    def _polar_step(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        geometry = Spectral(group["method"], group["max_steps"])
        for p, state in zip(parameters, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        buffers = [state["momentum_buffer"] for state in states]
        beta = group["momentum"]
        ema_(buffers, gradients, beta)
        moments = lookahead(buffers, gradients, beta) if group["nesterov"] else buffers
        views = [matrix_view(p.shape, group) for p in parameters]
        matrices = [view.split(M)[0] for view, M in zip(views, moments, strict=True)]
        directions = self._distributor.directions(matrices, geometry.lmo)
        lr, decay = group["lr"], group["weight_decay"]
        for p, M, U in zip(parameters, matrices, directions, strict=True):
            factor = step_scale(group["scale"], inner(M, U), *M.shape[1:])
            if isinstance(factor, Tensor):
                U = factor[:, None, None].to(U.dtype) * U
                factor = 1.0
            if decay:
                p.mul_(1 - lr * decay)
            p.add_(U.reshape(p.shape), alpha=-lr * factor)


def _name(group: dict[str, Any], parameter: Tensor) -> str:
    """What to call a parameter in a message."""
    position = next(i for i, p in enumerate(group["params"]) if p is parameter)
    names = group.get("param_names")
    return repr(names[position]) if names else f"parameter {position} of shape {tuple(parameter.shape)}"


def _check_options(group: dict[str, Any]) -> None:
    if group["rule"] not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(_RULES)}, got {group['rule']!r}")
    if group["scale"] not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {group['scale']!r}")
    if group["on_nonfinite"] not in ("skip", "raise"):
        raise ValueError(f"on_nonfinite must be 'skip' or 'raise', got {group['on_nonfinite']!r}")
    for option, value in (("lr", group["lr"]), ("weight_decay", group["weight_decay"]), ("eps", group["eps"])):
        if not 0.0 <= float(value) < float("inf"):
            raise ValueError(f"{option} must be finite and at least 0, got {value}")
    betas = (("momentum", group["momentum"]), *(("betas", beta) for beta in group["betas"]))
    for option, value in betas:
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{option} must lie in [0, 1), got {value}")
    if group["nesterov"] and not group["momentum"]:
        raise ValueError("nesterov=True needs momentum > 0")
    if not isinstance(group["method"], str):
        raise TypeError(f"method must be a name (groups hold plain data), got {type(group['method']).__name__}")
    Spectral(group["method"], group["max_steps"])


def _check_parameters(group: dict[str, Any]) -> None:
    for p in group["params"]:
        if not p.is_floating_point():
            raise TypeError(f"{_name(group, p)} has dtype {p.dtype}; only real floating-point parameters are supported")
        if group["rule"] == "polar" and p.ndim < 2:
            raise ValueError(
                f"{_name(group, p)} of shape {tuple(p.shape)} is no matrix and cannot be in a polar group; put it "
                "into a group with rule='adamw' (polargrad.parameter_groups(model) does so)"
            )
