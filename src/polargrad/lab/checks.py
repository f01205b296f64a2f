"""Checks that many options share: an integer in range, and a name that is one of those known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["check_integer", "unknown_name"]


def check_integer(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless the value of an option is an integer of at least `least`; a bool is none.

    Example:
        >>> check_integer("steps", 0)
        Traceback (most recent call last):
        ...
        ValueError: steps must be an integer of at least 1; got 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def unknown_name(kind: str, name: Any, known: Iterable[str]) -> ValueError:
    """The error for a name that is not known, with the closest one and all that are; the caller raises it.

    Args:
        kind: what is named, such as "model".
        name: the unknown name.
        known: the names that are allowed.

    Example:
        >>> unknown_name("schedule", "cosin", ["constant", "cosine"])
        ValueError("unknown schedule 'cosin'; did you mean 'cosine'? The allowed names are 'constant', 'cosine'")
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? The" if close else "the"
    return ValueError(f"unknown {kind} {name!r}; {hint} allowed names are {', '.join(map(repr, names))}")
