"""Options: fields of dataclasses that are flags, keys of launch files and parts of a spec.

An option is declared once, as a field: its type holds the allowed values, its entry under `Args:` is its help text, and
`option` adds its limits, another name of its flag, and which other option it is used with.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from polargrad.linalg.registry import unknown_name as unknown_name

# What torch and the formats of files can count to.
LARGEST = 2**63 - 1
_WORDS = {int: "an integer", float: "a number", str: "a string", Path: "a path", bool: "a bool, true or false"}


@dataclass(frozen=True)
class Used:
    """A condition under which an option is used; where it does not hold, giving the option is an error.

    Args:
        option: name of the other option of the command that decides.
        values: its values under which this one is used; empty: any but its default.
        unless: whether it is the other way round: this one is used at the other's default alone.
        why: what this one belongs to, or why it is not used.
    """

    option: str
    values: tuple[Any, ...] = ()
    unless: bool = False
    why: str = ""


def option(
    default: Any,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    repeated: bool | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    used: Used | tuple[Used, ...] | None = None,
) -> Any:
    """A field that is an option too.

    Args:
        default: of the field.
        flag: its name as flag and key of a launch file, if another one.
        metavar: a word for its value in the help text.
        repeated: whether the flag may be given several times.
        least: smallest number; of an integer 1 if nothing is said.
        above: number that the value is above.
        most: largest number.
        used: when the option has an effect; always if nothing is said.
    """
    limits = {"least": least, "above": above, "most": most}
    metadata = {"flag": flag, "metavar": metavar, "repeated": repeated, "used": used, **limits}
    return field(default=default, metadata={key: value for key, value in metadata.items() if value is not None})


@dataclass(frozen=True)
class Options:
    """A table of options, each checked by its declared type and limits; `given` knows which were written out.

    Raises:
        ValueError: a value that its declaration does not allow.
    """

    written: ClassVar[frozenset[str]] = frozenset()  # on an instance: the options that a command line names

    def __post_init__(self) -> None:
        check_options(self, name=flag_of)


def name_of(entry: dataclasses.Field[Any]) -> str:
    """The name of an option in launch files, and after `--` on the command line."""
    return entry.metadata.get("flag", entry.name)


def flag_of(entry: dataclasses.Field[Any]) -> str:
    """An option as it is given on the command line to change its default."""
    return f"--{'no-' if entry.default is True else ''}{name_of(entry).replace('_', '-')}"


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def check_options(options: Any, *, name: Callable[[dataclasses.Field[Any]], str] = lambda entry: entry.name) -> None:
    """Check every field of a dataclass by its declared type and limits.

    Args:
        options: the dataclass.
        name: what errors call a field.

    Raises:
        ValueError: a value of another type or beyond its limits.
    """
    for entry in fields(options):
        check_value(name(entry), getattr(options, entry.name), _hints(type(options))[entry.name], entry.metadata)


def check_value(name: str, value: Any, hint: Any, limits: Mapping[str, Any] | None = None) -> None:
    """Check one value by a type: a plain one, a `Literal`, a tuple of plain ones, or one of these or None.

    Example:
        >>> check_value("share", 2.0, float, {"above": 0, "most": 1})
        Traceback (most recent call last):
        ...
        ValueError: share must be a finite number above 0 and at most 1; got 2.0
        >>> check_value("colour", "blue", Literal["red", "green"])
        Traceback (most recent call last):
        ...
        ValueError: colour is 'blue'; allowed are 'red', 'green'
    """
    limits = limits or {}
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for choice in choices if value is not None or type(None) not in choices else ():
            if choice is not type(None):
                check_value(name, value, choice, limits)
    elif origin is Literal:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, choices))}")
    elif origin is tuple:
        if not isinstance(value, tuple) or not all(isinstance(entry, choices[0]) for entry in value):
            raise ValueError(f"{name} is {value!r}; give a list of {_WORDS[choices[0]].split()[-1]}s")
        for entry in value:
            check_value(name, entry, choices[0], limits)
    elif hint is int:
        check_integer(name, value, limits.get("least", 1))
    elif hint is float:
        _check_number(name, value, limits)
    elif hint in _WORDS and not isinstance(value, hint):
        raise ValueError(f"{name} is {value!r}; give {_WORDS[hint]}")


def _check_number(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    above, least, most = limits.get("above", -math.inf), limits.get("least", -math.inf), limits.get("most", math.inf)
    if not (fits and above < value and least <= value <= most):
        words = {"above": "above", "least": "of at least", "most": "at most"}
        allowed = " and ".join(f"{word} {limits[key]}" for key, word in words.items() if key in limits)
        raise ValueError(f"{name} must be {' '.join(('a finite number', allowed)).rstrip()}; got {value!r}")


def check_integer(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless the value of an option is an integer from `least` to `LARGEST`; a bool is not one.

    Example:
        >>> check_integer("steps", 0)
        Traceback (most recent call last):
        ...
        ValueError: steps must be an integer of at least 1; got 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    if value > LARGEST:
        raise ValueError(f"{name} must be an integer of at most {LARGEST}; got {value}")


def divisors(number: int) -> str:
    """The divisors of a positive number, of a large one those up to 1,024 and itself, for a message that asks for one.

    Example:
        >>> divisors(12), divisors(7919)
        ('1, 2, 3, 4, 6, 12', '1, ..., 7919')
    """
    small = [str(n) for n in range(1, min(number, 1024) + 1) if number % n == 0]
    return ", ".join(small if number <= 1024 else [*small, "...", str(number)])


def values_of(kind: type[Any], options: Any) -> dict[str, Any]:
    """The values of the fields that a dataclass declares, from an instance of a class that inherits them."""
    return {entry.name: getattr(options, entry.name) for entry in fields(kind)}


def given(options: Any, *names: str) -> str:
    """The options that were written out or differ from their defaults, as flags joined by commas; empty if none.

    Args:
        options: a dataclass of options.
        names: fields to look at; all by default.
    """
    entries = [entry for entry in fields(options) if not names or entry.name in names]
    return ", ".join(flag_of(entry) for entry in entries if _is_given(options, entry))


def _is_given(options: Any, entry: dataclasses.Field[Any]) -> bool:
    return entry.name in getattr(options, "written", ()) or getattr(options, entry.name) != entry.default


def tables(command: Any) -> Iterator[Any]:
    """A command's dataclass and the tables of options in it."""
    yield command
    for entry in fields(command):
        if dataclasses.is_dataclass(table := getattr(command, entry.name)):
            yield from tables(table)


def refuse_unused(command: Any) -> None:
    """Refuse the options of a command that its other options leave without effect, as they are declared.

    Raises:
        ValueError: naming such options, why they have no effect, and what to do.
    """
    every = {
        entry.name: (table, entry)
        for table in tables(command)
        for entry in fields(table)
        if not dataclasses.is_dataclass(getattr(table, entry.name))
    }
    unused: dict[Used, list[str]] = {}
    for table, entry in every.values():
        conditions = entry.metadata.get("used", ())
        for used in (conditions,) if isinstance(conditions, Used) else conditions:
            if _is_given(table, entry) and not _holds(used, *every[used.option]):
                unused.setdefault(used, []).append(flag_of(entry))
    for used, flags in unused.items():
        table, other = every[used.option]
        listed, them = ", ".join(flags), "it" if len(flags) == 1 else "them"
        if used.values:
            verb, value = "is" if len(flags) == 1 else "are", getattr(table, other.name)
            take = " or ".join(used.values)
            raise ValueError(f"{listed} {verb} not used by {flag_of(other)} {value}; leave {them} out, or take {take}")
        add = "" if used.unless else f"add {flag_of(other)}, or "
        raise ValueError(f"{listed}: {used.why}; {add}leave {them} out")


def _holds(used: Used, table: Any, other: dataclasses.Field[Any]) -> bool:
    value = getattr(table, other.name)
    return value in used.values if used.values else (value != other.default) != used.unless
