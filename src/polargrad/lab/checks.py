"""Checks that many options share: an integer in range, and a name that is one of those known."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["check_integer", "given", "unknown_name"]


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


def given(options: Any, *names: str) -> str:
    """The options that differ from their defaults, as flags joined by commas; empty if none does.

    Args:
        options: a dataclass of options; the metadata of a field may hold another name of its flag as `flag`.
        names: fields to look at; all by default.
    """
    entries = [entry for entry in dataclasses.fields(options) if not names or entry.name in names]
    changed = [entry for entry in entries if getattr(options, entry.name) != entry.default]
    return ", ".join(
        f"--{'no-' if entry.default is True else ''}{entry.metadata.get('flag', entry.name).replace('_', '-')}"
        for entry in changed
    )
