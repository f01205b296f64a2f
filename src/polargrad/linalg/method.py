"""The small base that every polar algorithm implements, and the table from names to algorithms."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Iterate", "PolarMethod", "available_methods", "register", "resolve_method"]


class Iterate(NamedTuple):
    """What an algorithm hands back for a canonical batch.

    Attributes:
        unitary: (k, m, n), the computed unitary factors.
        steps: how many iterations were run (the same for the whole batch).
        breakdown: bool (k,), True where the algorithm could not go on, or None where that cannot happen.
    """

    unitary: Tensor
    steps: int
    breakdown: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class PolarMethod(ABC):
    """An algorithm for the unitary polar factor of a *canonical* batch.

    A canonical batch is contiguous, real or complex, of shape (k, m, n) with m >= n >= 1, every entry finite and its
    largest entry near 1 (or all zero), in `working_dtype`. Subclasses are frozen dataclasses that hold nothing but
    their own options, check them when made, and implement `iterate`. Everything else (validation, transposing,
    scaling, Hermitian factor, status) is in `polar.py`, once.
    """

    name: ClassVar[str]

    @abstractmethod
    def iterate(self, X: Tensor) -> Iterate:
        """Return the unitary factors of the canonical batch X (k, m, n); X is not modified."""

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype `iterate` wants for input of `dtype`: float32 for half precision, else the input's own."""
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

    def tolerance(self, dtype: torch.dtype, n: int) -> float:
        """The accuracy class: bound on ||U^H U - I||_F / sqrt(n) that a finished run in `dtype` promises."""
        return 4.0 * torch.finfo(dtype).eps * n

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


def resolve_method(method: str | PolarMethod, max_steps: int | None = None) -> PolarMethod:
    """Turn a name into an algorithm at the edge of the library; a `PolarMethod` passes through.

    Raises:
        ValueError: unknown name, or max_steps for a method that takes none or below 1.
        TypeError: neither a name nor a `PolarMethod`.
    """
    if isinstance(method, str):
        if method not in _METHODS:
            raise ValueError(f"unknown polar method {method!r}; known: {', '.join(available_methods())}")
        method = _METHODS[method]()
    if not isinstance(method, PolarMethod):
        raise TypeError(f"method must be a name or a PolarMethod, got {type(method).__name__}")
    if max_steps is None:
        return method
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive integer or None, got {max_steps!r}")
    return method.with_max_steps(max_steps)
