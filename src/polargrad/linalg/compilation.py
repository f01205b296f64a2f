"""What the host may do while a step is traced: read numbers of tensors, and find constants by slow arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import ParamSpec, TypeVar

__all__ = ["compile_constant"]

P = ParamSpec("P")
R = TypeVar("R")


def compile_constant(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: call a pure function of hashable arguments once for each of them.

    Dynamo traces through the caches of functools, and so through every bisection and exchange behind them. A compiled
    step takes the results of this one as they are.

    Example:
        >>> @compile_constant
        ... def square(n):
        ...     print("once")
        ...     return n * n
        >>> square(3), square(3)
        once
        (9, 9)
    """
    known: dict[Hashable, R] = {}

    @functools.wraps(function)
    def look_up(*args: P.args, **kwargs: P.kwargs) -> R:
        key = (args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key]

    # What torch.compiler.assume_constant_result sets; it would import the whole of Dynamo for that.
    look_up._dynamo_marked_constant = True  # pyright: ignore[reportAttributeAccessIssue]
    return look_up
