"""PolarGrad: steepest descent along polar factors, as a torch optimizer."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from polargrad.geometry import Geometry
from polargrad.linalg import PolarMethod
from polargrad.linalg.method import Accuracy
from polargrad.optim.execution import Executor, all_within, executor_for, shared_group
from polargrad.optim.nonfinite import SkipLedger, listed
from polargrad.optim.options import (
    Rule,
    check_parameters,
    check_rate,
    check_values,
    fill_options,
    parameter_name,
    plain_options,
    resolve,
)
from polargrad.optim.update import Observer, StepContext
from polargrad.optim.whitening import Whitening

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
            and `heads`, see `matrix_view`), and `norm_floor` (1e-7; torch.optim.Muon's `eps`: where the Frobenius norm
            of what a direction is taken of is below it, the direction goes to zero with it, and a matrix whose gradient
            vanished comes to rest; for steps that do not vanish by themselves, as those of "nuclear" with alpha=1 and
            "mean-singular" do unless `scope="group"`);
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
        self._unplaced()
        super().__init__(params, defaults)
        _ = self.executor

    def _unplaced(self) -> None:
        """Forget the groups, where their parameters are, and the step that failed."""
        self._rules: list[Rule] = []
        self._ruled: list[dict[str, Any]] = []  # the groups that these are the rules of
        self._executor: Executor | None = None
        self._placement: list[tuple[Any, ...]] = []
        # Of a step that failed: the gradients that were used up, as they were.
        self._used: dict[Tensor, tuple[weakref.ref[Tensor], int]] = {}

    @property
    def skipped(self) -> int:
        """The number of matrix updates skipped as not finite; warns of parameters skipped since the last reading.

        A momentum that holds NaN or infinity, which no gradient would mend, starts again from zero in those entries.

        Raises:
            RuntimeError: parameters of groups with `on_nonfinite="raise"` were skipped, although their gradients were
                finite.
        """
        total, fresh = self._ledger.read()
        names: dict[str, list[str]] = {"gradient": [], "momentum": [], "refused": []}
        for index, position in fresh:
            group = self.param_groups[index]
            refuses = group["on_nonfinite"] == "raise"
            cause = "gradient" if self._mend(group["params"][position], refuses) else "momentum"
            names["refused" if refuses else cause].append(parameter_name(group, position))
        if names["refused"]:
            raise RuntimeError(
                f"the update of {listed(names['refused'])} was skipped: its gradient is finite, but its momentum, or "
                "the direction computed from it, is not; load an earlier state, or choose another method"
            )
        if names["momentum"]:
            warnings.warn(
                f"skipped updates of {listed(names['momentum'])}: the momentum held NaN or infinity, as after loading "
                "a damaged state; those entries start again from zero",
                stacklevel=3,
            )
        if names["gradient"]:
            warnings.warn(
                f"skipped updates of {listed(names['gradient'])}: the gradient, or the direction computed from it, "
                "holds NaN or infinity; weights and state stayed as they were. If that is every parameter, the loss "
                "itself is not finite, as after too large a learning rate",
                stacklevel=3,
            )
        return total

    def _mend(self, p: Tensor, look: bool) -> bool:
        """Whether the momentum here is finite; if not, and unless only to `look`, its bad entries are set to zero."""
        buffer = self.state[p].get("momentum_buffer")
        if buffer is None or all_within(local := self.executor.local([buffer]), torch.finfo(buffer.dtype).max):
            return True
        if not look:
            local[0].nan_to_num_(0.0, 0.0, 0.0)
        return False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and parameters.

        Raises:
            ValueError: an unknown option, a value out of range, or an option that is not used; the message names it.
            TypeError: a parameter of a dtype that cannot be optimized.
        """
        own: set[str] = set()
        if isinstance(param_group, dict):
            fill_options(param_group, self.defaults, strict=True)
            if self.param_groups and "param_names" in self.param_groups[0]:
                param_group["params"] = self._named(param_group["params"])
            own = set(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for option in set(self.defaults) - own:  # torch fills in the options of the other rule too
                group.pop(option, None)
            rule = resolve(group)
            check_parameters(group, rule)
            if self._executor is not None:
                _ = self.executor
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _named(self, params: Any) -> Any:
        """Parameters with names, as torch wants of all groups or of none: frameworks add parameters without."""
        if isinstance(params, set):  # which torch refuses
            return params
        params = [params] if isinstance(params, Tensor) else list(params)
        index = len(self.param_groups)
        return [(f"group{index}.{i}", p) if isinstance(p, Tensor) else p for i, p in enumerate(params)]

    def __getstate__(self) -> dict[str, Any]:
        ours = {name: getattr(self, name) for name in ("_ledger", "_shard_momentum")}
        return {**super().__getstate__(), **ours, "_process_group": shared_group(self._process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._unplaced()
        self._follow_groups()

    def _follow_groups(self) -> None:
        """Resolve the rules of groups that are new, by whatever way: some callbacks replace the whole list."""
        known = {id(group): rule for group, rule in zip(self._ruled, self._rules, strict=True)}
        for group in self.param_groups:
            if id(group) not in known:
                fill_options(group, self.defaults, strict=False)
                known[id(group)] = resolve(group)
        self._rules = [known[id(group)] for group in self.param_groups]
        self._ruled = list(self.param_groups)

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
                group = {**saved, "params": present["params"]}
                fill_options(group, self.defaults, strict=False)
                rule = resolve(group)
                check_parameters(group, rule)
                for position, key in enumerate(saved["params"][: len(present["params"])]):
                    name, state = parameter_name(present, position), final["state"].get(key, {})
                    rule.check_state(present["params"][position], state, name, self.executor)
                    for entry, value in state.items():
                        if isinstance(value, Tensor) and not all_within(self.executor.local([value]), math.inf):
                            raise ValueError(f"the state of {name} holds NaN in {entry}; load an earlier one")

        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(lambda _: self._take(loaded[-1]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _take(self, saved: dict[str, Any]) -> None:
        """Replace the state that torch has loaded, in the dtypes of the parameters, by the saved one in its own."""
        keys = list(chain.from_iterable(group["params"] for group in saved["param_groups"]))
        for key, (p, rule) in zip(keys, list(self._parameters()), strict=True):
            if key in saved["state"]:
                self.state[p] = self._fitted(p, rule, saved["state"][key])

    def _fitted(self, p: Tensor, rule: Rule, state: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a state with the dtypes, devices and placements that the parameter's own has."""
        own: dict[str, Any] = {}
        rule.add_state(p, own, self.executor)
        return {key: self.executor.adopt(own[key], value) for key, value in state.items() if key in own}

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
        done: list[tuple[int, tuple[int, ...]]] = []
        try:
            for index, (group, rule, positions) in enumerate(zip(self.param_groups, rules, present, strict=True)):
                if positions:
                    context = StepContext(index, self.state, executor, self._ledger, loss, observer, done)
                    rule.step(group, positions, context)
        except BaseException:
            for index, positions in done:
                for p in map(self.param_groups[index]["params"].__getitem__, positions):
                    self._used[p] = (weakref.ref(p.grad), p.grad._version)
            raise
        self._used.clear()
        if self._ledger.seen:
            _ = self.skipped
        return loss

    @property
    def executor(self) -> Executor:
        """Computes directions, and says what of each parameter is local; made anew where parameters have changed."""
        placement = [
            (index, id(p), p.shape, p.dtype, p.device, getattr(p, "placements", None))
            for index, group in enumerate(self.param_groups)
            for p in group["params"]
        ]
        if self._executor is None or placement != self._placement:
            self._place(placement)
        assert self._executor is not None
        return self._executor

    def _place(self, placement: list[tuple[Any, ...]]) -> None:
        """Follow parameters that a framework has replaced, moved, cast or divided since; their state goes with them.

        Raises:
            ValueError: parameters that cannot be stepped, or whose state does not fit them any more.
        """
        self._follow_groups()
        executor = executor_for(self._process_group, self.param_groups, self._shard_momentum)
        held = {id(p): p for p in self.state}
        present = {own[1] for own in placement}
        moves: list[tuple[Tensor, Tensor, Rule]] = []
        for index, group in enumerate(self.param_groups):
            rule = self._rules[index]
            check_parameters(group, rule)
            # With these replaced, position by position; other groups, and other numbers of parameters, are new.
            # A parameter with state keeps its own, wherever it stands now, and so does one that is still in some group.
            before, after = ([own for own in whole if own[0] == index] for whole in (self._placement, placement))
            for position, p in enumerate(group["params"] if len(before) == len(after) else []):
                old = held.get(before[position][1])
                if old is None or before[position] == after[position]:
                    continue
                if old is p or (id(old) not in present and not self.state.get(p)):
                    rule.check_state(p, self.state[old], parameter_name(group, position), executor)
                    moves.append((old, p, rule))
        self._executor, self._placement = executor, placement
        states = [self.state.pop(old) for old, _, _ in moves]
        for (_, p, rule), state in zip(moves, states, strict=True):
            self.state[p] = self._fitted(p, rule, state)

    def _current_rules(self) -> list[Rule]:
        """The rule of each group, resolved anew where an option was changed in `param_groups`.

        Raises:
            ValueError: the changed option is refused; nothing was stepped.
        """
        if list(map(id, self._ruled)) != list(map(id, self.param_groups)):
            self._follow_groups()
        for index, group in enumerate(self.param_groups):
            try:
                lr = group["lr"]
                if not (type(lr) is float and 0.0 <= lr < math.inf):
                    check_rate(f"lr of group {index}", lr, group["params"], group["capturable"])
                for option, value in self._rules[index].options.items():
                    if group[option] != value:
                        rule = resolve(group)
                        check_parameters(group, rule)
                        for position, p in enumerate(group["params"]):
                            name, state = parameter_name(group, position), self.state.get(p, {})
                            rule.check_state(p, state, name, self.executor, loaded=False)
                        self._rules[index] = rule
                        break
            except KeyError as error:
                raise ValueError(f"group {index} has lost its option {error}; nothing was stepped") from None
            except (TypeError, ValueError) as error:
                raise type(error)(f"{error} (group {index}; nothing was stepped)") from None
        return self._rules

    def _parameters(self) -> Iterator[tuple[Tensor, Rule]]:
        """Every parameter with the rule that steps it."""
        for group, rule in zip(self.param_groups, self._current_rules(), strict=True):
            for p in group["params"]:
                yield p, rule

    def _with_gradient(self, group: dict[str, Any]) -> list[int]:
        """The positions of the parameters that have a gradient with entries."""
        positions = []
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.numel():
                if self._used and self._is_used(p):
                    continue
                if p.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{parameter_name(group, i)} has a sparse gradient, for which polar factors are not defined; "
                        "make the embedding with sparse=False"
                    )
                positions.append(i)
        return positions

    def _is_used(self, p: Tensor) -> bool:
        """Whether the last step, which failed, had stepped this parameter along the very gradient that it has."""
        gradient, version = self._used.get(p, (lambda: None, -1))
        return p.grad is not None and gradient() is p.grad and p.grad._version == version

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
    for p, rule in optimizer._parameters():
        if p.numel():
            rule.add_state(p, optimizer.state[p], optimizer.executor)
