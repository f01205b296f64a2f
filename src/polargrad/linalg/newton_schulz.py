"""Newton-Schulz: odd matrix polynomials, nothing but matrix products."""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg import operations
from polargrad.linalg.arithmetic import arithmetic
from polargrad.linalg.coefficients import (
    CUBIC,
    MUON_QUINTIC,
    QUINTIC,
    Coefficients,
    check_coefficients,
    map_interval,
    min_converging_sigma,
)
from polargrad.linalg.compilation import compile_constant
from polargrad.linalg.kernels import by_blocks, gram, hermitian_product
from polargrad.linalg.kernels.symmetric import SMALLEST_BLOCKED
from polargrad.linalg.method import IterationResult, PolarMethod, check_count, register
from polargrad.linalg.minimax import CUSHION, composition, with_safety
from polargrad.linalg.precision import HALF

__all__ = ["NewtonSchulz", "PolynomialMethod", "iterate_polynomials", "normalize_frobenius"]

# The accuracy class of a schedule is its largest |p(x) - 1| from here to 1: most singular values of a random matrix
# lie above a tenth of the largest one.
_CLASS_FROM = 0.1


def normalize_frobenius(X: Tensor, floor: float | Tensor | None = None) -> Tensor:
    """X / max(||X||_F, floor) for each matrix of the batch, singular values then in [0, 1]; zero stays zero."""
    norm = torch.linalg.matrix_norm(X, keepdim=True)
    least = min(torch.finfo(norm.dtype).tiny, 2.0**-24)  # float16 has smaller numbers than its smallest normal one
    if isinstance(floor, Tensor):
        norm = norm.clamp_min(floor.to(norm.dtype))
    elif floor is not None:
        least = min(max(floor, least), torch.finfo(norm.dtype).max)
    return X / norm.clamp_min(least)


def iterate_polynomials(X: Tensor, schedule: tuple[Coefficients, ...]) -> Tensor:
    """Apply p_k(X) = a_k X + X (b_k G + c_k G^2) with G = X^H X, for each row of the schedule.

    X is (k, m, n) with m >= n, singular values at most 1. Tall input keeps G small (n x n). A square matrix, and the
    transpose of a wide one, are multiplied from the left, as torch.optim.Muon does, so that half-precision results
    agree with it bit for bit and nothing is copied.
    """
    square = X.shape[-2] == X.shape[-1]
    turned = not square and not X.is_contiguous() and X.mT.is_contiguous()
    X, left = X.mT if turned else X, square or turned
    single, symmetric = X.shape[0] == 1, min(X.shape[-2:]) >= SMALLEST_BLOCKED and by_blocks(X.mT if left else X)
    # A single matrix takes the 2-D routines, which are faster than a batch of one.
    add_product, X = (torch.addmm, X[0]) if single else (torch.baddbmm, X)
    for a, b, c in schedule:
        if symmetric:
            batch = X[None] if single else X
            G = gram(batch.mH if left else batch)
            P = hermitian_product(G, G, G, beta=b, alpha=c) if c else b * G
            P = P[0] if single else P
        else:
            G = X @ X.mH if left else X.mH @ X
            P = add_product(G, G, G, beta=b, alpha=c) if c else b * G
        X = add_product(X, P, X, beta=a) if left else add_product(X, X, P, beta=a)
    X = X[None] if single else X
    return X.mT if turned else X


@compile_constant
def accuracy_class(schedule: tuple[Coefficients, ...], least: float) -> tuple[float, tuple[float, float]]:
    """(floor, bounds): p maps [floor, 1] into bounds, as near 1 as p maps [0.1, 1] or as `least`."""
    low, high = map_interval(schedule, _CLASS_FROM)
    floor = min_converging_sigma(schedule, max(1.0 - low, high - 1.0, least))
    return floor, map_interval(schedule, floor)


@functools.lru_cache
def _with_dtype(method: PolynomialMethod, dtype: str | None) -> PolynomialMethod:
    """The method in that dtype; made once, since every call of a default asks for it."""
    return replace(method, dtype=dtype)  # pyright: ignore[reportCallIssue]


class PolynomialMethod(PolarMethod):
    """A method with a fixed schedule of odd polynomials: only products, no host synchronization."""

    confines_nonfinite: ClassVar[bool] = True
    peak_memory: ClassVar[float] = 6.0
    dtype: str | None

    def __str__(self) -> str:
        """Its representation, with the number of rows of coefficients in place of several."""
        options = {one.name: repr(getattr(self, one.name)) for one in fields(self)}  # pyright: ignore[reportArgumentType]
        if len(rows := getattr(self, "coefficients", ())) > 1:
            options["coefficients"] = f"<{len(rows)} rows>"
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"

    @abstractmethod
    def schedule(self, dtype: torch.dtype) -> tuple[Coefficients, ...]:
        """The row (a, b, c) of each step for work in `dtype`."""

    def _check_steps_and_dtype(self, steps: int | None) -> None:
        check_count("max_steps", steps)
        if self.dtype not in (None, "fast", "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'fast', 'bfloat16', 'float16' or None, got {self.dtype!r}")

    def on(self, device: torch.device) -> PolynomialMethod:
        if self.dtype != "fast":
            return self
        half = arithmetic(device).half
        # A trace cannot look a method up, and makes it once anyway.
        return replace(self, dtype=half) if torch.compiler.is_compiling() else _with_dtype(self, half)  # pyright: ignore[reportCallIssue]

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if self.dtype is None or dtype.is_complex:
            return torch.float32 if dtype in HALF else dtype
        return getattr(torch, "bfloat16" if self.dtype == "fast" else self.dtype)

    def sigma_floor(self, dtype: torch.dtype) -> float:
        return accuracy_class(self.schedule(dtype), torch.finfo(dtype).eps)[0]

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        return accuracy_class(self.schedule(dtype), torch.finfo(dtype).eps)[1]

    def rounding(self, dtype: torch.dtype, n: int) -> float:
        # Products of half-precision matrices accumulate in float32: what remains is the rounding of the entries,
        # whose norm does not grow with n.
        return 16.0 * torch.finfo(dtype).eps if dtype in HALF else super().rounding(dtype, n)

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Two products with X, and one of n x n matrices, for every quintic step."""
        return sum(operations.polynomial(m, n, c != 0) for _, _, c in self.schedule(self.working_dtype(dtype)))

    def iterate(self, X: Tensor) -> IterationResult:
        return self.apply_schedule(normalize_frobenius(X))

    def iterate_above(self, X: Tensor, floor: float | Tensor) -> IterationResult:
        """The polynomials of X / max(||X||_F, floor), as torch.optim.Muon with its `eps`."""
        return self.apply_schedule(normalize_frobenius(X, floor))

    def apply_schedule(self, X: Tensor) -> IterationResult:
        """The polynomials of X, whose singular values lie in [0, 1]."""
        rows = self.schedule(X.dtype)
        return IterationResult(iterate_polynomials(X, rows), steps=len(rows))


@register
@dataclass(frozen=True)
class NewtonSchulz(PolynomialMethod):
    """Fixed-step polynomial iteration X <- a X + b X (X^H X) + c X (X^H X)^2 from X / ||X||_F.

    The default is Muon's: 5 quintic steps, which leave the singular values in about [0.68, 1.14] (its `tolerance`), in
    bfloat16 where the device multiplies that fast and else in float32. `dtype="bfloat16"` is torch.optim.Muon's
    everywhere. Other schedules: `cubic`, `quintic`, `cans`, `polar_express`.

    Args:
        coefficients: rows (a, b, c), one per step; the last row repeats.
        max_steps: number of steps.
        dtype: "fast" (bfloat16 on GPUs and on CPUs with native bfloat16 products, else float32), "bfloat16",
            "float16", or None for the working dtype of the input. Complex input always works in its own dtype.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> import torch
        >>> U = NewtonSchulz.quintic(12).iterate(torch.diag(torch.tensor([2.0, -3.0]))[None]).unitary
        >>> U[0].round(decimals=3).tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: Jordan et al., Muon (2024); Higham, Functions of Matrices (2008), section 8.3.
    """

    name: ClassVar[str] = "newton-schulz"
    peak_memory: ClassVar[float] = 6.0
    coefficients: tuple[Coefficients, ...] = MUON_QUINTIC
    max_steps: int = 5
    dtype: str | None = "fast"

    def __post_init__(self) -> None:
        self._check_steps_and_dtype(self.max_steps)
        check_coefficients(self.coefficients)

    @classmethod
    def muon(cls, max_steps: int = 5) -> NewtonSchulz:
        """Muon's quintic (3.4445, -4.7750, 2.0315) in bfloat16 on every device, as torch.optim.Muon has it."""
        return cls(MUON_QUINTIC, max_steps, "bfloat16")

    @classmethod
    def cubic(cls, max_steps: int = 30, dtype: str | None = None) -> NewtonSchulz:
        """The cubic (1.5, -0.5): slow from small singular values, quadratic near 1."""
        return cls(CUBIC, max_steps, dtype)

    @classmethod
    def quintic(cls, max_steps: int = 20, dtype: str | None = None) -> NewtonSchulz:
        """The classical quintic (1.875, -1.25, 0.375): slow from small singular values, cubic near 1."""
        return cls(QUINTIC, max_steps, dtype)

    @classmethod
    def cans(
        cls, lower_bound: float = 1e-3, max_steps: int = 8, *, degree: int = 5, dtype: str | None = None
    ) -> NewtonSchulz:
        """The best composition of polynomials of `degree` 3 or 5 for singular values in [lower_bound, 1].

        Neither cushion nor safety: for float32 and float64. Source: Grishina, Smirnov, Rakhuba, CANS (arXiv
        2506.10935), algorithm 1.
        """
        return cls(composition(lower_bound, max_steps, degree=degree, cushion=0.0), max_steps, dtype)

    @classmethod
    def polar_express(
        cls, lower_bound: float = 1e-3, max_steps: int = 5, *, safety: float = 1.01, dtype: str | None = "bfloat16"
    ) -> NewtonSchulz:
        """The Polar Express schedule, in bfloat16 unless told otherwise; as a method of its own: `PolarExpress`."""
        rows = composition(lower_bound, max_steps, cushion=CUSHION)
        return cls(with_safety(rows, safety), max_steps, dtype)

    def schedule(self, dtype: torch.dtype) -> tuple[Coefficients, ...]:
        rows = self.coefficients[: self.max_steps]
        return rows + rows[-1:] * (self.max_steps - len(rows))
