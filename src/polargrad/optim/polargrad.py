"""PolarGrad: steepest descent along polar factors, as a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from polargrad.geometry import Geometry
from polargrad.linalg import PolarMethod
from polargrad.linalg.method import Accuracy
from polargrad.optim.execution import Executor, all_within, executor_for, statistics_dtype
from polargrad.optim.nonfinite import SkipLedger
from polargrad.optim.options import (
    Rule,
    check_parameters,
    check_values,
    fill_options,
    parameter_name,
    plain_options,
    resolve,
)
from polargrad.optim.update import Observer, PolarRule, StepContext
from polargrad.optim.whitening import AGE, Whitening

__all__ = ["PolarGrad", "initialize_state"]


class PolarGrad(torch.optim.Optimizer):
    r"""Steps along the unitary polar factor of the momentum, scaled by its nuclear norm.

    With G the gradient of a weight matrix W (m, n) and scale s (PolarGrad: the nuclear norm nu = <M, U>)::

        M <- beta M + (1 - beta) G;   M = U H;   W <- (1 - lr * weight_decay) W - lr * s * U

    Groups with `rule="adamw"` are stepped by torch's AdamW in the same object, so a whole model needs one optimizer;
    `polargrad.parameter_groups(model)` makes the groups. docs/optimizer.md has every option with its formula.

    Args:
        params: parameters, named parameters or groups. A group may set every option below but the last two for itself,
            and besides those by which its parameters are split into matrices (`layout`, `stack`, `split`, `interleave`
            and `heads`, see `matrix_view`);
            or `rule="adamw"` with `betas` and `eps`. Of the options below, an AdamW group takes lr, weight_decay,
            weight_decay_mode, maximize, on_nonfinite and capturable.
        lr: step size gamma, a number or a tensor with one element; for `scale="rms"` it is comparable with AdamW's.
        momentum: beta in [0, 1).
        momentum_order: "momentum-first" (the average is taken of G, above), "polar-first" (of U: M <- beta M +
            (1 - beta) U, step along nu M) or "heavy-ball" (M <- beta M + G).
        nesterov: look ahead: beta M + (1 - beta) G instead of M, and correspondingly for the other orders.
        weight_decay: decoupled, times lr.
        weight_decay_mode: "plain", or "cautious": only entries that the step moves towards zero.
        scale: "nuclear" (PolarGrad), "mean-singular" (nuclear / min(m, n)), "none" (matrix sign descent), "spectral"
            (sqrt(max(1, m/n)), Muon), "rms" (0.2 sqrt(max(m, n)), matches AdamW), "adaptive-nuclear" (the nuclear norm
            over its running root mean square, times the base "rms"); or a mapping of the name and its options:
            {"name": "nuclear", "alpha": 0.5} raises the nuclear norm to a power in [0, 1], {"name": "adaptive-nuclear",
            "base": "rms", "beta": 0.9, "alpha": 1.0} are the defaults of that scale.
        scope: "matrix", or "group": all matrices of the group share the sum of their nuclear norms.
        step_rule: "fixed" (lr), {"name": "smoothness", "smoothness": L} (lr / (L r) with r the rank of the gradient) or
            {"name": "polyak", "minimum": f*} (lr (f - f*) / nu^2 with f from `step(closure)`), or the same with
            "capped-polyak" (min(lr, (f - f*) / nu^2)).
        normalize_rows: decay in [0, 1) of a running mean square of each row of the direction, by whose root the row is
            divided, so that all rows move alike (NorMuon); None leaves them as they are. Rows are outputs, in a table
            tokens.
        whitening: "two-sided" or "one-sided" (the shorter side): running covariances L and R of the gradient whiten
            the momentum before its direction is taken, N <- L^-p N R^-p; or a mapping of the name and its options:
            {"name": "two-sided", "power": 0.3, "beta": 0.98, "every": 5, "damping": 1e-5, "max_side": 8192} are the
            defaults, `every` the steps between new roots. None is no whitening.
        geometry: the norm: "spectral" (polar factor), "left-polar" and "right-polar" (the same through the Gram matrix
            of the rows or columns, for very wide and very tall matrices), "rows", "columns", "entrywise" (sign) or
            "frobenius"; a `Geometry`; the nuclear norm above is then that geometry's dual norm.
        method: name of the polar method, a `PolarMethod`, or a mapping of the name and its options; "newton-schulz"
            with `max_steps=5` is Muon's, "qdwh" with `max_steps=2` the paper's. The spectral geometry uses it, and the
            next two.
        max_steps: limit on the iterations of the polar method.
        accuracy: what the polar method is held to, instead of `max_steps`.
        maximize: ascend instead of descend.
        momentum_dtype: "float32", "bfloat16", "float16" or "float64"; None is the parameter's own.
        on_nonfinite: "skip" leaves weights and state of a matrix with NaN or infinity in its gradient as they are and
            counts it in `skipped`; "raise" stops before anything is stepped and names the parameter.
        capturable: never read a number from the device, on a CPU too; needed for CUDA graphs.
        workspace: bound in bytes on the memory that a step holds besides weights, gradients and state; what a single
            parameter needs may exceed it. None is 256 MiB on a CPU and 1/32 of the memory of a GPU.
        process_group: ranks that hold the same parameters, as under DistributedDataParallel, and share the work of a
            step; they must all construct the optimizer and step. None is a single process, unless parameters are
            DTensors (FSDP2, tensor parallelism), whose mesh says who shares. docs/distributed.md says what runs where.
        shard_momentum: whether each rank of `process_group` keeps a part of the momentum of polar groups, a DTensor,
            instead of a copy; not for "polar-first".

    Raises:
        ValueError: an option out of its range, one that the chosen geometry, method, scale or step rule does not use,
            options that contradict each other, a vector in a polar group, a parameter whose placement is not supported.
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

    # Sees what a step computed, where it wants to; `polargrad.diagnostics.Recorder` is one.
    observer: Observer | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.95,
        momentum_order: str = "momentum-first",
        nesterov: bool = False,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "plain",
        scale: str | Mapping[str, Any] = "nuclear",
        scope: str = "matrix",
        step_rule: str | Mapping[str, Any] = "fixed",
        normalize_rows: float | Mapping[str, Any] | None = None,
        whitening: str | Whitening | Mapping[str, Any] | None = None,
        geometry: str | Geometry | Mapping[str, Any] = "spectral",
        method: str | PolarMethod | Mapping[str, Any] = "auto",
        max_steps: int | None = None,
        accuracy: Accuracy | None = None,
        maximize: bool = False,
        momentum_dtype: str | None = None,
        on_nonfinite: str = "skip",
        capturable: bool = False,
        workspace: int | None = None,
        process_group: Any = None,
        shard_momentum: bool = False,
    ) -> None:
        given = dict(locals())
        outside = ("self", "params", "process_group", "shard_momentum", "__class__")
        defaults = {option: value for option, value in given.items() if option not in outside}
        plain_options(defaults)
        check_values(defaults)
        self._ledger = SkipLedger()
        self._process_group, self._shard_momentum = process_group, shard_momentum
        self._rules: list[Rule] = []
        self._executor: Executor | None = None
        super().__init__(params, defaults)
        self._executor = executor_for(process_group, self.param_groups, shard_momentum)

    @property
    def skipped(self) -> int:
        """The number of matrix updates skipped as not finite; warns of parameters skipped since the last reading."""
        return self._ledger.total(lambda group, position: parameter_name(self.param_groups[group], position))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and parameters.

        Raises:
            ValueError: an unknown option, a value out of range, or an option that is not used; the message names it.
            TypeError: a parameter of a dtype that cannot be optimized.
        """
        own: set[str] = set()
        if isinstance(param_group, dict):
            fill_options(param_group, self.defaults, strict=True)
            own = set(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for option in set(self.defaults) - own:  # torch fills in the options of the other rule too
                group.pop(option, None)
            rule = resolve(group)
            check_parameters(group, rule)
            if self._executor is not None:
                self._executor = executor_for(self._process_group, self.param_groups, self._shard_momentum)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._rules.append(rule)

    def __getstate__(self) -> dict[str, Any]:
        ours = ("_ledger", "_executor", "_process_group", "_shard_momentum")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            fill_options(group, self.defaults, strict=False)
        self._rules = [resolve(group) for group in self.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; momentum and running norms keep their own dtype where torch would take the parameter's.

        Raises:
            ValueError: the state of another optimizer, groups of other sizes, options that are refused, or a tensor of
                another shape than the parameter's; nothing is loaded.
        """
        loaded: list[dict[str, Any]] = []

        def check(_: Any, final: dict[str, Any]) -> None:
            loaded.append(final)
            for saved, present in zip(final["param_groups"], self.param_groups, strict=False):
                if "rule" not in saved:
                    raise ValueError(
                        "the state is of another optimizer: its groups have no 'rule'; load it into the kind of "
                        "optimizer that saved it"
                    )
                group = dict(saved)
                fill_options(group, self.defaults, strict=False)
                rule = resolve(group)
                for position, key in enumerate(saved["params"][: len(present["params"])]):
                    state = final["state"].get(key, {})
                    rule.check_state(
                        present["params"][position], state, parameter_name(present, position), self.executor
                    )

        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_dtypes(loaded[-1]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore_dtypes(self, saved: dict[str, Any]) -> None:
        keys = list(chain.from_iterable(group["params"] for group in saved["param_groups"]))
        owners = [(p, rule) for p, _, rule in self._parameters()]
        for key, (p, rule) in zip(keys, owners, strict=True):
            if not isinstance(rule, PolarRule):
                continue
            dtype = rule.momentum_dtype or p.dtype
            for name, value in saved["state"].get(key, {}).items():
                if name == "momentum_buffer":
                    self.state[p][name] = self.executor.adopt(p, value.to(p.device, dtype, copy=True))
                elif name == AGE:
                    self.state[p][name] = value.to("cpu", torch.int64, copy=True)
                elif isinstance(value, Tensor):
                    self.state[p][name] = value.to(p.device, statistics_dtype(dtype), copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group; a closure is evaluated with gradients enabled and its loss returned.

        Raises:
            RuntimeError: a sparse gradient; or, with `on_nonfinite="raise"`, a gradient with NaN or infinity.
            ValueError: a step rule that needs the loss, without a closure; an option that was set to a refused value.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        observer = self.observer if self.observer is not None and self.observer.wants_step() else None
        executor, rules = self.executor, self._current_rules()
        present = list(map(self._with_gradient, self.param_groups))
        executor.begin(self.param_groups, [rule.gradient_limit for rule in rules], present)
        for group, positions in zip(self.param_groups, present, strict=True):
            if group["on_nonfinite"] == "raise":
                self._refuse_nonfinite(group, positions)
        for index, (group, rule, positions) in enumerate(zip(self.param_groups, rules, present, strict=True)):
            if positions:
                rule.step(group, positions, StepContext(index, self.state, executor, self._ledger, loss, observer))
        if self._ledger.seen:
            _ = self.skipped
        return loss

    @property
    def executor(self) -> Executor:
        """Computes directions, and says what of each parameter is local."""
        assert self._executor is not None
        return self._executor

    def _current_rules(self) -> list[Rule]:
        """The rule of each group, resolved anew where an option was changed in `param_groups`."""
        for index, group in enumerate(self.param_groups):
            lr = group["lr"]
            if not isinstance(lr, Tensor) and not 0.0 <= lr < math.inf:
                raise ValueError(f"lr of group {index} must be finite and at least 0, got {lr}; nothing was stepped")
            for option, value in self._rules[index].options.items():
                if group[option] != value:
                    self._rules[index] = resolve(group)
                    break
        return self._rules

    def _parameters(self) -> Iterator[tuple[Tensor, dict[str, Any], Rule]]:
        """Each parameter with its group and rule."""
        for group, rule in zip(self.param_groups, self._current_rules(), strict=True):
            for p in group["params"]:
                yield p, group, rule

    def _with_gradient(self, group: dict[str, Any]) -> list[int]:
        """The positions of the parameters that have a gradient with entries."""
        positions = []
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.numel():
                if p.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{parameter_name(group, i)} has a sparse gradient, for which polar factors are not defined; "
                        "make the embedding with sparse=False"
                    )
                positions.append(i)
        return positions

    def _refuse_nonfinite(self, group: dict[str, Any], positions: list[int]) -> None:
        gradients = self.executor.gradients([group["params"][i] for i in positions])
        bad = [
            parameter_name(group, i)
            for i, gradient in zip(positions, gradients, strict=True)
            if not all_within([gradient], torch.finfo(gradient.dtype).max)
        ]
        if bad := self.executor.gather_names(bad):
            raise RuntimeError(f"the gradient of {', '.join(bad)} holds NaN or infinity; nothing was stepped")


def initialize_state(optimizer: PolarGrad) -> None:
    """Give every parameter the state before its first step, zeros; what is there stays as it is.

    A step makes the state of the parameters that have a gradient in it, so that two optimizers may hold different
    entries; after this they hold the same.

    Example:
        >>> optimizer = PolarGrad([torch.nn.Parameter(torch.eye(2))], scale="adaptive-nuclear")
        >>> initialize_state(optimizer)
        >>> sorted(optimizer.state[optimizer.param_groups[0]["params"][0]])
        ['dual_norm_rms', 'dual_norm_weight', 'momentum_buffer']
    """
    for p, _, rule in optimizer._parameters():
        if p.numel():
            rule.add_state(p, optimizer.state[p], optimizer.executor)
