"""PolarGrad: steepest descent along polar factors, as a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from polargrad.linalg import PolarMethod
from polargrad.linalg.method import Accuracy
from polargrad.optim.adamw import adamw_step
from polargrad.optim.bucket import Bucket, Observer, advance, buckets_of, stack_bytes
from polargrad.optim.distributor import Directions, Distributor, distributor_for
from polargrad.optim.functional import statistics_dtype
from polargrad.optim.momentum import Momentum
from polargrad.optim.nonfinite import SkipLedger, all_within
from polargrad.optim.options import (
    check_options,
    check_parameters,
    geometry_of,
    gradient_limit,
    momentum_dtype,
    momentum_of,
    parameter_name,
    plain_method,
)
from polargrad.optim.oracle import Oracle

__all__ = ["PolarGrad"]

# What a group may hold besides the options: torch's own, and what routing and schedulers write there.
_OF_PROCESSES = ("process_group", "shard_momentum")
_BOOKKEEPING = {"params", "param_names", "role", "initial_lr"}


class PolarGrad(torch.optim.Optimizer):
    r"""Steps along the unitary polar factor of the momentum, scaled by its nuclear norm.

    With G the gradient of a weight matrix W (m, n) and scale s (PolarGrad: the nuclear norm nu = <M, U>)::

        M <- beta M + (1 - beta) G;   M = U H;   W <- (1 - lr * weight_decay) W - lr * s * U

    Groups with `rule="adamw"` are stepped by torch's AdamW in the same object, so a whole model needs one optimizer;
    `polargrad.parameter_groups(model)` makes the groups. docs/optimizer.md has every option with its formula.

    Args:
        params: parameters, named parameters or groups. A group may set every option below for itself, and
            `rule="adamw"` with `betas` and `eps`.
        lr: step size gamma, a number or a tensor with one element; for `scale="rms"` it is comparable with AdamW's.
        momentum: beta in [0, 1).
        momentum_order: "momentum-first" (the average is taken of G, above), "polar-first" (of U: M <- beta M +
            (1 - beta) U, step along nu M) or "heavy-ball" (M <- beta M + G).
        nesterov: look ahead: beta M + (1 - beta) G instead of M, and correspondingly for the other orders.
        weight_decay: decoupled, times lr.
        weight_decay_mode: "plain", or "cautious": only entries that the step moves towards zero.
        scale: "nuclear" (PolarGrad), "mean-singular" (nuclear / min(m, n)), "none" (matrix sign descent), "spectral"
            (sqrt(max(1, m/n)), Muon), "rms" (0.2 sqrt(max(m, n)), matches AdamW), "adaptive-nuclear" (`scale_base`
            times the nuclear norm over its running root mean square).
        scope: "matrix", or "group": all matrices of the group share the sum of their nuclear norms.
        alpha: exponent in [0, 1] on the nuclear norm.
        scale_base: "rms", "spectral" or "none", what "adaptive-nuclear" multiplies.
        scale_beta: decay of its running mean square.
        row_beta: decay of a running mean square of each row of the direction, to whose root the row is divided, so that
            all rows move alike (NorMuon); None leaves them as they are. Rows are outputs, in a table tokens.
        geometry: the norm: "spectral" (polar factor), "left-polar" and "right-polar" (the same through the Gram matrix
            of the rows or columns, for very wide and very tall matrices), "rows", "columns", "entrywise" (sign) or
            "frobenius"; the nuclear norm above is then that geometry's dual norm.
        method: name of the polar method or a `PolarMethod`; "newton-schulz" with `max_steps=5` is Muon's, "qdwh" with
            `max_steps=2` the paper's.
        max_steps: limit on the iterations of the polar method.
        accuracy: what the polar method is held to, instead of `max_steps`.
        step_rule: "fixed" (lr), "smoothness" (lr / (L r) with L = `smoothness` and r the rank of the gradient) or
            "polyak" (lr (f - f*) / nu^2 with f* = `minimum` and f from `step(closure)`).
        smoothness: L, for the rule of that name.
        minimum: f*, for the Polyak rule.
        maximize: ascend instead of descend.
        momentum_dtype: "float32", "bfloat16", "float16" or "float64"; None is the parameter's own.
        on_nonfinite: "skip" leaves weights and state of a matrix with NaN or infinity in its gradient as they are and
            counts it in `skipped`; "raise" stops before anything is stepped and names the parameter.
        capturable: never ask the device for a number, on a CPU too; wanted for CUDA graphs.
        workspace: bound in bytes on the memory that a step holds besides weights, gradients and state; what a single
            parameter needs may exceed it.
        layout: how the parameters of a group store their matrices, "auto", "transposed", "convolution" or
            "transposed-convolution" (`matrix_view`); wanted in groups, like the next two.
        split: sizes of matrices that are stored one below the other, such as [q, k, v].
        heads: how many heads of equal size each of them is cut into.
        rule: "polar" or "adamw", wanted in groups.
        betas: of AdamW groups.
        eps: of AdamW groups.
        process_group: ranks that hold the same parameters, as under DistributedDataParallel, and share the work of a
            step; they must all construct the optimizer and step. None works alone, unless parameters are DTensors
            (FSDP2, tensor parallelism), whose mesh says who shares. docs/distributed.md tells what runs where.
        shard_momentum: whether each rank of `process_group` keeps a part of the momentum of polar groups, a DTensor,
            instead of a copy; not for "polar-first".

    Raises:
        ValueError: an option out of its range, options that contradict each other, a vector in a polar group, a
            parameter whose placement is not supported.
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
        scale: str = "nuclear",
        scope: str = "matrix",
        alpha: float = 1.0,
        scale_base: str = "rms",
        scale_beta: float = 0.9,
        row_beta: float | None = None,
        geometry: str = "spectral",
        method: str | PolarMethod | Mapping[str, Any] = "auto",
        max_steps: int | None = None,
        accuracy: Accuracy | None = None,
        step_rule: str = "fixed",
        smoothness: float | None = None,
        minimum: float | None = None,
        maximize: bool = False,
        momentum_dtype: str | None = None,
        on_nonfinite: str = "skip",
        capturable: bool = False,
        workspace: int = 2**28,
        layout: str = "auto",
        split: Sequence[int] | None = None,
        heads: int | Sequence[int] = 1,
        rule: str = "polar",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        process_group: Any = None,
        shard_momentum: bool = False,
    ) -> None:
        given = dict(locals())
        defaults = {k: v for k, v in given.items() if k not in ("self", "params", *_OF_PROCESSES, "__class__")}
        defaults["method"] = plain_method(method)
        self._ledger = SkipLedger()
        self._process_group, self._shard_momentum = process_group, shard_momentum
        self._distributor: Distributor | None = None
        super().__init__(params, defaults)
        self._distributor = distributor_for(process_group, self.param_groups, shard_momentum)

    @property
    def skipped(self) -> int:
        """How many matrix updates were skipped because they were not finite; warns of parameters skipped lately."""
        return self._ledger.total(lambda group, position: parameter_name(self.param_groups[group], position))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and parameters.

        Raises:
            ValueError: an unknown option, or a value out of range; the message names it.
            TypeError: a parameter of a dtype that cannot be optimized.
        """
        if isinstance(param_group, dict):
            unknown = set(param_group) - set(self.defaults) - _BOOKKEEPING
            if unknown:
                raise ValueError(
                    f"unknown option {', '.join(sorted(map(repr, unknown)))} in a parameter group; "
                    f"known: {', '.join(sorted(self.defaults))}, role"
                )
            if "method" in param_group:
                param_group["method"] = plain_method(param_group["method"])
        super().add_param_group(param_group)
        try:
            check_options(self.param_groups[-1])
            check_parameters(self.param_groups[-1])
            if self._distributor is not None:
                self._distributor = distributor_for(self._process_group, self.param_groups, self._shard_momentum)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        ours = ("_ledger", "_distributor", "_process_group", "_shard_momentum")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for option, default in self.defaults.items():
                if option != "differentiable":  # torch writes it into the defaults; nothing here reads it
                    group.setdefault(option, default)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; momentum and running norms keep their own dtype where torch would take the parameter's.

        Raises:
            ValueError: groups of other sizes, or options out of their range.
        """
        loaded: list[dict[str, Any]] = []
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.append(final))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_dtypes(loaded[-1]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore_dtypes(self, saved: dict[str, Any]) -> None:
        keys = list(chain.from_iterable(group["params"] for group in saved["param_groups"]))
        owners = [(p, group) for group in self.param_groups for p in group["params"]]
        for key, (p, group) in zip(keys, owners, strict=True):
            dtype = momentum_dtype(group, p)
            for name, value in saved["state"].get(key, {}).items():
                if name == "momentum_buffer":
                    self.state[p][name] = self.distributor.adopt(p, value.to(p.device, dtype, copy=True))
                elif name.startswith(("dual_norm", "row_")):
                    self.state[p][name] = value.to(p.device, statistics_dtype(dtype), copy=True)
        for group in self.param_groups:
            check_options(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group; a closure is evaluated with gradients enabled and its loss returned.

        Raises:
            RuntimeError: a sparse gradient; or, with `on_nonfinite="raise"`, a gradient with NaN or infinity.
            ValueError: a rule that needs the loss without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        watched = self.observer is not None and self.observer.wants_step()
        present = [self._present(group) for group in self.param_groups]
        distributor = self.distributor
        distributor.begin(self.param_groups, present)
        for group, positions in zip(self.param_groups, present, strict=True):
            if group["on_nonfinite"] == "raise":
                _refuse_nonfinite(group, positions, distributor)
        for index, (group, positions) in enumerate(zip(self.param_groups, present, strict=True)):
            if not positions:
                continue
            if group["rule"] == "adamw":
                self._adamw_step(index, group, positions)
            else:
                self._polar_step(index, group, positions, loss, watched)
        if self._ledger.seen:
            _ = self.skipped
        return loss

    @property
    def distributor(self) -> Distributor:
        """Who computes which matrix, and what of each parameter is here."""
        assert self._distributor is not None
        return self._distributor

    def _present(self, group: dict[str, Any]) -> list[int]:
        """The positions of the parameters that have a gradient with entries."""
        positions = [i for i, p in enumerate(group["params"]) if p.grad is not None and p.numel()]
        for i in positions:
            if group["params"][i].grad.layout != torch.strided:
                raise RuntimeError(
                    f"{parameter_name(group, i)} has a sparse gradient, which polar factors are not defined for; "
                    "make the embedding with sparse=False"
                )
        return positions

    def _polar_step(self, index: int, group: dict[str, Any], positions: list[int], loss: Any, watched: bool) -> None:
        momentum = momentum_of(group)
        buckets = buckets_of(group, positions, self.state, self.distributor)
        for bucket in buckets:
            bucket.watched = watched
        oracle = Oracle(geometry_of(group), group["step_rule"] == "smoothness")
        questions = (bucket.question(momentum) for bucket in buckets)
        answered = self.distributor.answers(questions, oracle, stack_bytes(group))
        if group["scope"] == "group" or group["step_rule"] == "polyak":
            self._advance(index, group, momentum, list(zip(buckets, answered, strict=True)), loss)
            return
        for bucket in buckets:
            # No variable here may keep the answers of one bucket while the next question is made, nor may zip.
            self._advance(index, group, momentum, [(bucket, next(answered))], loss)

    def _advance(
        self,
        index: int,
        group: dict[str, Any],
        momentum: Momentum,
        together: list[tuple[Bucket, Directions]],
        loss: Any,
    ) -> None:
        advance(group, momentum, together, loss)
        for bucket, found in together:
            self._count_skips(index, bucket)
            if bucket.watched and self.observer is not None:
                self.observer.see(index, group, bucket, found)
                bucket.asked = bucket.update_rms = None

    def _count_skips(self, index: int, bucket: Bucket) -> None:
        if bucket.keep is not None:
            per_parameter = [(~part).sum() for part in bucket.keep.split(bucket.counts)]
            self._ledger.add(index, bucket.positions, torch.stack(per_parameter), unread=bucket.masked)

    def _adamw_step(self, index: int, group: dict[str, Any], positions: list[int]) -> None:
        devices: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i in positions:
            p = group["params"][i]
            devices.setdefault((p.device, p.dtype), []).append(i)
        parts = self.distributor
        for (device, _), members in devices.items():
            wholes = [group["params"][i] for i in members]
            gradients = [parts.gradient(p) for p in wholes]
            masked = group["capturable"] or device.type != "cpu"
            keep = parts.usable(None, wholes, gradients, gradient_limit(group, wholes[0]), masked=masked)
            if keep is not None:
                self._ledger.add(index, tuple(members), (~keep).to(torch.int64), unread=masked)
            chosen = range(len(members)) if keep is None or masked else keep.nonzero().flatten().tolist()
            adamw_step(
                [wholes[i] for i in chosen],
                [gradients[i] for i in chosen],
                [self.state[wholes[i]] for i in chosen],
                group,
                list(keep.unbind()) if masked and keep is not None else None,
                parts.part,
            )


def _refuse_nonfinite(group: dict[str, Any], positions: list[int], distributor: Distributor) -> None:
    gradients = [distributor.gradient(group["params"][i]) for i in positions]
    limits = [torch.finfo(g.dtype).max for g in gradients]
    bad: list[str] = []
    if gradients and not all_within(gradients, min(limits)):
        found = zip(positions, gradients, limits, strict=True)
        bad = [parameter_name(group, i) for i, g, limit in found if not all_within([g], limit)]
    if bad := distributor.everywhere(bad):
        raise RuntimeError(f"the gradient of {', '.join(bad)} holds NaN or infinity; nothing was stepped")
