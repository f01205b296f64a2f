"""Parameters that are seen as the same matrices step together: from their gradients to a question, from its answer on.

`advance` is the whole step after the oracle: scale, weight decay, update. Numbers per matrix are kept in one vector
(K,), ordered by parameter and then by the batches of its view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from polargrad.geometry import Geometry
from polargrad.optim.distributor import Directions, Distributor, Question
from polargrad.optim.functional import decay_, update_
from polargrad.optim.matrix_view import MatrixView, matrix_view
from polargrad.optim.momentum import Momentum
from polargrad.optim.options import geometry_of, gradient_limit, momentum_dtype
from polargrad.optim.rows import even_rows
from polargrad.optim.scaling import gradient_factor, shape_factor
from polargrad.optim.stepsize import step_size

__all__ = ["Bucket", "Observer", "advance", "buckets_of", "stack_bytes"]


class Bucket:
    """Parameters of one view, dtype and device, which live in the same way on the ranks.

    Attributes:
        positions: of the parameters in their group.
        wholes: the parameters as the group has them.
        parameters: the parts of the weights that are here.
        gradients: the parts of the gradients, not modified.
        states: of the parameters.
        view: how each of them is seen as matrices.
        counts: how many of the K matrices each parameter has.
        masked: whether everything is decided by masks on the device, without asking it.
        keep: bool (K,), matrices that step; None where all do. Known once the question is made.
        watched: whether an observer wants the two below; to be set before the question is made.
        asked: what directions were asked of, a part for each parameter.
        update_rms: (K,), root mean square of each matrix's step, without weight decay.
    """

    def __init__(
        self,
        group: Mapping[str, Any],
        positions: list[int],
        view: MatrixView,
        states: list[dict[str, Any]],
        distributor: Distributor,
    ):
        self.positions = tuple(positions)
        self.wholes: list[Tensor] = [group["params"][i] for i in positions]
        self.parameters = [distributor.part(p) for p in self.wholes]
        self.gradients = [distributor.gradient(p) for p in self.wholes]
        self.states = states
        self.view = view
        self.counts = [sum(k for k, _, _ in view.batches)] * len(positions)
        self.masked = group["capturable"] or self.parameters[0].device.type != "cpu"
        self.keep: Tensor | None = None
        self.watched = False
        self.asked: list[Tensor] | None = None
        self.update_rms: Tensor | None = None
        self._distributor = distributor
        self._limit = gradient_limit(group, self.wholes[0])
        dtype = momentum_dtype(group, self.wholes[0])
        for p, state in zip(self.wholes, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = distributor.zeros(p, dtype)
        self.buffers: list[Tensor] = [distributor.part(state["momentum_buffer"]) for state in states]

    def question(self, momentum: Momentum) -> Question:
        """Take the gradients into the momentum; what the oracle shall be asked."""
        gradients = [g.to(M.dtype) for g, M in zip(self.gradients, self.buffers, strict=True)]
        self.keep = self._distributor.usable(self.view, self.wholes, gradients, self._limit, masked=self.masked)
        gradients = [self._distributor.kept(p, g) for p, g in zip(self.wholes, gradients, strict=True)]
        sources = momentum.source(gradients, self.buffers, self.spread(self.keep, kept=True))
        if self.watched:
            self.asked = sources
        return Question(self.view, self.wholes, sources)

    def spread(
        self, values: Tensor | None, factors: list[float] | None = None, *, kept: bool = False
    ) -> list[Tensor] | None:
        """Numbers (K,) as one tensor per part (of the momentum, if `kept`) to broadcast; each slot times its factor."""
        if values is None:
            return None
        sizes = [k for k, _, _ in self.view.batches]
        if factors is None:
            factors = [1.0] * len(sizes)
        parts = iter(values.split(sizes * len(self.parameters)))
        spread = [
            self.view.spread([next(parts) if f == 1.0 else next(parts) * f for f in factors]) for _ in self.wholes
        ]
        return [self._distributor.narrow(p, s, kept=kept) for p, s in zip(self.wholes, spread, strict=True)]

    def evened(self, directions: list[Tensor], geometry: Geometry, beta: float) -> list[Tensor]:
        """The directions with their rows evened out, for matrices that `keep` says step."""
        return even_rows(self.view, geometry, self.wholes, directions, self.states, beta, self.keep, self._distributor)


class Observer(Protocol):
    """Sees what steps compute, without a say in it."""

    def wants_step(self) -> bool:
        """Asked once at the beginning of every step: whether it wants to see this one."""
        ...

    def see(self, index: int, group: Mapping[str, Any], bucket: Bucket, found: Directions) -> None:
        """Matrices of the group at `index` that were just stepped, with `asked` and `update_rms` of the bucket."""
        ...


def stack_bytes(group: Mapping[str, Any]) -> int:
    """How much may be stepped together so that nothing holds more than `workspace` at once.

    Besides what the oracle holds there are what it is asked about and the stack of it. Entries count as at least 4
    bytes, since what is kept in half precision is converted in many places.
    """
    return max(1, int(group["workspace"] / (geometry_of(group).footprint() + 2.0)))


def buckets_of(
    group: Mapping[str, Any],
    positions: list[int],
    states: Mapping[Tensor, dict[str, Any]],
    distributor: Distributor,
) -> list[Bucket]:
    """The group's parameters at `positions`, by view, dtype, device and layout, cut to `stack_bytes`."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i in positions:
        p = group["params"][i]
        alike.setdefault((matrix_view(p.shape, group), p.dtype, p.device, distributor.alike(p)), []).append(i)
    buckets, bound = [], stack_bytes(group)
    for (view, _, _, _), members in alike.items():
        p = group["params"][members[0]]
        most = max(1, bound // (p.numel() * max(4, momentum_dtype(group, p).itemsize)))
        most = min(most, distributor.most(len(members)))
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            buckets.append(Bucket(group, chosen, view, [states[group["params"][i]] for i in chosen], distributor))
    return buckets


def advance(
    group: dict[str, Any], momentum: Momentum, together: list[tuple[Bucket, Directions]], loss: Any = None
) -> None:
    """Step the parameters of buckets whose directions are known; their scales are found together.

    Args:
        group: the options.
        momentum: its order.
        together: buckets with what came of their questions.
        loss: of the closure, for the rule that needs it.
    """
    home = together[0][0].parameters[0].device
    nu = _joined([found.dual_norms.to(home) for _, found in together])
    keep = _joint_keep(together, nu)
    measured = [found.squared_lengths.to(home) for _, found in together if found.squared_lengths is not None]
    lengths = _joined(measured) if measured else None
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


def _joint_keep(together: list[tuple[Bucket, Directions]], nu: Tensor) -> Tensor | None:
    """Which of the K matrices step: usable gradient and finite direction; None if a look at the host shows all do."""
    buckets = [bucket for bucket, _ in together]
    parts = nu.split([sum(bucket.counts) for bucket in buckets])
    if all(bucket.keep is None for bucket in buckets) and all(map(math.isfinite, nu.tolist())):
        return None
    for bucket, part in zip(buckets, parts, strict=True):
        finite = part.isfinite().to(bucket.parameters[0].device)
        bucket.keep = finite if bucket.keep is None else bucket.keep & finite
    return _joined([bucket.keep.to(nu.device) for bucket in buckets if bucket.keep is not None])


def _move(group: dict[str, Any], momentum: Momentum, bucket: Bucket, found: Directions, length: float | Tensor) -> None:
    """Weight decay and update of one bucket, with lengths (K,) or one number before the factors of the shapes."""
    keep = bucket.spread(bucket.keep)
    directions = momentum.direction(found.parts, bucket.buffers, keep)
    if keep is not None:
        directions = [torch.where(k, D, 0.0) for k, D in zip(keep, directions, strict=True)]
    geometry = geometry_of(group)
    if group["row_beta"] is not None:
        directions = bucket.evened(directions, geometry, group["row_beta"])
    sign = -1.0 if group["maximize"] else 1.0
    if group["weight_decay"]:
        rate = group["lr"] * group["weight_decay"]
        if isinstance(rate, Tensor):
            rate = rate.to(bucket.parameters[0].device)
        cautious = group["weight_decay_mode"] == "cautious"
        decay_(bucket.parameters, directions, rate, cautious=cautious, sign=sign, keep=keep)
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
        spread = bucket.spread(found.dual_norms.new_full((sum(bucket.counts),), length), factors)
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
