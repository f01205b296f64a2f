"""The small base that every polar algorithm implements, and the table from names to algorithms."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Accuracy", "IterationResult", "PolarMethod", "available_methods", "register", "resolve_method"]

# How near 1 the singular values of U must be: a bound on max_i |sigma_i(U) - 1|, or "full" for rounding error.
Accuracy = float | Literal["full"]


class IterationResult(NamedTuple):
    """What an algorithm hands back for a canonical batch.

    Attributes:
        unitary: (k, m, n), the computed unitary factors.
        steps: how many iterations were run (the same for the whole batch).
        breakdown: bool (k,), True where the algorithm could not go on, or None where that cannot happen.
        bounds: computes (low, high), known before the run: every singular value of A at or above `sigma_floor` *
            ||A||_F ends in [low, high], up to rounding. None where nothing is known.
        method: name of the algorithm that ran, where that was chosen during the run (`Auto`); else "".
    """

    unitary: Tensor
    steps: int
    breakdown: Tensor | None = None
    bounds: Callable[[], tuple[float, float]] | None = None
    method: str = ""


@dataclasses.dataclass(frozen=True)
class PolarMethod(ABC):
    """An algorithm for the unitary polar factor of a *canonical* batch.

    A canonical batch X has shape (k, m, n) with m >= n >= 1, k >= 1, real or complex, in `working_dtype`. Every entry
    is finite; the largest of each matrix is between 2^-24 and 2^24 (near 1 in half precision), or the matrix is zero.
    Its rows or its columns are contiguous (a wide A arrives as a transposed view), and it may be A itself: never write
    into X. Subclasses are frozen dataclasses that hold nothing but their own options, check them when made, and
    implement `iterate`. Everything else (validation, transposing, scaling, Hermitian factor, status, gradient) is in
    `decomposition.py` and `backward.py`, once.

    An algorithm declares its accuracy class by two numbers: singular values of A at or above `sigma_floor` * ||A||_F
    end within `tolerance` of 1, those below end in [0, 1 + tolerance], up to rounding. By `peak_memory` it declares the
    most memory that `polar_factor` holds at once, the factor included, in sizes of A counted with at least 4 bytes for
    an entry; whoever stacks matrices goes by it.
    """

    name: ClassVar[str]
    peak_memory: ClassVar[float] = 36.0

    @abstractmethod
    def iterate(self, X: Tensor) -> IterationResult:
        """Return the unitary factors of the canonical batch X (k, m, n); X is not modified."""

    def on(self, device: torch.device) -> PolarMethod:
        """The same algorithm with what it leaves to the device decided; here nothing is left."""
        return self

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype `iterate` wants for input of `dtype`: float32 for half precision, else the input's own."""
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

    def tolerance(self, dtype: torch.dtype, n: int) -> float:
        """The accuracy class: bound on |sigma_i(U) - 1| that a finished run on n columns in `dtype` promises."""
        return 4.0 * torch.finfo(dtype).eps * n

    def sigma_floor(self, dtype: torch.dtype) -> float:
        """The smallest sigma / ||A||_F at which `tolerance` is promised for work in `dtype`."""
        return 4.0 * torch.finfo(dtype).eps

    def with_accuracy(self, accuracy: Accuracy, dtype: torch.dtype) -> PolarMethod:
        """The same algorithm held to `accuracy` for input of `dtype`; never a less accurate one.

        Here: itself, if its class is at least as good. An algorithm that can choose its steps overrides this.

        Raises:
            ValueError: the algorithm cannot be held to it.
        """
        reached = self.tolerance(self.working_dtype(dtype), 1)
        asked = 16.0 * torch.finfo(dtype).eps if accuracy == "full" else accuracy
        if reached <= asked:
            return self
        raise ValueError(
            f"method {self.name!r} promises singular values within {reached:.1e} of 1 for {dtype} input, which is "
            f"coarser than accuracy={accuracy!r}; use method='auto', or leave accuracy out"
        )

    def with_max_steps(self, max_steps: int) -> PolarMethod:
        """The same algorithm limited to `max_steps` iterations."""
        raise ValueError(
            f"method {self.name!r} has no steps to limit, got max_steps={max_steps}; leave max_steps out, or use an "
            "iterative method such as 'qdwh'"
        )


M = TypeVar("M", bound=PolarMethod)

_METHODS: dict[str, type[PolarMethod]] = {}


def register(cls: type[M]) -> type[M]:
    """Class decorator: make an algorithm available under its `name`."""
    _METHODS[cls.name] = cls
    return cls


def available_methods() -> tuple[str, ...]:
    """The names that `polar` accepts.

    Example:
        >>> "qdwh" in available_methods()
        True
    """
    return tuple(sorted(_METHODS))


def resolve_method(
    method: str | PolarMethod,
    max_steps: int | None = None,
    accuracy: Accuracy | None = None,
    dtype: torch.dtype = torch.float32,
) -> PolarMethod:
    """Turn a name into an algorithm at the edge of the library; a `PolarMethod` passes through.

    Args:
        method: a name or a `PolarMethod`.
        max_steps: limit on the iterations, or None.
        accuracy: bound on |sigma_i(U) - 1| that the algorithm is held to, "full", or None for its own class.
        dtype: of the input, which decides what accuracy can be had.

    Raises:
        ValueError: unknown name, bad max_steps or accuracy or both of them, or an algorithm that takes no steps or
            cannot be held to the accuracy.
        TypeError: neither a name nor a `PolarMethod`.

    Example:
        >>> resolve_method("qdwh", max_steps=2).max_steps
        2
    """
    if isinstance(method, str):
        if method not in _METHODS:
            raise ValueError(f"unknown polar method {method!r}; known: {', '.join(available_methods())}")
        method = _METHODS[method]()
    if not isinstance(method, PolarMethod):
        raise TypeError(f"method must be a name or a PolarMethod, got {type(method).__name__}")
    if max_steps is not None and accuracy is not None:
        raise ValueError(
            f"give accuracy or max_steps, not both (got accuracy={accuracy!r}, max_steps={max_steps!r}): the number of "
            "steps follows from the accuracy"
        )
    if accuracy is not None:
        return method.with_accuracy(_checked_accuracy(accuracy, dtype), dtype)
    if max_steps is None:
        return method
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive integer or None, got {max_steps!r}")
    return method.with_max_steps(max_steps)


def _checked_accuracy(accuracy: object, dtype: torch.dtype) -> Accuracy:
    if accuracy == "full":
        return "full"
    if isinstance(accuracy, bool) or not isinstance(accuracy, int | float) or not 0.0 < accuracy < 1.0:
        raise ValueError(f'accuracy must be a number in (0, 1), "full" or None, got {accuracy!r}')
    if accuracy < torch.finfo(dtype).eps:
        raise ValueError(
            f"accuracy={accuracy!r} is below the unit roundoff {torch.finfo(dtype).eps:.1e} of {dtype} input; "
            'ask for "full", or convert A to a wider dtype'
        )
    return float(accuracy)
