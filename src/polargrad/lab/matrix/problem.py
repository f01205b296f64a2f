"""A matrix problem, and its spec: the plain data from which the problem is drawn."""

from __future__ import annotations

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from polargrad.lab.matrix.configurations import Experiment
from polargrad.lab.options import check_integer, check_value, unknown_name
from polargrad.linalg.registry import Registry
from polargrad.outside import is_reference

Matrices = Mapping[str, Tensor]
Setting = int | float | str


class Problem(ABC):
    """Minimize f over one or several named matrices.

    A problem is one class in one file: its mathematics, the data that `draw` makes, its sizes, and the experiment that
    `polargrad run KIND` runs. `register` makes it known by its kind; a class outside of this package does the same.

    A problem keeps its tensors as attributes, all of one dtype, so that `to` can carry it to another. What is not known
    of a problem, such as its minimum, is None.

    Args:
        start: the initial point, name -> matrix, with the names in `matrices`.

    Attributes:
        kind: the name in specs and on the command line; the name of the class if it gives none.
        matrices: names of the matrices that are optimized.
        unit: of the work that `units_per_step` counts.
        metric: the key of the evaluated number that should fall, with its label and unit.
        small: settings of `draw` that make a problem which runs in a moment.
        experiment: what `polargrad run KIND` runs; None: the problem has no command.
        constrained: whether `project` has to follow each step.
    """

    kind: ClassVar[str]
    matrices: ClassVar[tuple[str, ...]] = ("X",)
    unit: ClassVar[str] = "iteration"
    metric: ClassVar[str] = "gap"
    metric_label: ClassVar[str] = "f − f*"
    metric_unit: ClassVar[str] = "float64"
    small: ClassVar[Mapping[str, Setting]] = MappingProxyType({})
    experiment: ClassVar[Experiment | None] = None
    constrained: ClassVar[bool] = False
    units_per_step: int = 1

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kind = vars(cls).get("kind", cls.__name__)

    def __init__(self, start: Matrices) -> None:
        if set(start) != set(self.matrices):
            raise ValueError(f"{self.kind} has the matrices {', '.join(self.matrices)}, got {', '.join(start)}")
        for key, value in start.items():
            check_matrix(key, value)
        self.start: Matrices = dict(start)

    @classmethod
    def draw(cls, seed: int) -> Self:
        """The problem with data drawn from a seed.

        The keyword arguments of a subclass are the problem's settings, and their defaults its full size.
        """
        raise ValueError(f"{cls.__name__} has no draw(seed, ...), so it cannot be made from a spec; give it one")

    @classmethod
    def spec(cls, **settings: Setting) -> ProblemSpec:
        """The plain data of this problem: its full size, but for the settings given."""
        return ProblemSpec(PROBLEMS.key_of(cls) or cls.kind, settings)

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int] | None:
        """L and r: the smoothness expected of drawn data, and the rank that a gradient of one matrix can have.

        Step sizes of the experiment go with 1/(L r), gradient descent's with 1/L. None keeps them at all sizes.

        Args:
            sizes: the settings of `draw`, as attributes.
        """
        return None

    @abstractmethod
    def value(self, point: Matrices) -> Tensor:
        """The value f at a point, on all data: a differentiable scalar."""

    def step_value(self, point: Matrices, step: int) -> Tensor:
        """The value that step `step`, counted from 0, differentiates: f, or its part on a batch by (seed, step)."""
        return self.value(point)

    def gradients(self, point: Matrices, step: int | None = None) -> dict[str, Tensor]:
        """The gradient of f by autograd, or of `step_value` if a step is given."""
        leaves = {key: value.detach().requires_grad_() for key, value in point.items()}
        with torch.enable_grad():
            f = self.value(leaves) if step is None else self.step_value(leaves, step)
        return dict(zip(leaves, torch.autograd.grad(f, list(leaves.values())), strict=True))

    def residual(self, point: Matrices) -> Tensor | None:
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

    def gap(self, point: Matrices) -> float:
        """The difference f - f* in float64, or f itself where f* is not known."""
        wide = {key: value.detach().double() for key, value in point.items()}
        with torch.no_grad():
            return float(self.float64.value(wide)) - (self.minimum or 0.0)

    def metrics(self, point: Matrices) -> dict[str, float]:
        """Other numbers of an evaluation, such as the error on held-out data."""
        return {}

    def newton_direction(self, name: str, G: Tensor, point: Matrices) -> Tensor:
        """The inverse of the named matrix's block of the Hessian, applied to its gradient G.

        Raises:
            ValueError: the Hessian of this problem has no structure to invert it by.
        """
        raise ValueError(f"no Newton direction is known for {self.kind}; use another optimizer")

    def multiplicative_direction(self, name: str, G: Tensor, point: Matrices) -> Tensor:
        """The named matrix's gradient G times X / P entry by entry, with P the nonnegative part of the gradient.

        Raises:
            ValueError: the gradient of this problem does not split into nonnegative parts.
        """
        raise ValueError(f"multiplicative updates are for projected nonnegative factorization, not {self.kind}")

    def project(self, parameters: Matrices) -> None:  # noqa: B027 - most problems are unconstrained
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


P = TypeVar("P", bound=type[Problem])
PROBLEMS: Registry[type[Problem]] = Registry(
    "matrix problem",
    wanted="a matrix problem (a subclass of polargrad.lab.matrix.Problem)",
    fits=lambda found: isinstance(found, type) and issubclass(found, Problem),
    group="polargrad.problems",
)


def register(problem: P) -> P:
    """Class decorator: make a problem known by its kind, to specs, run folders and `polargrad run KIND`.

    Raises:
        ValueError: another class has the kind.
        TypeError: a setting of `draw` whose default is not an integer, a number or a text.
    """
    for name, default in settings_of(problem).items():
        if isinstance(default, bool) or not isinstance(default, int | float | str):
            raise TypeError(
                f"the setting {name} of {problem.__qualname__}.draw has the default {default!r}; "
                "give an int, a float or a str, which is also the type of the setting"
            )
    return PROBLEMS.add(problem.kind, problem)


def settings_of(problem: type[Problem]) -> dict[str, Any]:
    """The settings of a problem with their defaults: the keyword arguments of its `draw`."""
    parameters = inspect.signature(problem.draw).parameters.values()
    return {entry.name: entry.default for entry in parameters if entry.kind is entry.KEYWORD_ONLY}


@dataclass(frozen=True)
class ProblemSpec:
    """A problem before its data is drawn: plain data, as run folders hold it.

    Args:
        kind: of the problem.
        settings: of its `draw`, by name; those left out have their defaults.

    Raises:
        ValueError: an unknown kind or setting, a value of another type than the setting's default, an integer below 1,
            a number that is not finite.

    Example:
        >>> from polargrad.lab.matrix import MatrixQuadratic
        >>> MatrixQuadratic.spec(m=20, n=4).to_dict()
        {'kind': 'quadratic', 'rows': 1000, 'm': 20, 'n': 4, 'columns': 250}
    """

    kind: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    metric: str = field(init=False, repr=False, compare=False)
    metric_label: str = field(init=False, repr=False, compare=False)
    metric_unit: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", PROBLEMS.key(self.kind))
        for name in ("metric", "metric_label", "metric_unit"):  # of the evaluated number that should fall
            object.__setattr__(self, name, getattr(self.problem, name))
        defaults = settings_of(self.problem)
        if unknown := [name for name in self.settings if name not in defaults]:
            raise unknown_name(f"setting of {self.kind}", unknown[0], defaults)
        for name, value in self.settings.items():
            check_value(name, value, type(defaults[name]))
        object.__setattr__(self, "settings", MappingProxyType({**defaults, **self.settings}))

    def __hash__(self) -> int:
        return hash((self.kind, *self.settings.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        if is_reference(self.kind):
            return (ProblemSpec, (self.kind, dict(self.settings)))
        return (_spec_of, (self.problem, dict(self.settings)))  # the class, so that unpickling imports its module

    @property
    def problem(self) -> type[Problem]:
        """The class of the problem."""
        return PROBLEMS[self.kind]

    @property
    def expected_curvature(self) -> tuple[float, int] | None:
        """L and r at these sizes, see `Problem.expected_curvature`."""
        return self.problem.expected_curvature(SimpleNamespace(**self.settings))

    def build(self, seed: int) -> Problem:
        """The problem drawn from a seed; the last one is kept, since the runs of an experiment share it."""
        return _draw(self, seed)

    def with_texts(self, texts: Mapping[str, str]) -> ProblemSpec:
        """The same spec with some settings read from text, as from a command line.

        Raises:
            ValueError: an unknown setting, or a text that cannot be read as the setting's type.
        """
        read: dict[str, Any] = {}
        for name, text in texts.items():
            try:
                read[name] = type(self.settings.get(name, ""))(text)
            except ValueError:
                read[name] = text  # which is refused as the setting's value
        return ProblemSpec(self.kind, {**self.settings, **read})

    def to_dict(self) -> dict[str, Setting]:
        """Plain data, ready for JSON."""
        return {"kind": self.kind, **self.settings}


def _spec_of(problem: type[Problem], settings: Mapping[str, Setting]) -> ProblemSpec:
    return problem.spec(**settings)


@lru_cache(maxsize=1)
def _draw(spec: ProblemSpec, seed: int) -> Problem:
    made = spec.problem.draw(seed, **spec.settings)
    if not isinstance(made, Problem):
        raise ValueError(f"{spec.kind}.draw must return the problem; got {type(made).__name__}")
    return made


def check_problem(problem: Problem) -> None:
    """See that a problem can be minimized: its value and gradient at the initial point, and its minimum.

    Raises:
        ValueError: the value is not a differentiable, finite scalar, or the minimum not a finite number or None.
    """
    leaves = {key: value.detach().requires_grad_() for key, value in problem.start.items()}
    f = problem.value(leaves)
    if not isinstance(f, Tensor) or f.ndim:
        got = f"shape {tuple(f.shape)}" if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"{problem.kind}.value must return a tensor without dimensions; got {got}")
    if not bool(torch.isfinite(f)):
        raise ValueError(f"{problem.kind}.value is {f.item()} at the initial point; give a point where it is finite")
    if not f.requires_grad:
        raise ValueError(f"{problem.kind}.value does not depend on the point by operations that autograd follows")
    lowest = problem.minimum
    if lowest is not None and not (isinstance(lowest, int | float) and math.isfinite(lowest)):
        raise ValueError(f"{problem.kind}.minimum must be a finite float, or None where it is not known; got {lowest}")


def check_matrix(name: str, value: Tensor) -> None:
    """Refuse anything but a real, finite matrix with entries.

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


def check_shapes(**matrices: tuple[Tensor, str]) -> None:
    """Refuse matrices that are not real and finite, or do not fit together: name=(matrix, its dimensions by name).

    Raises:
        TypeError: as `check_matrix`.
        ValueError: as `check_matrix`; or naming the matrix, its shape and the one wanted.

    Example:
        >>> check_shapes(A=(torch.ones(2, 3), "p m"), X=(torch.ones(4, 1), "m n"))
        Traceback (most recent call last):
        ...
        ValueError: X has shape (4, 1), which does not fit: 3 x any is needed
    """
    known: dict[str, int] = {}
    for name, (value, dimensions) in matrices.items():
        check_matrix(name, value)
        wanted = [known.get(dimension) for dimension in dimensions.split()]
        if any(size not in (None, given) for size, given in zip(wanted, value.shape, strict=True)):
            needed = " x ".join("any" if size is None else str(size) for size in wanted)
            raise ValueError(f"{name} has shape {tuple(value.shape)}, which does not fit: {needed} is needed")
        known.update(zip(dimensions.split(), value.shape, strict=True))


def check_sizes(**sizes: int) -> None:
    """Refuse anything but integers of at least 1.

    Raises:
        ValueError: naming the size.
    """
    for name, size in sizes.items():
        check_integer(name, size)


def check_rank(rank: int, *dimensions: int) -> None:
    """Refuse a rank that no matrix of these dimensions has.

    Raises:
        ValueError: below 1, or above the smallest dimension.
    """
    check_sizes(rank=rank)
    if rank > min(dimensions):
        raise ValueError(f"rank {rank} is above {min(dimensions)}, the smaller dimension; give a rank of at most that")


def generator(seed: int) -> torch.Generator:
    """A CPU generator that draws what `torch.manual_seed(seed)` would.

    Raises:
        ValueError: a seed that is not an integer of at least 0.
    """
    check_integer("seed", seed, 0)
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, draw: torch.Generator) -> Tensor:
    """A matrix with entries uniform on (-1, 1)."""
    return torch.empty(*shape).uniform_(-1.0, 1.0, generator=draw)


def normal_matrices(seed: int, *, rows: int, m: int, n: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (rows, m), B (n, columns), C (rows, columns) standard normal, and X (m, n) uniform on (-1, 1).

    The numbers are those of `torch.manual_seed(seed)` before A, B, C and once more before X.
    """
    check_sizes(rows=rows, m=m, n=n, columns=columns)
    data = generator(seed)
    A, B, C = (torch.randn(*shape, generator=data) for shape in ((rows, m), (n, columns), (rows, columns)))
    return A, B, C, uniform(m, n, draw=generator(seed))


def normal_curvature(rows: int, sizes: Any) -> tuple[float, int]:
    """L = sigma_max(A)^2 sigma_max(B)^2 expected of normal A (rows, m), B (n, columns), and r = min(m, n).

    sigma_max of a normal matrix (p, m) is about sqrt(p) + sqrt(m).
    """
    spectral = (math.sqrt(rows) + math.sqrt(sizes.m)) * (math.sqrt(sizes.n) + math.sqrt(sizes.columns))
    return spectral**2, min(sizes.m, sizes.n)


def normal_smoothness(columns: int, rows: int) -> float:
    """The largest eigenvalue of A^T A / rows expected of a normal A (rows, columns), by Marchenko and Pastur."""
    return (1.0 + math.sqrt(columns / rows)) ** 2
