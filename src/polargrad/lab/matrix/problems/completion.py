"""Low-rank matrix completion: a factorization fitted to some of the entries of a matrix."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from polargrad.lab.matrix.problems.base import (
    Point,
    Problem,
    check_matrix,
    check_product,
    check_rank,
    check_sizes,
    generator,
    uniform,
)


class MatrixCompletion(Problem):
    """f(X, Y) = ||mask * (X Y^T - M)||_F^2 / sum(mask), not convex.

    grad_X f = 2/sum(mask) (mask * (X Y^T - M)) Y, and alike for Y.

    Args:
        M: (p, q); entries that no mask selects are not looked at, and may be NaN.
        mask: (p, q), bool: the observed entries.
        X: (p, r), the initial point.
        Y: (q, r), the initial point.
        held_out: (p, q), bool: known entries that were not observed; evaluations give the error on them.
        exact: whether a fit without error exists, so that f* = 0; else f* counts as unknown.

    Raises:
        TypeError: M, X or Y not real floating point, a mask that is not bool.
        ValueError: shapes that do not fit together, a mask that selects nothing, NaN or infinity where a mask looks, an
            entry that is observed and held out.

    Example:
        >>> M, mask = torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.tensor([[True, True], [True, False]])
        >>> problem = MatrixCompletion(M, mask, torch.ones(2, 1), torch.ones(2, 1))
        >>> round(float(problem.value(problem.start)), 4)
        0.6667

    Source: Lau, Long, Su, arXiv 2505.21799, section 6.3.
    """

    name: ClassVar[str] = "completion"

    def __init__(
        self, M: Tensor, mask: Tensor, X: Tensor, Y: Tensor, *, held_out: Tensor | None = None, exact: bool = False
    ) -> None:
        super().__init__({"X": X, "Y": Y})
        check_rank(X.shape[1], *M.shape)
        check_product(X=(X, (M.shape[0], None)), Y=(Y, (M.shape[1], X.shape[1])))
        seen = _check_mask("mask", mask, M)
        if held_out is not None:
            seen = seen | _check_mask("held_out", held_out, M)
            if both := int((mask & held_out).sum()):
                raise ValueError(f"{both} entries are both observed and held out; remove them from one of the masks")
        M = torch.where(seen, M, 0.0)
        check_matrix("M", M)
        self.M = M
        self.mask = mask.to(M.dtype)
        self.held_out = held_out
        self.observed = int(mask.sum())
        self._minimum = 0.0 if exact else None

    @classmethod
    def draw(cls, seed: int, *, rows: int = 500, columns: int = 250, rank: int = 5, observed: float = 0.3) -> Self:
        """M = U V^T with U (rows, rank), V (columns, rank) standard normal; each entry observed with this probability.

        The numbers are those of `torch.manual_seed(seed)` before U, V and the mask, and once more before X and Y, which
        are uniform on (-1, 1). The entries that are not observed are held out.

        Raises:
            ValueError: sizes below 1, a rank above a dimension, a probability outside (0, 1], an empty mask.
        """
        check_sizes(rows=rows, columns=columns)
        check_rank(rank, rows, columns)
        check_fraction("observed", observed)
        data = generator(seed)
        U, V = torch.randn(rows, rank, generator=data), torch.randn(columns, rank, generator=data)
        mask = torch.rand(rows, columns, generator=data) < observed
        start = generator(seed)
        X, Y = uniform(rows, rank, draw=start), uniform(columns, rank, draw=start)
        return cls(U @ V.mT, mask, X, Y, held_out=None if bool(mask.all()) else ~mask, exact=True)

    @classmethod
    def fit(cls, M: Tensor, mask: Tensor, *, rank: int, seed: int, held_out: Tensor | None = None) -> Self:
        """The problem of a given matrix, from factors uniform on (-1, 1) times rank^(-1/2)."""
        check_rank(rank, *M.shape)
        start = generator(seed)
        X, Y = (uniform(size, rank, draw=start).to(M.dtype) / rank**0.5 for size in M.shape)
        return cls(M, mask, X, Y, held_out=held_out)

    def value(self, point: Point) -> Tensor:
        """The mean squared error over the observed entries."""
        return self.residual(point).square().sum() / self.observed

    def residual(self, point: Point) -> Tensor:
        """The error on observed entries, mask * (X Y^T - M), (p, q)."""
        return self.mask * torch.addmm(self.M, point["X"], point["Y"].mT, beta=-1.0)

    @cached_property
    def minimum(self) -> float | None:
        """0 if a fit without error exists, else unknown."""
        return self._minimum

    def figures(self, point: Point) -> dict[str, float]:
        """`held_out_rmse`, the root mean squared error over the held-out entries."""
        if self.held_out is None:
            return {}
        with torch.no_grad():
            error = (point["X"] @ point["Y"].mT - self.M)[self.held_out]
        return {"held_out_rmse": float(error.double().square().mean().sqrt())}

    def newton_direction(self, name: str, G: Tensor, point: Point) -> Tensor:
        """Each row of G by the (pseudo-)inverse of its block of the Hessian, 2/sum(mask) sum_j mask_ij y_j y_j^T."""
        if name == "X":
            other, mask = point["Y"].detach(), self.mask
        else:
            other, mask = point["X"].detach(), self.mask.mT
        r = other.shape[1]
        outer = (other[:, :, None] * other[:, None, :]).flatten(1)
        blocks = (2.0 / self.observed) * (mask @ outer).unflatten(1, (r, r))
        return (torch.linalg.pinv(blocks, hermitian=True) @ G.unsqueeze(-1)).squeeze(-1)


def check_fraction(name: str, value: float) -> None:
    """A number in (0, 1].

    Raises:
        ValueError: naming it.
    """
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")


def _check_mask(name: str, mask: Tensor, M: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}; write for example {name} != 0")
    if mask.shape != M.shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, and M has {tuple(M.shape)}; they must be the same")
    if not bool(mask.any()):
        raise ValueError(f"{name} selects no entry, so there is nothing to fit; observe at least one")
    return mask
