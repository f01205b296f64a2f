"""What a matrix problem is: data, an initial point, a loss, and whatever is known of its optimum and curvature."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

Point = Mapping[str, Tensor]


class Problem(ABC):
    """Minimize f over one or several named matrices.

    A problem keeps its tensors as attributes, all of one dtype, so that `to` can carry it to another. What is not known
    of a problem is None.

    Args:
        start: the initial point, name -> matrix.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "iteration"
    units_per_step: int = 1
    constrained: bool = False

    def __init__(self, start: Point) -> None:
        for key, value in start.items():
            check_matrix(key, value)
        self.start: Point = dict(start)

    @abstractmethod
    def value(self, point: Point) -> Tensor:
        """The value f at a point, on all data: a differentiable scalar."""

    def step_value(self, point: Point, step: int) -> Tensor:
        """What step `step`, counted from 0, differentiates: f, or its part on a batch that (seed, step) determine."""
        return self.value(point)

    def gradients(self, point: Point, step: int | None = None) -> dict[str, Tensor]:
        """The gradient of f by autograd, or of `step_value` if a step is given."""
        leaves = {key: value.detach().requires_grad_() for key, value in point.items()}
        with torch.enable_grad():
            f = self.value(leaves) if step is None else self.step_value(leaves, step)
        return dict(zip(leaves, torch.autograd.grad(f, list(leaves.values())), strict=True))

    def residual(self, point: Point) -> Tensor | None:
        """The matrix that is zero at a perfect fit; None where the problem has none."""
        return None

    @cached_property
    def minimum(self) -> float | None:
        """f*, the lowest value of f, in float64."""
        return None

    @cached_property
    def smoothness(self) -> float | None:
        """L: f's gradient is L-Lipschitz in the Frobenius norm."""
        return None

    @cached_property
    def strong_convexity(self) -> float | None:
        """mu: f is mu-strongly convex in the Frobenius norm."""
        return None

    @property
    def condition_number(self) -> float | None:
        """kappa_H = L / mu."""
        L, mu = self.smoothness, self.strong_convexity
        return L / mu if L is not None and mu else None

    def gap(self, point: Point) -> float:
        """The difference f - f* in float64, or f itself where f* is not known."""
        wide = {key: value.detach().double() for key, value in point.items()}
        with torch.no_grad():
            return float(self.float64.value(wide)) - (self.minimum or 0.0)

    def figures(self, point: Point) -> dict[str, float]:
        """What else an evaluation should say, such as the error on held-out data."""
        return {}

    def newton_direction(self, name: str, G: Tensor, point: Point) -> Tensor:
        """The inverse of the named matrix's block of the Hessian, applied to its gradient G.

        Raises:
            ValueError: a problem whose Hessian has no structure to invert it by.
        """
        raise ValueError(f"no Newton direction is known for {self.name}; use another optimizer")

    def project(self, parameters: Point) -> None:  # noqa: B027 - most problems are unconstrained
        """Move parameters in place to the nearest feasible point; unconstrained problems leave them."""

    @cached_property
    def float64(self) -> Self:
        """The same problem with its data in float64."""
        return self.to(torch.float64)

    def to(self, target: torch.dtype | torch.device | str) -> Self:
        """The same problem with its data in another dtype or on another device; this one stays as it is."""
        twin = copy.copy(self)
        for key, value in vars(self).items():
            if isinstance(getattr(type(self), key, None), cached_property):
                delattr(twin, key)  # of the old data
            elif isinstance(value, Tensor) and (value.is_floating_point() or not isinstance(target, torch.dtype)):
                setattr(twin, key, value.to(target))
        twin.start = {key: value.to(target) for key, value in self.start.items()}
        return twin


def check_matrix(name: str, value: Tensor) -> None:
    """A real, finite matrix with entries.

    Raises:
        TypeError: not a dense real floating-point tensor.
        ValueError: not a matrix, empty, or with NaN or infinity.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{name} must be a real floating-point tensor, got {kind}; convert it, for example {name}.float()"
        )
    if value.ndim != 2 or value.numel() == 0:
        raise ValueError(f"{name} must be a matrix with entries, got shape {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name} holds {bad} entries that are NaN or infinite; remove or impute them first")


def check_product(**shapes: tuple[Tensor, tuple[int | None, int | None]]) -> None:
    """Each named matrix has the shape that its neighbours ask for; None stands for any.

    Raises:
        ValueError: naming the matrix, its shape and the one wanted.
    """
    for name, (value, wanted) in shapes.items():
        if any(w is not None and w != s for s, w in zip(value.shape, wanted, strict=True)):
            text = " x ".join("any" if w is None else str(w) for w in wanted)
            raise ValueError(f"{name} has shape {tuple(value.shape)}, which does not fit: {text} is needed")


def check_sizes(**sizes: int) -> None:
    """Whole numbers of at least 1.

    Raises:
        ValueError: naming the size.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def check_rank(rank: int, *dimensions: int) -> None:
    """A rank that matrices of these dimensions can have.

    Raises:
        ValueError: below 1, or above the smallest dimension.
    """
    check_sizes(rank=rank)
    if rank > min(dimensions):
        raise ValueError(f"rank {rank} is above {min(dimensions)}, the smaller dimension; give a rank of at most that")


def generator(seed: int) -> torch.Generator:
    """A CPU generator that draws what `torch.manual_seed(seed)` would.

    Raises:
        ValueError: a seed that is not a whole number of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, draw: torch.Generator) -> Tensor:
    """A matrix with entries uniform on (-1, 1)."""
    return torch.empty(*shape).uniform_(-1.0, 1.0, generator=draw)
