"""Parameters that are seen as the same matrices step together: from their gradients to a question, from its answer on.

`advance` is the whole step after the oracle: scale, weight decay, update. Numbers per matrix are kept in one vector
(K,), ordered by parameter and then by the batches of its view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from polargrad.optim.distributor import Answer, Distributor
from polargrad.optim.functional import decay_, update_
from polargrad.optim.matrix_view import MatrixView, matrix_view
from polargrad.optim.momentum import Momentum
from polargrad.optim.nonfinite import all_within, matrices_within
from polargrad.optim.options import geometry_of, momentum_dtype
from polargrad.optim.scaling import gradient_factor, shape_factor
from polargrad.optim.stepsize import step_size

__all__ = ["Bucket", "Observer", "advance", "buckets_of", "stack_bytes"]


class Bucket:
    """Parameters of one view, dtype and device.

    Attributes:
        positions: of the parameters in their group.
        parameters: the weights.
        gradients: of the parameters, not modified.
        states: of the parameters.
        view: how each of them is seen as matrices.
        counts: how many of the K matrices each parameter has.
        masked: whether everything is decided by masks on the device, without asking it.
        keep: bool (K,), matrices that step; None where all do. Known once the question is made.
        watched: whether an observer wants the two below; to be set before the question is made.
        asked: the question.
        update_rms: (K,), root mean square of each matrix's step, without weight decay.
    """

    def __init__(self, group: Mapping[str, Any], positions: list[int], view: MatrixView, states: list[dict[str, Any]]):
        self.positions = tuple(positions)
        self.parameters: list[Tensor] = [group["params"][i] for i in positions]
        self.gradients: list[Tensor] = [p.grad for p in self.parameters]  # pyright: ignore[reportAttributeAccessIssue]
        self.states = states
        self.view = view
        self.counts = [sum(k for k, _, _ in view.batches)] * len(positions)
        self.masked = group["capturable"] or self.parameters[0].device.type != "cpu"
        self.keep: Tensor | None = None
        self.watched = False
        self.asked: list[Tensor] | None = None
        self.update_rms: Tensor | None = None
        dtype = momentum_dtype(group, self.parameters[0])
        for p, state in zip(self.parameters, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        self.buffers: list[Tensor] = [state["momentum_buffer"] for state in states]

    def question(self, momentum: Momentum, distributor: Distributor) -> list[Tensor]:
        """Take the gradients into the momentum; what the oracle shall be asked, one batch per slot of each view."""
        gradients = [g.to(M.dtype) for g, M in zip(self.gradients, self.buffers, strict=True)]
        # Half of what the buffers can hold, so that no sum or difference of two entries overflows.
        limit = torch.finfo(self.buffers[0].dtype).max / (2 * momentum.gain)
        if self.masked or not distributor.alone or not all_within(gradients, limit):
            slots = list(chain.from_iterable(map(self.view.split, gradients)))
            self.keep = distributor.agree(matrices_within(slots, limit))
        sources = momentum.source(gradients, self.buffers, self.spread(self.keep))
        slots = list(chain.from_iterable(map(self.view.split, sources)))
        if self.watched:
            self.asked = slots
        return slots

    def spread(self, values: Tensor | None, factors: list[float] | None = None) -> list[Tensor] | None:
        """Numbers (K,) as one tensor per parameter that broadcasts against it; each slot times its factor."""
        if values is None:
            return None
        sizes = [k for k, _, _ in self.view.batches]
        if factors is None:
            factors = [1.0] * len(sizes)
        parts = iter(values.split(sizes * len(self.parameters)))
        spread = self.view.spread
        return [spread([next(parts) if f == 1.0 else next(parts) * f for f in factors]) for _ in self.parameters]

    def merge(self, answers: list[Answer]) -> list[Tensor]:
        """The directions in the shapes of the parameters."""
        slots = len(self.view.batches)
        directions = [answer.direction for answer in answers]
        return [self.view.merge(directions[i : i + slots]) for i in range(0, len(directions), slots)]


class Observer(Protocol):
    """Sees what steps compute, without a say in it."""

    def wants_step(self) -> bool:
        """Asked once at the beginning of every step: whether it wants to see this one."""
        ...

    def see(self, index: int, group: Mapping[str, Any], bucket: Bucket, answers: list[Answer]) -> None:
        """Matrices of the group at `index` that were just stepped, with `asked` and `update_rms` of the bucket."""
        ...


def stack_bytes(group: Mapping[str, Any]) -> int:
    """How much may be stepped together so that nothing holds more than `workspace` at once.

    Besides what the oracle holds there are what it is asked about and the stack of it. Entries count as at least 4
    bytes, since what is kept in half precision is converted in many places.
    """
    return max(1, int(group["workspace"] / (geometry_of(group).footprint() + 2.0)))


def buckets_of(group: Mapping[str, Any], positions: list[int], states: Mapping[Tensor, dict[str, Any]]) -> list[Bucket]:
    """The group's parameters at `positions`, by view, dtype and device, cut where `stack_bytes` are exceeded."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i in positions:
        p = group["params"][i]
        alike.setdefault((matrix_view(p.shape, group), p.dtype, p.device), []).append(i)
    buckets, bound = [], stack_bytes(group)
    for (view, _, _), members in alike.items():
        p = group["params"][members[0]]
        most = max(1, bound // (p.numel() * max(4, momentum_dtype(group, p).itemsize)))
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            buckets.append(Bucket(group, chosen, view, [states[group["params"][i]] for i in chosen]))
    return buckets


def advance(
    group: dict[str, Any], momentum: Momentum, together: list[tuple[Bucket, list[Answer]]], loss: Any = None
) -> None:
    """Step the parameters of buckets whose directions are known; their scales are found together.

    Args:
        group: the options.
        momentum: its order.
        together: buckets with the answers to their questions.
        loss: of the closure, for the rule that needs it.
    """
    home = together[0][0].parameters[0].device
    answers = [answer for _, found in together for answer in found]
    nu = _joined([answer.dual_norm.to(home) for answer in answers])
    keep = _joint_keep(together, nu)
    lengths = None
    if answers[0].squared_length is not None:
        lengths = _joined([answer.squared_length.to(home) for answer in answers if answer.squared_length is not None])
    gamma = step_size(group, nu, lengths, keep, loss)
    geometry = geometry_of(group)
    shapes = [shape for bucket, _ in together for _ in bucket.parameters for shape in bucket.view.batches]
    factor = gradient_factor(
        group,
        nu,
        [geometry.squared_length(m, n) for _, m, n in shapes],
        [k for k, _, _ in shapes],
        [state for bucket, _ in together for state in bucket.states],
        [count for bucket, _ in together for count in bucket.counts],
        keep,
    )
    if isinstance(gamma, Tensor):
        gamma = gamma.to(home)
        length: float | Tensor = gamma.to(nu.dtype).expand(len(nu)) if factor is None else gamma * factor
    else:
        length = gamma if factor is None else gamma * factor
    if keep is not None:
        length = torch.where(keep, length, torch.zeros((), dtype=nu.dtype, device=home))
    sizes = [sum(bucket.counts) for bucket, _ in together]
    lengths_of = length.split(sizes) if isinstance(length, Tensor) else [length] * len(sizes)
    for (bucket, found), part in zip(together, lengths_of, strict=True):
        _move(group, momentum, bucket, found, part)


def _joined(vectors: list[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def _joint_keep(together: list[tuple[Bucket, list[Answer]]], nu: Tensor) -> Tensor | None:
    """Which of the K matrices step: usable gradient and finite direction; None if a look at the host shows all do."""
    buckets = [bucket for bucket, _ in together]
    parts = nu.split([sum(bucket.counts) for bucket in buckets])
    if all(bucket.keep is None for bucket in buckets) and all(map(math.isfinite, nu.tolist())):
        return None
    for bucket, part in zip(buckets, parts, strict=True):
        finite = part.isfinite().to(bucket.parameters[0].device)
        bucket.keep = finite if bucket.keep is None else bucket.keep & finite
    return _joined([bucket.keep.to(nu.device) for bucket in buckets if bucket.keep is not None])


def _move(
    group: dict[str, Any], momentum: Momentum, bucket: Bucket, answers: list[Answer], length: float | Tensor
) -> None:
    """Weight decay and update of one bucket, with lengths (K,) or one number before the factors of the shapes."""
    keep = bucket.spread(bucket.keep)
    directions = momentum.direction(bucket.merge(answers), bucket.buffers, keep)
    if keep is not None:
        directions = [torch.where(k, D, 0.0) for k, D in zip(keep, directions, strict=True)]
    sign = -1.0 if group["maximize"] else 1.0
    if group["weight_decay"]:
        rate = group["lr"] * group["weight_decay"]
        if isinstance(rate, Tensor):
            rate = rate.to(bucket.parameters[0].device)
        cautious = group["weight_decay_mode"] == "cautious"
        decay_(bucket.parameters, directions, rate, cautious=cautious, sign=sign, keep=keep)
    geometry = geometry_of(group)
    factors = [shape_factor(group["scale"], group["scale_base"], geometry, m, n) for _, m, n in bucket.view.batches]
    if bucket.watched:
        bucket.update_rms = _root_mean_squares(bucket, directions, length, factors)
    if isinstance(length, Tensor):
        spread = bucket.spread(length.to(bucket.parameters[0].device), factors)
        assert spread is not None
        update_(bucket.parameters, directions, spread, sign)
    elif len(set(factors)) == 1:
        update_(bucket.parameters, directions, length * factors[0], sign)
    else:
        nu = answers[0].dual_norm
        spread = bucket.spread(nu.new_full((sum(bucket.counts),), length), factors)
        assert spread is not None
        update_(bucket.parameters, directions, spread, sign)


def _root_mean_squares(
    bucket: Bucket, directions: list[Tensor], length: float | Tensor, factors: list[float]
) -> Tensor:
    """|length| factor ||D||_F / sqrt(mn) of each matrix, (K,)."""
    norms = []
    for D in directions:
        for part, factor in zip(bucket.view.split(D), factors, strict=True):
            wide = part.to(torch.float64)
            norms.append(torch.linalg.matrix_norm(wide) * (factor / math.sqrt(part.shape[-2] * part.shape[-1])))
    return torch.cat(norms) * (length.to(norms[0].device).abs() if isinstance(length, Tensor) else abs(length))
