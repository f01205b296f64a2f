"""What all objectives of matrix problems share: settings that are checked, and a figure that should fall to zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from polargrad.lab.matrix.problems import Problem

__all__ = ["Sized", "check_observed", "check_rank"]

_READERS: Mapping[str, tuple[Any, str]] = {
    "int": (int, "a positive whole number"),
    "float": (float, "a number"),
    "str": (str, "a text"),
}


@dataclass(frozen=True)
class Sized:
    """A matrix problem as plain data.

    Attributes:
        kind: what specs and the command line call it.
        metric: the key of the figure that should fall, with its label and unit.
        matrices: names of what is optimized.
        drawn: the class in `polargrad.lab.matrix.problems` whose `draw` takes the settings by their names.

    Raises:
        ValueError: a whole number below 1, a number that is not finite.
    """

    kind: ClassVar[str]
    metric: ClassVar[str] = "gap"
    metric_label: ClassVar[str] = "f − f*"
    metric_unit: ClassVar[str] = "float64"
    matrices: ClassVar[tuple[str, ...]] = ("X",)
    drawn: ClassVar[str]

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{entry.name} is {value!r}; give a positive whole number")
            if entry.type == "float" and not math.isfinite(value):
                raise ValueError(f"{entry.name} is {value!r}; give a finite number")

    @classmethod
    def small(cls) -> Self:
        """A size that runs in a moment; where there is none, the size as it is."""
        return cls()

    @property
    def step_scale(self) -> float:
        """What PolarGrad's step sizes are multiplied by: 1/(L r), in some unit."""
        raise NotImplementedError

    @property
    def gradient_rank(self) -> int:
        """r, the rank that a gradient of one matrix can have; gradient descent's step sizes go with 1/L alone."""
        raise NotImplementedError

    def build(self, seed: int) -> Problem:
        """The problem drawn from a seed."""
        from polargrad.lab.matrix import problems

        return getattr(problems, self.drawn).draw(seed, **asdict(self))

    def set(self, settings: Mapping[str, str]) -> Self:
        """The same with some settings read from text.

        Raises:
            ValueError: a setting that there is not, or a value that cannot be read as what it should be.
        """
        types = {entry.name: str(entry.type) for entry in fields(self)}
        read: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in types:
                raise ValueError(f"{self.kind} has no setting {name!r}; it has {', '.join(types)}")
            reader, wanted = _READERS[types[name]]
            try:
                read[name] = reader(text)
            except ValueError:
                raise ValueError(f"{name} is {text!r}; give {wanted}") from None
        return replace(self, **read)


def check_observed(observed: float) -> None:
    """A probability in (0, 1].

    Raises:
        ValueError: otherwise.
    """
    if not 0.0 < observed <= 1.0:
        raise ValueError(f"observed is {observed!r}; give a probability in (0, 1]")


def check_rank(rank: int, rows: int, columns: int) -> None:
    """A rank that a matrix of this size can have.

    Raises:
        ValueError: otherwise.
    """
    if rank > min(rows, columns):
        raise ValueError(f"rank {rank} is above {min(rows, columns)}, the smaller dimension; give at most that")
