r"""The step of a polar group, in order: momentum, direction, scale, rows, weight decay, update.

With G the gradient of a matrix W (m, n), M its momentum, D the direction, nu = <N, D> the dual norm of what the
direction is taken of (for the spectral geometry the unitary polar factor and the nuclear norm) and r = ||D||_F^2 for
the shape (min(m, n) for the spectral geometry), `PolarRule.step` does::

    1 momentum    M <- beta M + (1 - beta) G;  N = M, or beta M + (1 - beta) G with Nesterov
                  N <- L^{-p} N R^{-p} where `whitening` asks for it
    2 direction   D = lmo(N);  nu = <N, D>
    3 scale       s = (factor of nu) * (factor of the shape);  gamma by the step rule
    4 rows        D_i <- sqrt(r / (mn)) D_i / rms(D_i)
    5 decay       W <- (1 - lr * weight_decay) W
    6 update      W <- W - gamma s D

Executors compute step 2 for many matrices at once, perhaps elsewhere; all other lines work on local tensors. `keep`
says which matrices step: None for all, or booleans (K,), spread over the local tensors where a line needs that. A
matrix that does not step keeps its weights and state bit for bit.

Source: Lau, Long, Su, arXiv 2505.21799; Muon: Jordan et al. (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import methodcaller
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from polargrad.geometry import Geometry
from polargrad.optim.execution import (
    LMO,
    Batch,
    DirectionRequest,
    Directions,
    Executor,
    LMOResult,
    check_state,
    concatenate,
    stack,
    statistics_dtype,
)
from polargrad.optim.matrix_view import MatrixView, matrix_view
from polargrad.optim.nonfinite import SkipLedger
from polargrad.optim.whitening import AGE, Whitener, Whitening

__all__ = [
    "MOMENTUM_ORDERS",
    "SCALES",
    "STEP_RULES",
    "FixedRate",
    "GeometryLMO",
    "Nuclear",
    "Observer",
    "PolarRule",
    "Polyak",
    "Scale",
    "StepContext",
    "StepRule",
    "decay_factors",
    "normalize_rows",
]

MOMENTUM_ORDERS = ("momentum-first", "polar-first", "heavy-ball")


class Observer(Protocol):
    """Sees what steps compute, without a say in it."""

    def wants_step(self) -> bool:
        """Whether to see the step that begins; asked once in every step."""
        ...

    def see(self, index: int, group: Mapping[str, Any], batch: Batch, directions: Directions) -> None:
        """See matrices of the group at `index` that were just stepped, with the batch's `sources` and `update_rms`."""
        ...


class StepContext(NamedTuple):
    """What a step knows besides the group and its options.

    Attributes:
        group_index: of the group.
        states: of all parameters.
        executor: computes directions.
        skips: counts the matrices that do not step.
        loss: of the closure, or None.
        observer: sees this step, or None.
        done: (index of the group, positions) of parameters that were stepped.
    """

    group_index: int
    states: Mapping[Tensor, dict[str, Any]]
    executor: Executor
    skips: SkipLedger
    loss: Any
    observer: Observer | None
    done: list[tuple[int, tuple[int, ...]]]


class Shape(NamedTuple):
    """What follows from the shape of a parameter alone.

    Attributes:
        view: how it is split into matrices.
        lengths: r = ||lmo||_F^2 of the matrices of each batch.
        factors: the scale's factor of the shape, for each batch.
    """

    view: MatrixView
    lengths: tuple[float, ...]
    factors: tuple[float, ...]


class Norms(NamedTuple):
    """What the lengths of the steps of K matrices depend on.

    Attributes:
        nu: (K,), dual norms; zero for matrices that do not step, as the next.
        squared_lengths: (K,), ||D||_F^2, or None where the step rule has no use for it.
        matrices: for each batch of each parameter the number of matrices, which add up to K, and r of their shape.
        states: of each parameter, and how many of the K matrices it has.
        keep: bool (K,), matrices that step; None for all.
        shared: whether all matrices share the sum of nu, and that of ||D||_F^2.
        loss: f, a number or a tensor with one element, or None.
        writes: what is to be written into the states when they step: pairs of a tensor and a value for each of them.
    """

    nu: Tensor
    squared_lengths: Tensor | None
    matrices: Sequence[tuple[int, float]]
    states: Sequence[tuple[dict[str, Any], int]]
    keep: Tensor | None
    shared: bool
    loss: Any
    writes: list[tuple[list[Tensor], list[Tensor]]]

    @property
    def size(self) -> Tensor:
        """(K,), nu, or where it is shared its sum in each place."""
        return self.nu.sum().expand(len(self.nu)) if self.shared else self.nu


@dataclass(frozen=True, eq=False)
class PolarRule:
    """The resolved options of a polar group, and its step.

    Args:
        geometry: the norm, with its polar method.
        momentum: beta.
        momentum_order: one of `MOMENTUM_ORDERS`.
        nesterov: whether to look ahead by one step.
        scale: the length of a step along the direction.
        share_norms: whether all matrices of the group share the sum of their dual norms (`scope="group"`).
        step_rule: the step size gamma.
        row_beta: decay of the running mean square of each row of the direction; None leaves rows as they are.
        norm_floor: of ||N||_F, below which the direction goes to zero with N; 0 is none.
        weight_decay: lambda.
        whitening: of the momentum before its direction is taken; None for none.
        cautious: whether to decay only entries that the step moves towards zero.
        sign: 1.0, or -1.0 to ascend.
        momentum_dtype: of the momentum buffer; None is the parameter's own.
        capturable: whether the host reads nothing from the device, on a CPU too.
        workspace: bound in bytes on what a step holds besides weights, gradients and state.
        options: the plain options that the others were resolved from; those of `matrix_view` say how parameters are
            split into matrices.
    """

    geometry: Geometry
    momentum: float
    momentum_order: str
    nesterov: bool
    scale: Scale
    share_norms: bool
    step_rule: StepRule
    row_beta: float | None
    whitening: Whitening | None
    norm_floor: float
    weight_decay: float
    cautious: bool
    sign: float
    momentum_dtype: torch.dtype | None
    capturable: bool
    workspace: int
    options: Mapping[str, Any]
    lmo: GeometryLMO = field(init=False)
    _shapes: dict[tuple[int, ...], Shape] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        floor = self.norm_floor if self.uses_floor else 0.0
        measured = self.step_rule.needs_squared_lengths, floor, self.scale.uses_dual_norm
        lmo = GeometryLMO(self.geometry, *measured, empty_rows=self.row_beta is not None)
        object.__setattr__(self, "lmo", lmo)

    @property
    def uses_floor(self) -> bool:
        """Whether the step of a matrix does not vanish by itself with its gradient."""
        return self.share_norms or not self.scale.is_proportional

    def step(self, group: Mapping[str, Any], positions: Sequence[int], context: StepContext) -> None:
        """Step the parameters at `positions` of a group.

        Raises:
            ValueError: the step rule needs a loss, and there is none.
        """
        batches = self._batches(group, positions, context)
        lmo = self.lmo if context.observer is None else replace(self.lmo, dual_norms=True)
        answers = context.executor.compute_directions(map(self.request, batches), lmo, self.workspace)
        if self.share_norms or self.step_rule.couples_matrices:
            self.advance(group, list(zip(batches, answers, strict=True)), context)
            return
        for batch in batches:
            # No variable here may keep the directions of one batch while the next request is made, nor may zip.
            self.advance(group, [(batch, next(answers))], context)

    def _batches(self, group: Mapping[str, Any], positions: Sequence[int], context: StepContext) -> list[Batch]:
        """The group's parameters at `positions` by shape, dtype, device and placement, cut to `workspace`."""
        executor = context.executor
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i in positions:
            p = group["params"][i]
            alike.setdefault((p.shape, p.dtype, p.device, executor.bucket_key(p)), []).append(i)
        batches = []
        for (shape, dtype, device, _), members in alike.items():
            kept = self.momentum_dtype or dtype
            view, masked = self.shape_of(shape).view, self.capturable or device.type != "cpu"
            most = executor.max_bucket(len(members))
            if most > 1:
                size = shape.numel() * self.lmo.held(kept, device, dtype) + 64 * view.count
                if self.row_beta is not None:
                    size += 32 * math.prod(view.row_shape)
                if self.whitening is not None:
                    size += self.whitening.workspace(view, kept)
                most = min(most, max(1, int(self.workspace / max(1.0, size))))
            for start in range(0, len(members), most):
                chosen = members[start : start + most]
                parameters, own = [], []
                for i in chosen:
                    p = group["params"][i]
                    parameters.append(p)
                    own.append(context.states[p])
                    self.add_state(p, own[-1], executor)
                batches.append(Batch(chosen, parameters, own, view, masked, executor, context.observer is not None))
        return batches

    def request(self, batch: Batch) -> DirectionRequest:
        """Step 1: take the gradients into the momentum M; the request for directions of the result, N."""
        executor, limit = batch.executor, self.gradient_limit(batch.parameters[0].dtype)
        batch.keep = executor.finite_mask(batch.view, batch.parameters, batch.gradients, limit, masked=batch.masked)
        N = self._momentum(batch, ahead=True)
        if batch.watched:
            batch.sources = N
        whitener = None if self.whitening is None else Whitener(self.whitening, batch, batch.momentum_gradients)
        return DirectionRequest(batch.view, batch.parameters, N, whitener)

    def _momentum(self, batch: Batch, *, ahead: bool) -> list[Tensor]:
        """Step 1: the local tensors of N (`ahead`), or of the new M, to be written when the matrices step.

        So M is computed a second time, rather than held until the directions are known.
        """
        G, M = batch.momentum_gradients, batch.buffers
        nesterov, heavy = self.nesterov and ahead, self.momentum_order == "heavy-ball"
        if batch.keep is not None and self.momentum_order != "polar-first" and _fuses(batch, [*G, *M]):
            fused = partial(_fused().momentum, G, M, batch.keep, beta=self.momentum, heavy=heavy, nesterov=nesterov)
            if ahead:
                return list(fused())
            batch.writes.append(partial(fused, in_place=True))
            return []
        M, G = batch.fold(M), batch.fold(G)
        if G[0].dtype != M[0].dtype:
            G = [g.to(M[0].dtype) for g in G]
        keep = batch.spread(batch.keep, momentum=True)
        if keep is not None:
            # Of an average M + (1 - beta) (M - M), which is M exactly.
            G = _where(keep, G, M if self.momentum_order == "momentum-first" else 0.0)
        if self.momentum_order == "polar-first":  # averages the directions instead, in `move`
            return batch.unfold(G)
        if heavy:
            new, N = _accumulated(M, G, self.momentum, nesterov, keep)
        else:
            new, N = _averaged(M, G, self.momentum, nesterov)
        if ahead:
            return batch.unfold(N)
        batch.write_later(batch.buffers, batch.unfold(new))
        return batch.buffers

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest usable entry of a gradient of `dtype`: no difference of two momentum entries overflows."""
        gain = 1.0 / (1.0 - self.momentum) if self.momentum_order == "heavy-ball" else 1.0
        return torch.finfo(self.momentum_dtype or dtype).max / (2 * gain)

    def advance(self, group: Mapping[str, Any], together: list[tuple[Batch, Directions]], context: StepContext) -> None:
        """Step 3 for all batches whose directions are known together, then steps 4 to 6 for each of them."""
        lr, home = group["lr"], together[0][0].weights[0].device
        lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
        nu = concatenate([found.dual_norms.to(home) for _, found in together])
        keep = _which_step(together, nu)
        length: float | Tensor = lr.to(home).to(nu.dtype).expand(len(nu)) if isinstance(lr, Tensor) else lr
        if self.scale.uses_dual_norm:
            norms = self._norms(nu, together, keep, context.loss)
            gamma = self.step_rule.size(lr, norms)
            length = (gamma.to(home) if isinstance(gamma, Tensor) else gamma) * self.scale.of_norm(norms)
            start = 0
            for batch, _ in together:
                end = start + len(batch.states)
                for tensors, values in norms.writes:
                    batch.write_later(tensors[start:end], values[start:end])
                start = end
        if keep is not None:
            length = torch.where(keep, length, torch.zeros((), dtype=nu.dtype, device=home))
        sizes = [batch.count for batch, _ in together]
        lengths = length.split(sizes) if isinstance(length, Tensor) else [length] * len(sizes)
        for (batch, found), part in zip(together, lengths, strict=True):
            batch.decide()
            self.move(lr, batch, found.local, part)
            batch.write()
            context.done.append((context.group_index, batch.positions))
            if batch.keep is not None:
                context.skips.add(context.group_index, batch.positions, batch.keep, unread=batch.masked)
            if context.observer is not None:
                context.observer.see(context.group_index, group, batch, found)
                batch.sources = batch.update_rms = None

    def _norms(self, nu: Tensor, together: Sequence[tuple[Batch, Directions]], keep: Tensor | None, loss: Any) -> Norms:
        """What the length of a step depends on."""
        measured = [found.squared_lengths.to(nu.device) for _, found in together if found.squared_lengths is not None]
        r = concatenate(measured) if measured else None
        if keep is not None:
            nu, r = torch.where(keep, nu, 0.0), None if r is None else torch.where(keep, r, 0.0)
        matrices: list[tuple[int, float]] = []
        for batch, _ in together:
            view, lengths, _ = self.shape_of(batch.view.shape)
            matrices += [(k, length) for (k, _, _), length in zip(view.batches, lengths, strict=True)] * len(
                batch.states
            )
        states = [(state, batch.view.count) for batch, _ in together for state in batch.states]
        return Norms(nu, r, matrices, states, keep, self.share_norms, loss, [])

    def move(self, lr: float | Tensor, batch: Batch, D: list[Tensor], length: float | Tensor) -> None:
        """Steps 4 to 6 for one batch, up to what is written: `batch.writes` has that, and allocates nothing.

        So a parameter steps with all of its state or, where memory runs out before, not at all.

        Args:
            lr: the learning rate.
            batch: what to step.
            D: the local tensors of the directions.
            length: gamma times the factor of nu, one number or (K,).
        """
        fusible = batch.masked and self.momentum_order != "polar-first" and self.row_beta is None
        if fusible and _fuses(batch, [*batch.weights, *D]):
            self._fused_move(lr, batch, D, length)
            return
        if self.momentum_order != "polar-first":
            self._momentum(batch, ahead=False)
        D = batch.fold(D)
        if D[0].dtype != (like := batch.buffers[0].dtype):
            D = list(map(methodcaller("to", like), D))
        shape, keep = self.shape_of(batch.view.shape), batch.spread(batch.keep)
        if self.momentum_order == "polar-first":
            M = batch.fold(batch.buffers)
            D = D if keep is None else _where(keep, D, M)
            M, D = _averaged(M, D, self.momentum, self.nesterov)
            batch.write_later(batch.buffers, batch.unfold(M))
        if keep is not None:
            D = _where(keep, D, 0.0)
        # 4 rows
        if self.row_beta is not None:
            D = batch.fold(normalize_rows(batch, batch.unfold(D), shape.lengths, self.row_beta, self.lmo.floor))
        W = batch.fold(batch.weights)
        kept: list[Tensor] | float | Tensor | None = None
        if self.weight_decay:
            rate = lr * self.weight_decay
            rate = rate.to(W[0].device) if isinstance(rate, Tensor) else rate
            kept = decay_factors(W, D, rate, cautious=self.cautious, sign=self.sign, keep=keep)
        if batch.watched:
            batch.update_rms = _root_mean_squares(batch, batch.unfold(D), length, shape.factors)
        lengths: list[Tensor] | None = None
        if isinstance(length, Tensor) or len(set(shape.factors)) > 1:
            if not isinstance(length, Tensor):
                length = torch.full((batch.count,), length, dtype=statistics_dtype(D[0].dtype), device=W[0].device)
            lengths = batch.spread(length.to(W[0].device), shape.factors)
        alpha = -self.sign if isinstance(length, Tensor) else -self.sign * length * shape.factors[0]
        batch.writes.append(partial(self._update, batch, W, batch.unfold(W), D, kept, alpha, lengths))

    def _update(
        self,
        batch: Batch,
        W: list[Tensor],
        unfolded: list[Tensor],
        D: list[Tensor],
        kept: list[Tensor] | float | Tensor | None,
        alpha: float,
        lengths: list[Tensor] | None,
    ) -> None:
        # 5 decay
        if kept is not None:
            torch._foreach_mul_(W, kept)
        # 6 update: W <- W - length * (factor of the shape) * D
        if lengths is not None:
            torch._foreach_addcmul_(W, D, lengths, value=alpha)
        else:
            torch._foreach_add_(W, D, alpha=alpha)
        if unfolded is not W:  # W is a copy
            torch._foreach_copy_(batch.weights, unfolded)

    def _fused_move(self, lr: float | Tensor, batch: Batch, D: list[Tensor], length: float | Tensor) -> None:
        """Steps 5 and 6 in one pass over W and D, for parameters that are one matrix each."""
        factor, like = self.shape_of(batch.view.shape).factors[0], batch.weights[0]
        if batch.watched:
            batch.update_rms = _root_mean_squares(batch, D, length, [factor])
        keep = torch.ones(batch.count, dtype=torch.bool, device=like.device) if batch.keep is None else batch.keep
        steps = keep.to(torch.float32)
        decay = steps * lr * self.weight_decay
        length = torch.where(keep, length * factor, steps)
        stacked, length, update = stack(D), length.to(torch.float32), _fused().update
        self._momentum(batch, ahead=False)
        batch.writes.append(
            partial(update, batch.weights, stacked, length, decay, cautious=self.cautious, sign=self.sign)
        )

    def shape_of(self, shape: tuple[int, ...]) -> Shape:
        """What follows from the shape of a parameter; computed once.

        Raises:
            ValueError: a shape that the options or the geometry do not take.
        """
        if shape not in self._shapes:
            view = matrix_view(shape, self.options)
            for _, m, n in view.batches:
                self.geometry.check_shape(m, n)
                if self.whitening is not None:
                    self.whitening.check_shape(m, n)
            lengths = tuple(self.geometry.squared_length(m, n) for _, m, n in view.batches)
            factors = tuple(
                self.scale.of_shape(m, n, r) if m and n else 1.0
                for (_, m, n), r in zip(view.batches, lengths, strict=True)
            )
            self._shapes[shape] = Shape(view, lengths, factors)
        return self._shapes[shape]

    def check_state(
        self, parameter: Tensor, state: Mapping[str, Any], name: str, executor: Executor, *, loaded: bool = True
    ) -> None:
        """Refuse a state, loaded or from before options were changed, whose tensors have not the parameter's shapes."""
        view = self.shape_of(parameter.shape).view
        whitening = self.whitening if executor.owns(parameter) else None
        ages = () if whitening is None else (AGE,)
        numbers = dict.fromkeys((*self.scale.state, "row_weight", *ages), (view.count,))
        shapes = {"momentum_buffer": parameter.shape, **numbers, "row_rms": view.row_shape}
        if whitening is not None:
            shapes |= whitening.shapes(view)
        check_state(state, shapes, name, loaded=loaded)
        if whitening is not None and loaded:
            whitening.check_state(view, state, name)

    def add_state(self, parameter: Tensor, state: dict[str, Any], executor: Executor) -> None:
        """Give a parameter the state before its first step, zeros, where it is missing."""
        dtype = self.momentum_dtype or parameter.dtype
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = executor.zeros(parameter, dtype)
        keys = self.scale.state if self.row_beta is None else (*self.scale.state, "row_weight")
        for key in keys:
            if key not in state:
                count = self.shape_of(parameter.shape).view.count
                state[key] = torch.zeros(count, dtype=statistics_dtype(dtype), device=parameter.device)
        if self.row_beta is not None and "row_rms" not in state:
            view = self.shape_of(parameter.shape).view
            state["row_rms"] = executor.row_zeros(view, parameter, statistics_dtype(dtype))
        if self.whitening is not None and executor.owns(parameter):
            view = self.shape_of(parameter.shape).view
            self.whitening.add_state(view, state, statistics_dtype(dtype), parameter.device)


def _fuses(batch: Batch, tensors: Sequence[Tensor]) -> bool:
    """Whether kernels take a batch: on a GPU, where each parameter is one matrix."""
    return batch.masked and batch.view.count == 1 and tensors[0].is_cuda and _fused().can_fuse(tensors)


def _fused() -> ModuleType:
    """The kernels; imported on a GPU alone, since Triton takes its time."""
    from polargrad.optim import fused

    return fused


def _where(keep: Sequence[Tensor], tensors: Sequence[Tensor], other: Sequence[Tensor] | float) -> list[Tensor]:
    others = [other] * len(tensors) if isinstance(other, int | float) else other
    return [torch.where(k, t, o) for k, t, o in zip(keep, tensors, others, strict=True)]


def _averaged(M: list[Tensor], T: list[Tensor], beta: float, nesterov: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The new M = beta M + (1 - beta) T; and that, or with Nesterov beta M + (1 - beta) T of the new M."""
    new = list(torch._foreach_lerp(M, T, 1 - beta))
    if new[0].dtype == torch.float16:
        new = _without_stall(new, M, T)
    return new, list(torch._foreach_lerp(T, new, beta)) if nesterov else new


def _accumulated(
    M: list[Tensor], G: list[Tensor], beta: float, nesterov: bool, keep: list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The new M = beta M + G, where `keep`; and that, or with Nesterov beta M + G of the new M."""
    new = list(torch._foreach_mul(M, beta))
    torch._foreach_add_(new, G)
    if new[0].dtype == torch.float16:
        new = _without_stall(new, M, G)
    if keep is not None:
        new = _where(keep, new, M)
    return new, list(torch._foreach_add(G, new, alpha=beta)) if nesterov else new


def _without_stall(new: list[Tensor], M: list[Tensor], T: list[Tensor]) -> list[Tensor]:
    """The new momentum in float16, with zero where T is zero and M is too small to be rounded to less than itself.

    That is up to 6e-7 for beta = 0.95, above the floor of the norm; in other dtypes it is far below.
    """
    return [torch.where((n == m) & (t == 0), 0.0, n) for n, m, t in zip(new, M, T, strict=True)]


@dataclass(frozen=True)
class GeometryLMO(LMO):
    """Step 2: M (k, m, n) -> D = lmo(M), nu = <M, D>, and ||D||_F^2 where that is needed.

    A direction knows no size: that of an average whose gradient vanished long ago is as long as any other, and the
    matrix would go on at full step for ever. So D is min(1, ||M||_F / floor) lmo(M); fixed polynomials are applied to
    M / max(||M||_F, floor), as by torch.optim.Muon.

    Args:
        geometry: the norm.
        squared_lengths: whether to measure ||D||_F^2.
        floor: where ||M||_F is below it, D goes to zero with M.
        dual_norms: whether to measure nu; otherwise the result holds the sum of D in its place, which costs less and
            says as well whether D is finite.
        empty_rows: whether to see to it that rows of zeros have a direction of exact zeros, where a decomposition
            leaves rounding errors of eps times the condition number.

    Example:
        >>> from polargrad.geometry import Spectral
        >>> GeometryLMO(Spectral("svd"))(torch.eye(2).expand(1, 2, 2)).dual_norm.tolist()
        [2.0]
    """

    dual_norms: bool = True
    empty_rows: bool = False
    _resolved: dict[tuple[torch.dtype, torch.device], tuple[Callable[..., Tensor], torch.dtype]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )

    def __call__(self, M: Tensor, scale: Tensor | None = None) -> LMOResult:
        key = (M.dtype, M.device)
        if key not in self._resolved:
            self._resolved[key] = self.geometry.resolved_lmo(*key), statistics_dtype(M.dtype)
        lmo, dtype = self._resolved[key]
        floor = self.floor if scale is None or not self.floor else self.floor * scale[:, None, None]
        D = lmo(M, norm_floor=floor)
        if self.empty_rows:
            # On a CPU a tenth of what a logical sum takes, or torch's maximum norm; a sum of squares would underflow.
            D = D * (M.abs().amax(-1, keepdim=True) != 0)
        nu = (M.to(dtype) * D).sum((-2, -1)) if self.dual_norms else D.sum((-2, -1), dtype=dtype)
        return LMOResult(D, nu, D.to(dtype).square().sum((-2, -1)) if self.squared_lengths else None)


def _which_step(together: Sequence[tuple[Batch, Directions]], nu: Tensor) -> Tensor | None:
    """The K matrices with a usable gradient and a finite direction; None if the host sees that all have."""
    seen = True
    for batch, _ in together:
        seen = seen and batch.keep is None
    if seen and all(map(math.isfinite, nu.tolist())):
        return None
    parts = nu.split([batch.count for batch, _ in together])
    for (batch, _), part in zip(together, parts, strict=True):
        finite = part.isfinite().to(batch.weights[0].device)
        batch.keep = finite if batch.keep is None else batch.keep & finite
    return concatenate([batch.keep.to(nu.device) for batch, _ in together if batch.keep is not None])


class Scale:
    """Step 3, the length s along the direction: a factor of the dual norm nu times a factor of the shape.

    With r = ||lmo||_F^2 of a matrix (m, n), and N the sum of nu over the group::

        scale             scope="matrix"                   scope="group"
        nuclear           nu^alpha                         N^alpha
        mean-singular     nu / r                           N / (sum of r over the group)
        adaptive-nuclear  base * (nu / rms(nu))^alpha      base * (N / rms(N))^alpha
        none              1                                refused: there is no norm to share
        spectral          sqrt(max(1, m/n))                refused
        rms               0.2 sqrt(mn / r)                 refused

    Subclasses are frozen dataclasses whose fields are their options.
    """

    name: ClassVar[str]
    uses_dual_norm: ClassVar[bool] = False
    # Keys of its state: a number for each matrix of a parameter.
    state: ClassVar[tuple[str, ...]] = ()

    @property
    def is_proportional(self) -> bool:
        """Whether the step is proportional to the gradient, and so vanishes with it."""
        return False

    def of_shape(self, m: int, n: int, r: float) -> float:
        """The factor of the shape."""
        return 1.0

    def of_norm(self, norms: Norms) -> Tensor:
        """The factor of the dual norm, (K,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unscaled(Scale):
    """s = 1: matrix sign descent."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class SpectralScale(Scale):
    """s = sqrt(max(1, m/n)): Muon (Jordan et al. 2024), torch's "original".

    Example:
        >>> SpectralScale().of_shape(4, 1, r=1.0)
        2.0
    """

    name: ClassVar[str] = "spectral"

    def of_shape(self, m: int, n: int, r: float) -> float:
        return math.sqrt(max(1.0, m / n))


@dataclass(frozen=True)
class RootMeanSquareScale(Scale):
    """s = 0.2 sqrt(mn / r), for the spectral geometry 0.2 sqrt(max(m, n)): the root mean square of an AdamW step.

    Source: Moonlight, arXiv 2502.16982; torch's "match_rms_adamw".
    """

    name: ClassVar[str] = "rms"

    def of_shape(self, m: int, n: int, r: float) -> float:
        return 0.2 * math.sqrt(m * n / r)


SHAPE_SCALES: dict[str, type[Scale]] = {cls.name: cls for cls in (Unscaled, SpectralScale, RootMeanSquareScale)}


@dataclass(frozen=True)
class Nuclear(Scale):
    """s = nu^alpha: PolarGrad.

    Args:
        alpha: in [0, 1], between sign descent and PolarGrad.
    """

    name: ClassVar[str] = "nuclear"
    uses_dual_norm: ClassVar[bool] = True
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    @property
    def is_proportional(self) -> bool:
        return self.alpha == 1.0

    def of_norm(self, norms: Norms) -> Tensor:
        return _power(norms.size, self.alpha)


@dataclass(frozen=True)
class MeanSingular(Scale):
    """s = nu / r, for the spectral geometry the mean singular value."""

    name: ClassVar[str] = "mean-singular"
    uses_dual_norm: ClassVar[bool] = True

    @property
    def is_proportional(self) -> bool:
        return True

    def of_norm(self, norms: Norms) -> Tensor:
        if norms.shared:
            return norms.size / sum(k * r for k, r in norms.matrices)
        parts = norms.nu.split([k for k, _ in norms.matrices])
        return concatenate([part / r for part, (_, r) in zip(parts, norms.matrices, strict=True)])


@dataclass(frozen=True)
class AdaptiveNuclear(Scale):
    """s = base (nu / rms(nu))^alpha, with mean square v <- beta v + (1 - beta) nu^2 and rms = sqrt(v / (1 - beta^t)).

    The first step has exactly the length of the base. A matrix whose nu was always zero does not move.

    Args:
        base: "rms", "spectral" or "none", the scale that is multiplied.
        beta: decay of the running mean square, in [0, 1).
        alpha: exponent in [0, 1].
    """

    name: ClassVar[str] = "adaptive-nuclear"
    uses_dual_norm: ClassVar[bool] = True
    # sqrt(v) and 1 - beta^t, so that no square can overflow and matrices that were skipped have their own t.
    state: ClassVar[tuple[str, ...]] = ("dual_norm_rms", "dual_norm_weight")
    base: str = "rms"
    beta: float = 0.9
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if self.base not in SHAPE_SCALES:
            raise ValueError(f"base must be one of {', '.join(map(repr, SHAPE_SCALES))}, got {self.base!r}")
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta}")

    def of_shape(self, m: int, n: int, r: float) -> float:
        return SHAPE_SCALES[self.base]().of_shape(m, n, r)

    def of_norm(self, norms: Norms) -> Tensor:
        nu, keep = norms.size, norms.keep
        old = [[state[key] for state, _ in norms.states] for key in self.state]
        rms, weight = (concatenate([part.to(nu.device) for part in parts]) for parts in old)
        new_rms = torch.hypot(math.sqrt(self.beta) * rms, math.sqrt(1 - self.beta) * nu)
        new_weight = self.beta * weight + (1 - self.beta)
        if keep is not None:
            new_rms, new_weight = torch.where(keep, new_rms, rms), torch.where(keep, new_weight, weight)
        counts = [count for _, count in norms.states]
        for tensors, values in zip(old, (new_rms, new_weight), strict=True):
            norms.writes.append((tensors, list(values.split(counts))))
        return _power(torch.where(new_rms > 0, nu * new_weight.sqrt() / new_rms, 0.0), self.alpha)


SCALES: dict[str, type[Scale]] = {
    cls.name: cls for cls in (Nuclear, MeanSingular, AdaptiveNuclear, *SHAPE_SCALES.values())
}


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")


def _power(nu: Tensor, alpha: float) -> Tensor:
    return nu if alpha == 1.0 else nu.clamp_min(0.0) ** alpha


class StepRule:
    """Step 3, the step size gamma.

    Along nu D the objective obeys f+ <= f - gamma nu^2 + (L/2) gamma^2 nu^2 ||D||_F^2 where nu = <G, D>, for any D.
    Subclasses are frozen dataclasses whose fields are their options.

    Source: arXiv 2505.21799, the rate of PolarGrad with gamma = 1/(L r); Polyak, Introduction to Optimization (1987).
    """

    name: ClassVar[str]
    # Whether ||D||_F^2 of each direction is measured, whether gamma depends on several matrices, and on the loss.
    needs_squared_lengths: ClassVar[bool] = False
    couples_matrices: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False

    def size(self, lr: float | Tensor, norms: Norms) -> float | Tensor:
        """Gamma, one number or a tensor that broadcasts against (K,)."""
        return lr


@dataclass(frozen=True)
class FixedRate(StepRule):
    """gamma = lr."""

    name: ClassVar[str] = "fixed"


@dataclass(frozen=True)
class Smoothness(StepRule):
    """gamma = lr / (L r), the minimizer of the bound above for lr = 1.

    r = ||D||_F^2 is measured on the direction: the rank of the gradient for an exact polar factor, and what the inexact
    one asks for otherwise.

    Args:
        smoothness: L in the Frobenius norm.
    """

    name: ClassVar[str] = "smoothness"
    needs_squared_lengths: ClassVar[bool] = True
    smoothness: float

    def __post_init__(self) -> None:
        if not 0.0 < self.smoothness < math.inf:
            raise ValueError(f"smoothness must be positive and finite, got {self.smoothness}")

    def size(self, lr: float | Tensor, norms: Norms) -> Tensor:
        assert norms.squared_lengths is not None
        r = norms.squared_lengths.sum() if norms.shared else norms.squared_lengths
        return torch.where(r > 0, lr / (self.smoothness * r), 0.0)


@dataclass(frozen=True)
class Polyak(StepRule):
    """gamma = lr (f - f*) / sum of nu^2: for lr = 1 the step at which the linear model reaches the minimum f*.

    With scope="group" the denominator is the square of the sum.

    Args:
        minimum: f*.
    """

    name: ClassVar[str] = "polyak"
    couples_matrices: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = True
    minimum: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.minimum):
            raise ValueError(f"minimum must be finite, got {self.minimum}")

    def size(self, lr: float | Tensor, norms: Norms) -> Tensor:
        nu, loss = norms.nu, norms.loss
        if loss is None:
            raise ValueError(f"step_rule={self.name!r} needs the loss: call step(closure) with one that returns it")
        slope = nu.sum().square() if norms.shared else nu.square().sum()
        value = loss.detach().to(nu) if isinstance(loss, Tensor) else nu.new_full((), loss)
        gap = (value - self.minimum).clamp_min(0.0)
        return torch.where(slope > 0, lr * gap / slope, 0.0)


@dataclass(frozen=True)
class CappedPolyak(Polyak):
    """gamma = min(lr, (f - f*) / sum of nu^2): lr where that is short, Polyak's step where lr would overshoot.

    A `minimum` below f* makes the cap looser and nothing else.

    Args:
        minimum: f*, or a lower bound.

    Source: Schaipp et al., MoMo, arXiv 2305.07583; along the product norm in MuonMax-Momo, arXiv 2510.09827.
    """

    name: ClassVar[str] = "capped-polyak"

    def size(self, lr: float | Tensor, norms: Norms) -> Tensor:
        longest = super().size(1.0, norms)
        return longest.clamp_max(lr) if isinstance(lr, float | int) else torch.minimum(longest, lr.to(longest))


STEP_RULES: dict[str, type[StepRule]] = {cls.name: cls for cls in (FixedRate, Smoothness, Polyak, CappedPolyak)}


# A row of a direction below so many eps of the average row is taken for rounding errors.
_ROUNDING_OF_ROWS = 64


def normalize_rows(
    batch: Batch, directions: list[Tensor], lengths: Sequence[float], beta: float, floor: float = 0.0
) -> list[Tensor]:
    """Step 4: each row of the directions over the root of its running mean square, for matrices that step.

    The polar factor has equal singular values, but rows of very different lengths: in a table of tokens, those of rare
    tokens are short. With D the direction of a matrix (m, n) and r = ||lmo||_F^2 for its shape::

        v_i <- beta v_i + (1 - beta) mean_j D_ij^2;   D_i <- sqrt(r / (mn)) D_i / sqrt(v_i / (1 - beta^t))

    so that each row moves as the average row of D would have; a row that was always zero stays so, and one below
    `floor` times the average row goes to zero. One below 64 eps of the average row is zero, since it may be no more
    than rounding errors, which would become as long as any other. The state keeps sqrt(v) of every row and 1 - beta^t
    of every matrix.

    Args:
        batch: whose directions these are.
        directions: local tensors, not modified.
        lengths: r of the matrices of each batch of the view.
        beta: decay of the running mean square.
        floor: a row is multiplied by at most 1 / floor.

    Source: the neuron-wise normalization of NorMuon, Li et al., arXiv 2510.05491, which restores ||D||_F instead of r.
    """
    view, executor, dtype = batch.view, batch.executor, statistics_dtype(directions[0].dtype)
    norms = [torch.linalg.vector_norm(D.to(dtype), dim=view.input_dimensions, keepdim=True) for D in directions]
    norms = executor.row_lengths(view, batch.parameters, norms)
    rms = executor.local([state["row_rms"] for state in batch.states])
    weights: list[Tensor] = [state["row_weight"] for state in batch.states]
    sizes, n = [k for k, _, _ in view.batches], view.batches[0][2]
    # Roots rather than squares: nothing over- or underflows that the direction itself does not.
    new_rms = [
        torch.hypot(math.sqrt(beta) * old, math.sqrt((1 - beta) / n) * norm)
        for old, norm in zip(rms, norms, strict=True)
    ]
    new_weights = [beta * weight + (1 - beta) for weight in weights]
    if batch.keep is not None:
        spread = batch.spread(batch.keep)
        assert spread is not None
        new_rms = _where(batch.unfold(spread), new_rms, rms)
        new_weights = _where(batch.keep.split(view.count), new_weights, weights)
    batch.write_later(rms, new_rms)
    batch.write_later(weights, new_weights)
    even = [math.sqrt(r / (m * n)) for (_, m, n), r in zip(view.batches, lengths, strict=True)]
    average = [
        view.spread([part.sqrt() * f for part, f in zip(weight.split(sizes), even, strict=True)])
        for weight in new_weights
    ]
    average = executor.local_slices(batch.parameters, average)
    most = 1.0 / floor if floor else math.inf
    least = _ROUNDING_OF_ROWS * torch.finfo(dtype).eps * math.sqrt(n)
    factors = [
        torch.where((v > 0) & (norm >= least * a), (a / v).clamp_max(most), 0.0)
        for a, v, norm in zip(average, new_rms, norms, strict=True)
    ]
    return [(D.to(dtype) * f).to(D.dtype) for D, f in zip(directions, factors, strict=True)]


def decay_factors(
    weights: list[Tensor],
    directions: list[Tensor],
    rate: float | Tensor,
    *,
    cautious: bool,
    sign: float,
    keep: Sequence[Tensor] | None,
) -> list[Tensor] | float | Tensor:
    """Step 5: by what W is multiplied: 1 - rate where `keep`; cautious: where W - sign D moves an entry towards zero.

    Args:
        weights: local tensors.
        directions: what is about to be subtracted, up to positive factors and `sign`.
        rate: lr * weight_decay.
        cautious: decay w only where sign * d * w >= 0.
        sign: -1 if the directions are about to be added.
        keep: boolean tensors that broadcast against the weights, or None.

    Returns:
        One factor for all, or a tensor for each.

    Source: Loshchilov and Hutter (2019); cautious: Chen et al., arXiv 2510.12402.
    """
    if cautious:
        aligned = [sign * D * W >= 0 for D, W in zip(directions, weights, strict=True)]
        keep = aligned if keep is None else [a & k for a, k in zip(aligned, keep, strict=True)]
    if keep is None:
        return 1 - rate
    one = torch.ones((), dtype=statistics_dtype(weights[0].dtype), device=weights[0].device)
    return [torch.where(where, one - rate, one) for where in keep]


def _root_mean_squares(
    batch: Batch, directions: list[Tensor], length: float | Tensor, factors: Sequence[float]
) -> Tensor:
    """|length| factor ||D||_F / sqrt(mn) of each matrix, (K,)."""
    norms = []
    for D in directions:
        for part, factor in zip(batch.view.split(D), factors, strict=True):
            wide = part.to(torch.float64)
            norms.append(torch.linalg.matrix_norm(wide) * (factor / math.sqrt(part.shape[-2] * part.shape[-1])))
    return torch.cat(norms) * (length.to(norms[0].device).abs() if isinstance(length, Tensor) else abs(length))
