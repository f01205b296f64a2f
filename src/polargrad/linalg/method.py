"""The small base that every polar algorithm implements, and the table from names to algorithms."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.precision import HALF, at_least_single
from polargrad.linalg.registry import Registry
from polargrad.linalg.scaling import attenuation

__all__ = [
    "METHODS",
    "Accuracy",
    "IterationResult",
    "PolarMethod",
    "available_methods",
    "check_accuracy",
    "check_count",
    "check_lower_bound",
    "register",
    "required_tolerance",
    "resolve_method",
]

# How near 1 the singular values of U must be: a bound on max_i |sigma_i(U) - 1|, or "full" for rounding error.
Accuracy = float | Literal["full"]


class IterationResult(NamedTuple):
    """What an algorithm hands back for a canonical batch.

    Attributes:
        unitary: (k, m, n), the computed unitary factors.
        steps: how many iterations were run (the same for the whole batch).
        breakdown: bool (k,), True where the algorithm could not go on, or None where that cannot happen.
        method: the algorithm that ran, where another one chose it (`Auto`); else None.
    """

    unitary: Tensor
    steps: int
    breakdown: Tensor | None = None
    method: PolarMethod | None = None


def checked(method: PolarMethod, X: Tensor, result: IterationResult) -> IterationResult:
    """What `method.iterate(X)` returned, if it can be that.

    Raises:
        ValueError: it is of another type, or its factors are not of X's shape.
    """
    if not isinstance(result, IterationResult):
        raise ValueError(f"{method.name}.iterate must return an IterationResult; got {type(result).__name__}")
    if not isinstance(result.unitary, Tensor) or result.unitary.shape != X.shape:
        shape = tuple(getattr(result.unitary, "shape", ()))
        raise ValueError(f"{method.name}.iterate must return factors of X's shape {tuple(X.shape)}; got {shape}")
    return result


@dataclasses.dataclass(frozen=True)
class PolarMethod(ABC):
    """An algorithm for the unitary polar factor of a *canonical* batch.

    A canonical batch X has shape (k, m, n) with m >= n >= 1, k >= 1, real or complex, in `working_dtype`. Every entry
    is finite; the largest of each matrix is between 2^-24 and 2^24 (near 1 in half precision), or the matrix is zero.
    Its rows or its columns are contiguous (a wide A arrives as a transposed view), and it may be A itself: never write
    into X. Subclasses are frozen dataclasses that hold nothing but their own options, check them when made, and
    implement `iterate`. Everything else (validation, transposing, scaling, Hermitian factor, status, gradient) is in
    `decomposition.py` and `derivative.py`, once.

    An algorithm declares its accuracy class by `sigma_floor` and `bounds`: singular values of A at or above
    `sigma_floor` * ||A||_F end in `bounds`, those below end between 0 and the upper bound, up to `rounding`. By
    `peak_memory` it declares the most memory that `polar_factor` holds at once, the factor included, in sizes of A in
    its `working_dtype`, and by `operations` its arithmetic; whoever stacks matrices or plans a run goes by them.
    """

    name: ClassVar[str]  # the name of the class where a subclass gives none
    # Whether NaN and infinity make all of their own matrix's factor NaN, leave the others of the batch alone and raise
    # nothing, as in a sequence of products: then nobody has to replace them beforehand.
    confines_nonfinite: ClassVar[bool] = False
    peak_memory: ClassVar[float] = 36.0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = vars(cls).get("name", cls.__name__)

    @abstractmethod
    def iterate(self, X: Tensor) -> IterationResult:
        """Return the unitary factors of the canonical batch X (k, m, n); X is not modified."""

    def iterate_above(self, X: Tensor, floor: float | Tensor) -> IterationResult:
        """`iterate`, whose factors go to zero with matrices below `floor`: min(1, ||X||_F / floor) U.

        A method that divides X by its Frobenius norm divides by max(||X||_F, floor) instead. The floor is a number or
        (k, 1, 1).
        """
        result = checked(self, X, self.iterate(X))
        return result._replace(unitary=result.unitary * attenuation(X, floor).to(X.dtype))

    def on(self, device: torch.device) -> PolarMethod:
        """The same algorithm with all decided that depends on the device; here nothing does."""
        return self

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype `iterate` wants for input of `dtype`: float32 for half precision, else the input's own."""
        return at_least_single(dtype)

    def sigma_floor(self, dtype: torch.dtype) -> float:
        """The smallest sigma / ||A||_F at which `bounds` are promised for work in `dtype`; n eps if that is more."""
        return 4.0 * torch.finfo(dtype).eps

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """(low, high): where the singular values from `sigma_floor` on end in a finished run, before rounding."""
        return 1.0, 1.0

    def rounding(self, dtype: torch.dtype, n: int) -> float:
        """The part of |sigma_i(U) - 1| that rounding in `dtype` adds for n columns."""
        return 4.0 * torch.finfo(dtype).eps * n

    def tolerance(self, dtype: torch.dtype, n: int) -> float:
        """The accuracy class: the bound on |sigma_i(U) - 1| at which a run on n columns in `dtype` has converged."""
        return self.deviation(dtype) + self.rounding(dtype, n)

    def deviation(self, dtype: torch.dtype) -> float:
        """The distance of `bounds` from 1."""
        low, high = self.bounds(dtype)
        return max(1.0 - low, high - 1.0)

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Floating-point operations of a finished run on one matrix (m, n), m >= n, given in `dtype`.

        Here those of a singular value decomposition, for an algorithm that declares none. Where the number of steps
        depends on the matrix, it is the count that the class promises, or a typical one, as the algorithm says.
        """
        return operations.svd(m, n) + operations.product(m, n)

    def with_accuracy(self, accuracy: Accuracy, dtype: torch.dtype) -> PolarMethod:
        """The same algorithm held to `accuracy` for input of `dtype`; never a less accurate one.

        Here: itself, if its class is at least as good. An algorithm that can choose its steps overrides this.

        Raises:
            ValueError: the algorithm cannot be held to it.
        """
        work = self.working_dtype(dtype)
        reached = self.deviation(work) + self.rounding(work, 1)
        if reached <= required_tolerance(accuracy, dtype):
            return self
        raise ValueError(
            f"method {self.name!r} promises singular values within {reached:.1e} of 1 for {dtype} input, which is "
            f"coarser than accuracy={accuracy!r}; use method='auto', or leave accuracy (or max_steps) out"
        )

    def with_max_steps(self, max_steps: int) -> Self:
        """The same algorithm limited to `max_steps` iterations."""
        if all(field.name != "max_steps" for field in dataclasses.fields(self)):
            raise ValueError(
                f"method {self.name!r} has no steps to limit, got max_steps={max_steps}; leave max_steps out, or use "
                "an iterative method such as 'qdwh'"
            )
        return dataclasses.replace(self, max_steps=max_steps)  # pyright: ignore[reportCallIssue]


def required_tolerance(accuracy: Accuracy, dtype: torch.dtype) -> float:
    """The bound on |sigma_i(U) - 1| of a single column that `accuracy` asks of input of `dtype`.

    Full accuracy of half precision is that of its entries: what work in single precision leaves must not be seen.
    """
    if accuracy != "full":
        return float(accuracy)
    return torch.finfo(dtype).eps * (0.25 if dtype in HALF else 16.0)


def check_accuracy(accuracy: object) -> None:
    """Raise ValueError unless `accuracy` is "full" or a number in (0, 1)."""
    if accuracy == "full":
        return
    if isinstance(accuracy, bool) or not isinstance(accuracy, int | float) or not 0.0 < accuracy < 1.0:
        raise ValueError(f'accuracy must be a number in (0, 1), "full" or None, got {accuracy!r}')


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Raise ValueError unless the option `name` is None or an integer of at least 1, and at most `most`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        allowed = "a positive integer" if most is None else f"an integer from 1 to {most}"
        raise ValueError(f"{name} must be {allowed} or None, got {value!r}")


def check_lower_bound(value: object, least: float = 0.0) -> None:
    """Raise ValueError unless the option `lower_bound` is a number in (0, 1), and at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not max(least, 5e-324) <= value < 1.0:
        raise ValueError(f"lower_bound must lie in {f'[{least:g}' if least else '(0'}, 1), got {value!r}")


M = TypeVar("M", bound=PolarMethod)

METHODS: Registry[type[PolarMethod]] = Registry(
    "polar method",
    wanted="a polar method (a subclass of polargrad.PolarMethod)",
    fits=lambda found: isinstance(found, type) and issubclass(found, PolarMethod),
    group="polargrad.methods",
)


def register(cls: type[M]) -> type[M]:
    """Class decorator: make an algorithm available under its `name`, unless another one has it (ValueError)."""
    METHODS.add(cls.name, cls)
    return cls


def available_methods() -> tuple[str, ...]:
    """The names that `polar` accepts.

    Example:
        >>> "qdwh" in available_methods()
        True
    """
    return tuple(sorted(METHODS))


def resolve_method(
    method: str | PolarMethod,
    max_steps: int | None = None,
    accuracy: Accuracy | None = None,
    dtype: torch.dtype = torch.float32,
) -> PolarMethod:
    """Turn a name into an algorithm at the edge of the library; a `PolarMethod` passes through.

    Args:
        method: a name, code from outside (FILE.py:CLASS, package.module:CLASS, an entry point), or a `PolarMethod`.
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
        method = METHODS[METHODS.key(method)]()
    if not isinstance(method, PolarMethod):
        raise TypeError(f"method must be a name or a PolarMethod, got {type(method).__name__}")
    if max_steps is not None and accuracy is not None:
        raise ValueError(
            f"give accuracy or max_steps, not both (got accuracy={accuracy!r}, max_steps={max_steps!r}): the number of "
            "steps follows from the accuracy"
        )
    if accuracy is not None:
        check_accuracy(accuracy)
        eps = torch.finfo(dtype).eps
        if accuracy != "full" and accuracy < eps:
            raise ValueError(
                f"accuracy={accuracy!r} is below the unit roundoff {eps:.1e} of {dtype} input; ask for 'full', or "
                "convert A to a wider dtype"
            )
        return method.with_accuracy(accuracy, dtype)
    if max_steps is None:
        return method
    check_count("max_steps", max_steps)
    return method.with_max_steps(max_steps)
