"""Auto: choose the algorithm from shape, dtype, device and asked accuracy, and say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.double_gram import DoubleGram
from polargrad.linalg.method import Accuracy, Iterate, PolarMethod, register
from polargrad.linalg.polar_express import PolarExpress
from polargrad.linalg.svd import SVD

__all__ = ["Auto", "Choice"]

# Up to this many columns the calls of the other methods cost more than the SVD of LAPACK.
_SMALL = 24


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

    Full accuracy is the partial isometry at any condition number and rank: singular values above 4 eps sigma_max go
    to 1, the others to 0. A number a asks that the singular values of U at or above `floor` * ||A||_F lie within a of
    1, and allows polynomial methods, which need only products. The choice depends on nothing else, least of all on
    the values in A, so that it can be asked beforehand: see `explain`.

    Args:
        accuracy: "full", or a number in (0, 1).

    Raises:
        ValueError: accuracy out of its range.

    Example:
        >>> import torch
        >>> print(Auto().explain((3, 2)))
        SVD(cutoff=None): few columns, where one LAPACK call is the cheapest
        >>> Auto(accuracy=0.1).explain((3072, 768), torch.bfloat16).method.max_steps
        6
    """

    name: ClassVar[str] = "auto"
    accuracy: Accuracy = "full"

    def __post_init__(self) -> None:
        if self.accuracy == "full":
            return
        if isinstance(self.accuracy, bool | str) or not 0.0 < self.accuracy < 1.0:
            raise ValueError(f'accuracy must be "full" or a number in (0, 1), got {self.accuracy!r}')

    def explain(
        self,
        A: Tensor | Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Choice:
        """What would run for the matrix (or batch) A, or for a shape, and why.

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
        m, n = max(shape[-2:]), min(shape[-2:])
        return self._choose(m, n, self.working_dtype(dtype or torch.float32), torch.device(device or "cpu"))

    def _choose(self, m: int, n: int, work: torch.dtype, device: torch.device) -> Choice:
        if self.accuracy != "full":
            method = self._polynomials(work)
            if method is not None:
                return Choice(method, f"products alone bring singular values within {self.accuracy:g} of 1")
        if n <= _SMALL:
            return Choice(SVD(), "few columns, where one LAPACK call is the cheapest")
        if work in (torch.float32, torch.complex64):
            where = "" if device.type == "cpu" else ", a fixed sequence of operations off the CPU"
            return Choice(
                DoubleGram(), f"single precision: a Gram matrix in double precision has digits to spare{where}"
            )
        return Choice(SVD(), "double precision, with no wider arithmetic to lean on")

    def _polynomials(self, work: torch.dtype) -> PolarMethod | None:
        """Polar Express with the fewest steps for the accuracy, or None where rounding stands in the way."""
        try:
            return PolarExpress(safety=1.001).with_accuracy(self.accuracy, work)
        except ValueError:
            return None

    def with_accuracy(self, accuracy: Accuracy, dtype: torch.dtype) -> Auto:
        return replace(self, accuracy=accuracy)

    def tolerance(self, dtype: torch.dtype, n: int) -> float:
        method = None if self.accuracy == "full" else self._polynomials(dtype)
        return super().tolerance(dtype, n) if method is None else method.tolerance(dtype, n)

    def floor(self, dtype: torch.dtype) -> float:
        method = None if self.accuracy == "full" else self._polynomials(dtype)
        return super().floor(dtype) if method is None else method.floor(dtype)

    def iterate(self, X: Tensor) -> Iterate:
        method = self._choose(X.shape[-2], X.shape[-1], X.dtype, X.device).method
        return method.iterate(X)._replace(method=method.name)
