"""Auto: choose the algorithm from shape, dtype, device and asked accuracy, and say why."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.arithmetic import arithmetic
from polargrad.linalg.compilation import compile_constant
from polargrad.linalg.decomposition import on_host
from polargrad.linalg.double_gram import DoubleGram
from polargrad.linalg.gram_newton_schulz import GramNewtonSchulz
from polargrad.linalg.gram_polynomials import GramPolynomials
from polargrad.linalg.method import Accuracy, IterationResult, PolarMethod, check_accuracy, register
from polargrad.linalg.polar_express import PolarExpress
from polargrad.linalg.qdwh import QDWH
from polargrad.linalg.svd import SVD
from polargrad.linalg.tall import TALL, has_long_columns

__all__ = ["Auto", "Choice"]

# Up to so many columns one SVD of LAPACK costs less than the calls of other methods (benchmarks/small.py): of a single
# matrix, of one that is not tall, and, as far as these outweigh it, of a few small ones.
_SMALL_ALONE, _SMALL_SQUARE = 192, 256
_EIGENVALUES, _FEW = 48, 8
# From this ratio of rows to columns on, full accuracy costs less on a GPU than float32 polynomials (benchmarks/gpu.py).
_TALL_ON_DEVICE = 2
# ... but not of a matrix with so many rows per column and so many entries, in single precision: its Gram matrix takes
# two thirds of the SVD's time up to a condition of about 10 and a third beyond 4e4, where the SVD is repeated in double
# precision, and up to a tenth more in between.
_TALL, _MANY = 10, 2**18
# What float32 polynomials can still lift, where there is no fast double precision.
_SINGLE_FLOOR = 1e-6
# Polynomials are asked to reach accuracy a for singular values from min(this, a) * ||A||_F on, ...
_FLOOR = 1e-3
# In single precision that safety is ample.
_SAFETY = 1.001
# ... and not at all below this accuracy.
_FINEST_POLYNOMIAL = 1e-5
# Rounding to bfloat16 moves a singular value by at most .004 ||A||_F: promised are those that stay above _FLOOR.
_FLOOR_HALF = 5e-3
# From this ratio of rows to columns on they are iterated on the Gram matrix, which in single precision moved a singular
# value at that floor by at most 1.7e-3, in a search for bad cases: twice that is left for it.
_GRAM_FORM, _OF_GRAM_FORM = 1.5, 4e-3
# An operation of DoubleGram, in double precision or LAPACK's, takes about so many times one of a real product on a CPU,
# of which matrices of few columns have too few to pay for the calls.
_SLOWER, _FEW_COLUMNS = 2.0, 64


@compile_constant
def _steps(accuracy: float, lower: float, work: torch.dtype, dtype: str | None = None) -> int:
    """The fewest steps of Polar Express that reach an accuracy from a lower bound on."""
    safety = _SAFETY if dtype is None else PolarExpress.safety
    return PolarExpress(lower_bound=lower, safety=safety, dtype=dtype).with_accuracy(accuracy, work).max_steps


@dataclass(frozen=True)
class Choice:
    """The algorithm that `Auto` takes, with its options, and the reason in a sentence."""

    method: PolarMethod
    reason: str

    def __str__(self) -> str:
        return f"{self.method}: {self.reason}"


@register
@dataclass(frozen=True)
class Auto(PolarMethod):
    """The cheapest algorithm that reaches the asked accuracy for this shape, dtype and device.

    Full accuracy is the partial isometry at any condition number and rank: singular values above 4 eps sigma_max (in
    double precision n / 4 eps) go to 1, those at the level of rounding to 0 (on a GPU and under torch.compile, where
    nothing may depend on the data: to somewhere in [0, 1]). A number a asks that the singular values of A at or above
    `sigma_floor` * ||A||_F (1e-3, or 5e-3 where bfloat16 will do) end within a of 1, and allows polynomial methods,
    which need only products. The choice depends on nothing else, least of all on the values in A, so that it can be
    asked beforehand: see `explain`.

    Args:
        accuracy: "full", or a number in (0, 1).

    Raises:
        ValueError: accuracy out of its range.

    Example:
        >>> print(Auto().explain((3, 2)))
        SVD(cutoff=None): few columns, where one LAPACK call is the cheapest
        >>> Auto(accuracy=0.1).explain((768, 768), device="cuda").method.name
        'polar-express'
    """

    name: ClassVar[str] = "auto"
    peak_memory: ClassVar[float] = 26.0
    accuracy: Accuracy = "full"

    def __post_init__(self) -> None:
        check_accuracy(self.accuracy)

    def explain(
        self,
        A: Tensor | Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Choice:
        """The algorithm that would run for the matrix (or batch) A, or for a shape, and why.

        Args:
            A: a tensor, or a shape (*batch, m, n).
            dtype: of the input; None is that of the tensor A, or float32 for a shape.
            device: likewise; None is that of the tensor A, or the CPU.

        Returns:
            Choice(method, reason), printable.

        Raises:
            ValueError: a shape of fewer than two dimensions.
        """
        shape = A.shape if isinstance(A, Tensor) else tuple(A)
        if len(shape) < 2:
            raise ValueError(f"A must be a matrix (*batch, m, n) or such a shape, got {tuple(shape)}")
        if isinstance(A, Tensor):
            dtype, device = dtype or A.dtype, device or A.device
        return self._choose(shape, self.working_dtype(dtype or torch.float32), torch.device(device or "cpu"))

    def _choose(self, shape: Sequence[int], work: torch.dtype, device: torch.device) -> Choice:
        polynomials = self._polynomials(shape, work, device)
        if polynomials is not None:
            return Choice(polynomials, f"products alone bring singular values within {self.accuracy:g} of 1")
        single = work in (torch.float32, torch.complex64)
        if single and (device.type != "cpu" or torch.compiler.is_compiling()):
            return self._fixed_sequence(work, device)
        if device.type != "cpu":
            return Choice(QDWH(), "double precision, where Halley steps by QR cost less than an SVD off the CPU")
        m, n = max(shape[-2:]), min(shape[-2:])
        if has_long_columns((m, n), work, device):  # of which methods see the triangular factor
            m = n
        by_gram = single and m >= _TALL * n and m * n >= _MANY
        count, square = math.prod(shape[:-2]), m < TALL * n
        alone = count == 1 and n <= _SMALL_ALONE
        few = count * n < _FEW * _EIGENVALUES and n <= _EIGENVALUES
        if not by_gram and (alone or few or (square and (count == 1 or n > _EIGENVALUES) and n <= _SMALL_SQUARE)):
            return Choice(SVD(), "few columns, where one LAPACK call is the cheapest")
        if single:
            reason = "single precision, whose Gram matrix in double precision is exact enough"
            return Choice(DoubleGram(), reason + self._why_full())
        return Choice(SVD(), "double precision, with no wider arithmetic to lean on")

    def _fixed_sequence(self, work: torch.dtype, device: torch.device) -> Choice:
        """Full accuracy in single precision by products alone, which a device queues and a graph records."""
        if arithmetic(device).double:
            reason = "products in double precision, which this device multiplies fast: a fixed sequence of operations"
            return Choice(GramPolynomials(), reason + self._why_full())
        reason = "products in single precision, since this device multiplies double precision slowly"
        method = PolarExpress(lower_bound=_SINGLE_FLOOR, safety=_SAFETY).with_accuracy("full", work)
        return Choice(method, f"{reason}; singular values from {_SINGLE_FLOOR:g} ||A||_F on{self._why_full()}")

    def _why_full(self) -> str:
        if self.accuracy == "full":
            return ""
        return f"; full accuracy, since polynomials within {self.accuracy:g} cost more or cannot be promised"

    def _polynomials(self, shape: Sequence[int], work: torch.dtype, device: torch.device) -> PolarMethod | None:
        """Polar Express with the fewest steps for the accuracy, or None where it costs more or cannot promise it."""
        if self.accuracy == "full" or self.accuracy < _FINEST_POLYNOMIAL:
            return None
        lower, half = min(_FLOOR, self.accuracy), self._steps_in_half(work)
        if half is not None and arithmetic(device).half:
            # Not in the Gram form: in half precision that fails for matrices near singular.
            return PolarExpress(half, lower, dtype="bfloat16")
        m, n = max(shape[-2:]), min(shape[-2:])
        single = work in (torch.float32, torch.complex64)
        # GramPolynomials forms no more than four products with the rows of a tall matrix.
        if single and device.type != "cpu" and m >= _TALL_ON_DEVICE * n and arithmetic(device).double:
            return None
        method = PolarExpress(_steps(self.accuracy, lower, work), lower, safety=_SAFETY)
        if not single or device.type != "cpu":
            return method
        if has_long_columns((m, n), work, device):
            m = n
        if m >= _GRAM_FORM * n and self.accuracy >= 2 * _OF_GRAM_FORM:
            steps = _steps(self.accuracy - _OF_GRAM_FORM, lower, work)
            method = GramNewtonSchulz.polar_express(lower, steps, safety=_SAFETY)
        exact = _SLOWER * DoubleGram().operations(m, n, work)
        few = n <= _FEW_COLUMNS or work.is_complex
        return None if few or method.operations(m, n, work) > exact else method

    def _steps_in_half(self, work: torch.dtype) -> int | None:
        """Steps of Polar Express in bfloat16, or None where its rounding alone is coarser than the accuracy."""
        if work.is_complex or self.accuracy == "full":
            return None
        with contextlib.suppress(ValueError):
            return _steps(self.accuracy, min(_FLOOR, self.accuracy), work, "bfloat16")
        return None

    def with_accuracy(self, accuracy: Accuracy, dtype: torch.dtype) -> Auto:
        return replace(self, accuracy=accuracy)

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        deviation = 0.0 if self.accuracy == "full" else float(self.accuracy)
        return 1.0 - deviation, 1.0 + deviation

    def tolerance(self, dtype: torch.dtype, n: int) -> float:
        full = super().tolerance(dtype, n)
        return full if self.accuracy == "full" else max(full, float(self.accuracy))

    def sigma_floor(self, dtype: torch.dtype) -> float:
        full = super().sigma_floor(dtype)
        if self.accuracy == "full" or self.accuracy < _FINEST_POLYNOMIAL:
            return full
        return max(full, min(_FLOOR, self.accuracy) if self._steps_in_half(dtype) is None else _FLOOR_HALF)

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """Operations of the algorithm that it would take on a CPU."""
        return self.explain((m, n), dtype).method.operations(m, n, self.working_dtype(dtype))

    def iterate(self, X: Tensor) -> IterationResult:
        method = self._choose(X.shape, X.dtype, X.device).method
        if isinstance(method, DoubleGram) and not on_host(X):  # a tensor without numbers
            method = self._fixed_sequence(X.dtype, X.device).method
        work = method.working_dtype(X.dtype)
        if work == X.dtype:
            return method.iterate(X)._replace(method=method)
        result = method.iterate(X.to(work))
        return result._replace(unitary=result.unitary.to(X.dtype), method=method)
