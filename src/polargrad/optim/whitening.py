r"""Whitening of the momentum by running covariances of the gradient, before its direction is taken.

With G the gradient of a matrix (m, n), N what its direction is taken of, and p the power::

    L <- beta L + (1 - beta) G G^T;   R <- beta R + (1 - beta) G^T G
    N <- (L / mean(L) + eps I)^{-p}  N  (R / mean(R) + eps I)^{-p}

where mean(L) = tr(L) / m is the mean eigenvalue. Dividing by it leaves the units of N as they are, so that learning
rates of scales with a dual norm keep their meaning, and corrects the bias of the average, which starts at zero.

p = 0 is no whitening; geometry "frobenius" with two sides and p = 1/4 is Shampoo's direction, normalized, and the
spectral geometry with p > 0 the whitened polar factor. docs/unifying-view.md has the norms that belong to these.

Source: Gupta, Koren, Singer, arXiv 1802.09568 (covariances and roots).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.kernels import gram, product
from polargrad.linalg.precision import stated_precision
from polargrad.optim.execution import Batch, statistics_dtype
from polargrad.optim.matrix_view import MatrixView

__all__ = ["WHITENINGS", "OneSided", "TwoSided", "Whitener", "Whitening"]

# The steps that each matrix took, on the host; kept only where roots are not renewed in every step.
AGE = "whitening_age"


@dataclass(frozen=True)
class Whitening(ABC):
    """Which sides are whitened, and how.

    For each whitened side of length s the state holds s^2 entries of the covariance and s^2 of its root, in float32
    (float64 for float64 parameters); `workspace` is what a step holds besides. Roots come from an eigendecomposition in
    float64, which on a GPU reads its status from the device.

    Covariances are of squares: in float32 a matrix whose gradient has entries above about 1e19 takes no step, and one
    whose entries are all below about 1e-19 is whitened less or not at all.

    Args:
        power: p in [0, 1/2].
        beta: decay of the covariances, in [0, 1).
        every: steps between new roots.
        damping: eps, relative to the mean eigenvalue.
        max_side: longest side that a covariance is formed of.

    Raises:
        ValueError: an argument out of its range.
    """

    name: ClassVar[str]
    power: float = 0.3
    beta: float = 0.98
    every: int = 5
    damping: float = 1e-5
    max_side: int = 8192

    def __post_init__(self) -> None:
        for option, interval, outside in (
            ("power", "[0, 0.5]", None),
            ("beta", "[0, 1)", 1.0),
            ("damping", "(0, 1]", 0.0),
        ):
            value, high = getattr(self, option), 0.5 if option == "power" else 1.0
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if not numeric or not 0.0 <= value <= high or value == outside:
                raise ValueError(f"{option} must lie in {interval}, got {value!r}")
        for option in ("every", "max_side"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{option} must be a positive integer, got {value!r}")

    @abstractmethod
    def sides(self, m: int, n: int) -> tuple[str, ...]:
        """The sides of a matrix (m, n) that are whitened: "left" (rows, outputs), "right" (columns, inputs)."""

    def check_shape(self, m: int, n: int) -> None:
        """Refuse a matrix with a whitened side beyond `max_side`.

        Raises:
            ValueError: the message names the side and the remedy.
        """
        for side in self.sides(m, n):
            if (length := m if side == "left" else n) > self.max_side:
                fits = min(m, n) <= self.max_side
                shorter = "use 'one-sided', which takes the shorter side, or " if fits else ""
                raise ValueError(
                    f"whitening={self.name!r} forms the {length} x {length} covariance of the {side} side of a matrix "
                    f"({m}, {n}), and max_side is {self.max_side}; {shorter}leave whitening out for this parameter, or "
                    "raise max_side"
                )

    def sizes(self, view: MatrixView) -> dict[str, int]:
        """The number of entries of the covariances of each side, over all matrices of a parameter."""
        found: dict[str, int] = dict.fromkeys(("left", "right"), 0)
        for k, m, n in view.batches:
            for side in self.sides(m, n):
                found[side] += k * (m if side == "left" else n) ** 2
        return {side: size for side, size in found.items() if size}

    def workspace(self, view: MatrixView, dtype: torch.dtype) -> int:
        """Bytes that a step holds to whiten one parameter: its new covariances and roots, and what forms one of them.

        Example:
            >>> from polargrad.optim.matrix_view import matrix_view
            >>> OneSided().workspace(matrix_view((768, 3072)), torch.float32) / 768**2
            60.0
        """
        entry, squares = statistics_dtype(dtype).itemsize, list(self.sizes(view).values())
        return 2 * entry * sum(squares) + (3 * entry + 40) * max(squares, default=0)

    def operations(self, m: int, n: int) -> float:
        """Floating-point operations of a step for one matrix (m, n), those of roots spread over the steps between."""
        count = 0.0
        for side in self.sides(m, n):
            s, other = (m, n) if side == "left" else (n, m)
            count += operations.gram(other, s) + operations.eigh(s) / self.every + operations.product(m * n // s, s)
        return count

    def add_state(self, view: MatrixView, state: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
        """Give a parameter the state before its first step, where it is missing: covariances 0, roots I."""
        for side, size in self.sizes(view).items():
            if f"{side}_covariance" not in state:
                state[f"{side}_covariance"] = torch.zeros(size, dtype=dtype, device=device)
                state[f"{side}_root"] = torch.zeros(size, dtype=dtype, device=device)
                for roots in _slots(self, view, state[f"{side}_root"], side):
                    roots.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        if self.every > 1 and AGE not in state:
            state[AGE] = torch.zeros(view.count, dtype=torch.int64)

    def shapes(self, view: MatrixView) -> dict[str, tuple[int]]:
        """The shapes of covariances and roots in the state of a parameter."""
        return {f"{side}_{kind}": (n,) for side, n in self.sizes(view).items() for kind in ("covariance", "root")}

    def check_state(self, view: MatrixView, state: Mapping[str, Any], name: str) -> None:
        """Refuse a loaded state in which covariances are missing or not finite."""
        for key in self.shapes(view) if state else ():
            if key not in state:
                raise ValueError(
                    f"the state of {name} lacks {key}, which whitening={self.name!r} keeps; it was saved without "
                    "whitening, or by a rank that does not own the matrix "
                    "(polargrad.distributed.checkpoint.save keeps what all ranks own)"
                )
            if not bool(state[key].isfinite().all()):
                raise ValueError(f"the state of {name} holds NaN or infinity in {key}; load an earlier one")

    def root(self, covariances: Tensor) -> Tensor:
        """(C / mean(C) + eps I)^{-p} of covariances (k, s, s), in their dtype; I where a covariance is zero.

        Example:
            >>> TwoSided(power=0.5, damping=1e-12).root(torch.diag(torch.tensor([1.5, 0.5]))[None])[0].diagonal()
            tensor([0.8165, 1.4142])
        """
        values, vectors = torch.linalg.eigh(covariances.to(torch.float64))
        mean = values.sum(-1, keepdim=True) / values.shape[-1]
        relative = torch.where(mean > 0, values.clamp_min(0.0) / mean, 1.0)
        powers = torch.where(mean > 0, (relative + self.damping) ** -self.power, 1.0)
        return ((vectors * powers.unsqueeze(-2)) @ vectors.mT).to(covariances.dtype)


@dataclass(frozen=True)
class TwoSided(Whitening):
    """Whitening of both sides.

    Example:
        >>> TwoSided().sides(8, 4)
        ('left', 'right')
    """

    name: ClassVar[str] = "two-sided"

    def sides(self, m: int, n: int) -> tuple[str, ...]:
        return ("left", "right")


@dataclass(frozen=True)
class OneSided(Whitening):
    """Whitening of the shorter side, the inputs where both are equal.

    Example:
        >>> OneSided().sides(8, 4), OneSided().sides(4, 8)
        (('right',), ('left',))
    """

    name: ClassVar[str] = "one-sided"

    def sides(self, m: int, n: int) -> tuple[str, ...]:
        return ("left",) if m < n else ("right",)


WHITENINGS: dict[str, type[Whitening]] = {cls.name: cls for cls in (TwoSided, OneSided)}


def _slots(whitening: Whitening, view: MatrixView, flat: Tensor, side: str) -> list[Tensor]:
    """The squares (k, s, s) of a side for each batch of the view, none where it is not whitened; views of the state."""
    sizes = []
    for k, m, n in view.batches:
        s = (m if side == "left" else n) if side in whitening.sides(m, n) else 0
        sizes.append((k, s, s))
    parts = flat.split([k * s * s for k, s, _ in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


@dataclass(frozen=True, eq=False)
class Whitener:
    """The whitening of one batch of parameters, where their matrices are whole.

    Args:
        whitening: which.
        batch: the parameters with their states.
        gradients: the local gradients, with the layout of the momentum.
    """

    whitening: Whitening
    batch: Batch
    gradients: Sequence[Tensor]

    def __call__(self, which: Sequence[int], sources: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Whiten the sources of some parameters of the batch by covariances that have taken in the gradients.

        The new state is written when the batch steps, of the matrices that do. One whose new covariance overflows
        becomes NaN, for which no step is taken.

        Args:
            which: positions in the batch.
            sources: of these parameters, whole.
            gradients: of these parameters, whole.
        """
        if not len(sources):
            return []
        view, states = self.batch.view, [self.batch.states[i] for i in which]
        every, sizes = self.whitening.every, [k for k, _, _ in view.batches]
        due = [[every == 1 or age % every == 0 for age in self._ages(state)] for state in states]
        self.batch.undecided.append(partial(self._grow, which, states, any(map(any, due))))
        N = [view.split(source) for source in sources]
        G = [view.split(gradient) for gradient in gradients]
        with stated_precision(sources[0].device.type):
            for slot in range(len(view.batches)):
                own = slice(sum(sizes[:slot]), sum(sizes[: slot + 1]))
                renewed = [flag for flags in due for flag in flags[own]]
                whitened = self._slot(slot, which, own, renewed, [n[slot] for n in N], [g[slot] for g in G])
                for n, part in zip(N, whitened, strict=True):
                    n[slot] = part
        return [view.merge(n) for n in N]

    def _ages(self, state: dict[str, Any]) -> list[int]:
        return [0] * self.batch.view.count if self.whitening.every == 1 else state[AGE].tolist()

    def _grow(self, which: Sequence[int], states: list[dict[str, Any]], renewed: bool) -> None:
        """Count the step of the matrices that take it; on a device that is read where it was waited for anyway."""
        if self.whitening.every == 1:
            return
        keep = self._keep(which, slice(None)) if renewed or not self.batch.masked else None
        ages = [state[AGE] for state in states]
        steps = [torch.ones_like(age) for age in ages] if keep is None else keep.cpu().view(len(ages), -1).unbind()
        self.batch.writes += [partial(age.add_, step) for age, step in zip(ages, steps, strict=True)]

    def _keep(self, which: Sequence[int], own: slice) -> Tensor | None:
        """Whether the matrices in the places `own` of some parameters step; None for all."""
        keep = self.batch.keep
        return None if keep is None else keep.view(-1, self.batch.view.count)[list(which), own].reshape(-1)

    def _write(self, which: Sequence[int], own: slice, targets: list[Tensor], new: Tensor) -> None:
        """Have the new squares written, of matrices that step."""
        if (keep := self._keep(which, own)) is not None:
            new = torch.where(keep[:, None, None], new, torch.cat(targets))
        self.batch.write_later(targets, new.split([len(target) for target in targets]))

    def _slot(
        self, slot: int, which: Sequence[int], own: slice, renewed: list[bool], N: list[Tensor], G: list[Tensor]
    ) -> list[Tensor]:
        """One batch (k, m, n) of the view of every parameter, in the places `own` among its matrices."""
        dtype, k, states = N[0].dtype, len(N[0]), [self.batch.states[i] for i in which]
        keep, later = self._keep(which, own), self.batch.undecided
        wide = statistics_dtype(dtype)
        X, g = (torch.cat([t.to(wide) for t in tensors]) for tensors in (N, G))
        if keep is not None:
            g = torch.where(keep[:, None, None], g, 0.0)
        m, n = X.shape[-2:]
        sides = self.whitening.sides(m, n)
        held = {side: [self._matrices(state, f"{side}_covariance", slot) for state in states] for side in sides}
        covariances = {
            side: torch.cat(old).lerp(gram(g.mT if side == "left" else g), 1.0 - self.whitening.beta)
            for side, old in held.items()
        }
        finite = torch.stack([new.isfinite().all(-1).all(-1) for new in covariances.values()]).all(0)
        where = (finite if keep is None else finite & keep)[:, None, None]
        chosen = None if all(renewed) else torch.tensor(renewed).nonzero().flatten().to(X.device)
        for side, new in covariances.items():
            new = torch.where(where, new, torch.cat(held[side]))
            later.append(partial(self._write, which, own, held[side], new))
            old_roots = [self._matrices(state, f"{side}_root", slot) for state in states]
            roots = torch.cat(old_roots)
            if any(renewed):
                if chosen is None:
                    roots = torch.where(where, self.whitening.root(new), roots)
                else:
                    root = torch.where(where[chosen], self.whitening.root(new[chosen]), roots[chosen])
                    roots = roots.index_copy(0, chosen, root)
                later.append(partial(self._write, which, own, old_roots, roots))
            # A row of zeros has a covariance of zeros, and stays one but for rounding.
            X = product(roots, X) * (X != 0).any(-1, keepdim=True) if side == "left" else product(X, roots)
        return list(torch.where(finite[:, None, None], X, math.nan).to(dtype).split(k))

    def _matrices(self, state: Mapping[str, Any], key: str, slot: int) -> Tensor:
        """(k, s, s), those of one batch of the view, sharing the memory of the state."""
        return _slots(self.whitening, self.batch.view, state[key], key.partition("_")[0])[slot]
