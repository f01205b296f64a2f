"""What a grid of runs varies: an option of some roles, all learning rates at once, or the length of the warm-up."""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from polargrad.lab.run.spec import Plain, RunSpec

__all__ = ["Axis", "OptionAxis", "RatesAxis", "WarmupAxis", "parse_axis", "text_of"]


class Axis(ABC):
    """Values to try for one thing."""

    values: tuple[Plain, ...]

    @property
    @abstractmethod
    def label(self) -> str:
        """What stands before the equals sign."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, in words."""

    @property
    @abstractmethod
    def scale(self) -> str:
        """What its values are, below the axis of a figure."""

    @property
    @abstractmethod
    def is_rate(self) -> bool:
        """Whether the values are learning rates or multiples of them."""

    @property
    def ordered(self) -> tuple[Plain, ...]:
        """The values for a reader: numbers by their size, others as given."""
        numbers = [value for value in self.values if _is_number(value)]
        return tuple(sorted(numbers)) if len(numbers) == len(self.values) else self.values  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def sets(self, role: str, option: str) -> bool:
        """Whether it decides the option of a role."""

    def concerns(self, spec: RunSpec) -> bool:
        """Whether the spec has what is varied."""
        return True

    @abstractmethod
    def applied(self, spec: RunSpec, value: Plain) -> RunSpec:
        """The spec with one of the values; it must concern it.

        Raises:
            ValueError: if the value does not fit the spec.
        """


@dataclass(frozen=True)
class OptionAxis(Axis):
    """Values to try for one option of one role, or of several roles that move together.

    Args:
        roles: the roles whose option is set.
        option: the option's name, such as "lr".
        values: what to try.
    """

    roles: tuple[str, ...]
    option: str
    values: tuple[Plain, ...]

    @property
    def label(self) -> str:
        """As it is written: "embedding+head.lr"."""
        return f"{'+'.join(self.roles)}.{self.option}"

    @property
    def title(self) -> str:
        """As in "learning rate of embedding, head"."""
        return f"{'learning rate' if self.is_rate else self.option} of {', '.join(self.roles)}"

    @property
    def scale(self) -> str:
        """As it is written."""
        return self.label

    @property
    def is_rate(self) -> bool:
        """Whether the option is the learning rate."""
        return self.option == "lr"

    def sets(self, role: str, option: str) -> bool:
        """Whether it decides the option of a role."""
        return role in self.roles and option == self.option

    def concerns(self, spec: RunSpec) -> bool:
        """Whether the spec has one of the roles."""
        return any(role in spec.optimizer for role in self.roles)

    def applied(self, spec: RunSpec, value: Plain) -> RunSpec:
        """The spec with the option set for those of the roles that it has."""
        for role in self.roles:
            spec = spec.with_option(role, self.option, value) if role in spec.optimizer else spec
        return spec


@dataclass(frozen=True)
class RatesAxis(Axis):
    """Multiples to try of a recipe's own learning rates, those of all roles at once.

    Args:
        values: positive numbers; 1 is the recipe itself.

    Raises:
        ValueError: if one is not a positive finite number.
    """

    values: tuple[Plain, ...]

    def __post_init__(self) -> None:
        if odd := [value for value in self.values if not _is_number(value) or float(value) <= 0]:  # pyright: ignore[reportArgumentType]
            raise ValueError(f"rates takes positive numbers, multiples of every role's rate; got {odd[0]!r}")

    @property
    def label(self) -> str:
        """As it is written."""
        return "rates"

    @property
    def title(self) -> str:
        """Those of all roles."""
        return "learning rates"

    @property
    def scale(self) -> str:
        """Multiples."""
        return "times the recipe's own rates"

    @property
    def is_rate(self) -> bool:
        """They are."""
        return True

    def sets(self, role: str, option: str) -> bool:
        """It decides every learning rate."""
        return option == "lr"

    def applied(self, spec: RunSpec, value: Plain) -> RunSpec:
        """The spec with every rate times the value."""
        for role, rate in spec.learning_rates.items():
            spec = spec.with_option(role, "lr", float(f"{rate * float(value):.12g}"))  # pyright: ignore[reportArgumentType]
        return spec


@dataclass(frozen=True)
class WarmupAxis(Axis):
    """Lengths to try of the schedule's warm-up.

    Args:
        values: whole numbers of steps, 0 for none.

    Raises:
        ValueError: if one is not a whole number of at least 0.
    """

    values: tuple[Plain, ...]

    def __post_init__(self) -> None:
        if odd := [value for value in self.values if type(value) is not int or value < 0]:
            raise ValueError(f"warmup takes whole numbers of steps, 0 for no warm-up; got {odd[0]!r}")

    @property
    def label(self) -> str:
        """As it is written."""
        return "warmup"

    @property
    def title(self) -> str:
        """The warm-up."""
        return "length of the warm-up"

    @property
    def scale(self) -> str:
        """Steps."""
        return "steps of warm-up"

    @property
    def is_rate(self) -> bool:
        """They are not."""
        return False

    def sets(self, role: str, option: str) -> bool:
        """It decides no option."""
        return False

    def applied(self, spec: RunSpec, value: Plain) -> RunSpec:
        """The spec with a warm-up of that length.

        Raises:
            ValueError: if its schedule has no warm-up, or none of that length.
        """
        if not any(entry.name == "warmup" for entry in dataclasses.fields(spec.schedule)):
            raise ValueError(
                f"the schedule of {spec.recipe}, {spec.schedule.name}, has no warm-up; leave the sweep of warmup out"
            )
        try:
            return dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, warmup=value))
        except ValueError as error:
            raise ValueError(f"warmup={value} of {spec.recipe}, {spec.loop.steps} steps: {error}") from None


_WHOLE: dict[str, type[RatesAxis | WarmupAxis]] = {"rates": RatesAxis, "warmup": WarmupAxis}


def parse_axis(text: str) -> Axis:
    """An axis as written on the command line.

    Args:
        text: ROLE.OPTION=VALUE,VALUE,...; roles joined by + move together. Or rates=VALUE,VALUE,... for multiples of
            all learning rates, or warmup=STEPS,STEPS,... Values are read as JSON, else as strings.

    Returns:
        The axis.

    Raises:
        ValueError: if the text is not of that form, or the values are not of its kind.

    Example:
        >>> parse_axis("embedding+head.lr=0.1,0.3")
        OptionAxis(roles=('embedding', 'head'), option='lr', values=(0.1, 0.3))
        >>> parse_axis("warmup=0,10,40")
        WarmupAxis(values=(0, 10, 40))
    """
    place, equals, listed = (part.strip() for part in text.partition("="))
    names, dot, option = place.rpartition(".")
    roles = tuple(name.strip() for name in names.split("+"))
    texts = [value.strip() for value in listed.split(",")]
    if not (equals and all(texts)) or not (place in _WHOLE or (dot and option and all(roles))):
        raise ValueError(
            f"cannot read the sweep {text!r}; write ROLE.OPTION=VALUE,VALUE, as in hidden.lr=0.003,0.01,0.03, "
            "or rates=0.5,1,2, or warmup=0,10"
        )
    values = tuple(dict.fromkeys(_value(value) for value in texts))
    return _WHOLE[place](values) if place in _WHOLE else OptionAxis(roles, option, values)


def text_of(settings: Sequence[tuple[Axis, Plain]]) -> str:
    """Settings as they are written in the name of a run.

    Example:
        >>> text_of([(parse_axis("warmup=0,10"), 10), (parse_axis("rates=0.5"), 0.5)])
        'warmup=10,rates=0.5'
    """
    return ",".join(f"{axis.label}={_text(value)}" for axis, value in settings)


def _is_number(value: Plain) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(text: str) -> Plain:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _text(value: Plain) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
