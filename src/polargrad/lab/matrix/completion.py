"""Low-rank matrix completion, section 6.3 of the paper: a factorization fitted to some entries of a matrix."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from polargrad.lab.matrix.configurations import STOPPED_EARLY, Configuration, Experiment, configurations
from polargrad.lab.matrix.factorization import Factorization
from polargrad.lab.matrix.problem import Matrices, check_rank, check_sizes, generator, register, uniform
from polargrad.lab.options import check_value
from polargrad.linalg.bounds import spectral_norm

# Limits of the probability with which an entry is observed.
SHARE = {"above": 0, "most": 1}


def _configurations(max_steps: int | None, polargrad: float) -> tuple[Configuration, ...]:
    """Every configuration with this many QDWH steps (None: converged), and PolarGrad's step size."""
    rates = {
        "polargrad": polargrad,
        "polargrad-decay": polargrad,
        "muon-ns": 0.25,
        "muon-qdwh": 0.25,
        "muon-qdwh-decay": 0.25,
        "adam": 0.05,
        "adam-decay": 0.05,
        "alternating-gd": 50.0,
        "alternating-newton": 1.0,
        "polar-first": 2.0 * polargrad,
        "polar-first-decay": 2.0 * polargrad,
        "momentum-first": polargrad,
        "momentum-first-decay": polargrad,
    }
    return configurations(rates, max_steps=max_steps, momenta=(0.5, 0.5), decay=0.95, momentum_steps=200)


@register
class MatrixCompletion(Factorization):
    """f(X, Y) = ||mask * (X Y^T - M)||_F^2 / sum(mask), not convex.

    grad_X f = 2/sum(mask) (mask * (X Y^T - M)) Y, and alike for Y.

    Args:
        M: (p, q); entries that no mask selects are ignored, and may be NaN.
        mask: (p, q), bool: the observed entries.
        X: (p, r), the initial point.
        Y: (q, r), the initial point.
        held_out: (p, q), bool: known entries that were not observed; evaluations report the error on them.
        exact: whether a fit without error exists, so that f* = 0; else f* counts as unknown.

    Raises:
        TypeError: M, X or Y not real floating point, a mask that is not bool.
        ValueError: shapes that do not fit together, a mask that selects nothing, NaN or infinity in a selected
            entry, an entry that is observed and held out.

    Example:
        >>> M, mask = torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.tensor([[True, True], [True, False]])
        >>> problem = MatrixCompletion(M, mask, torch.ones(2, 1), torch.ones(2, 1))
        >>> round(float(problem.value(problem.start)), 4)
        0.6667

    Source: Lau, Long, Su, arXiv 2505.21799, section 6.3.
    """

    kind: ClassVar[str] = "completion"
    metric_label: ClassVar[str] = "mean squared error of observed entries"
    small: ClassVar = {"rows": 60, "columns": 40, "rank": 2, "observed": 0.5}
    experiment: ClassVar = Experiment(
        title="Low-rank matrix completion",
        formula="f(X, Y) = ‖mask ∘ (X Yᵀ − M)‖² / Σ mask",
        steps=1000,
        eval_every=1,
        presets={"paper": _configurations(2, 50.0), "exact": _configurations(None, 25.0)},
        notes={
            "paper": (f"{STOPPED_EARLY} With exact factors PolarGrad diverges at 50.",),
            "exact": (
                "QDWH runs to convergence. PolarGrad's step sizes are half the paper's, which diverge with exact "
                "factors.",
            ),
        },
    )

    def __init__(
        self, M: Tensor, mask: Tensor, X: Tensor, Y: Tensor, *, held_out: Tensor | None = None, exact: bool = False
    ) -> None:
        seen = _check_mask("mask", mask, M)
        if held_out is not None:
            seen = seen | _check_mask("held_out", held_out, M)
            if both := int((mask & held_out).sum()):
                raise ValueError(f"{both} entries are both observed and held out; remove them from one of the masks")
        super().__init__(torch.where(seen, M, 0.0), X, Y, exact=exact)
        self.mask = mask.to(M.dtype)
        self.held_out = held_out
        self.observed = int(mask.sum())

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
        check_value("observed", observed, float, SHARE)
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

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L = 2 sigma_1(M) / (p q) where X and Y are balanced, with sigma_1 = sqrt(p q) of normal factors."""
        return 2.0 / math.sqrt(sizes.rows * sizes.columns), sizes.rank

    @property
    def balanced_smoothness(self) -> float:
        """L = 2 sigma_1(M) / (p q) where X and Y are balanced, with M estimated from its observed entries."""
        p, q = self.M.shape
        estimated = self.mask * self.M * (p * q / self.observed)
        return 2.0 * float(spectral_norm(estimated[None] if p >= q else estimated.mT[None])) / (p * q)

    def value(self, point: Matrices) -> Tensor:
        """The mean squared error over the observed entries."""
        return self.residual(point).square().sum() / self.observed

    def residual(self, point: Matrices) -> Tensor:
        """The error on observed entries, mask * (X Y^T - M), (p, q)."""
        return self.mask * super().residual(point)

    def metrics(self, point: Matrices) -> dict[str, float]:
        """`held_out_rmse`, the root mean squared error over the held-out entries."""
        if self.held_out is None:
            return {}
        with torch.no_grad():
            error = (point["X"] @ point["Y"].mT - self.M)[self.held_out]
        return {"held_out_rmse": float(error.double().square().mean().sqrt())}

    def newton_direction(self, name: str, G: Tensor, point: Matrices) -> Tensor:
        """Each row of G by the (pseudo-)inverse of its block of the Hessian, 2/sum(mask) sum_j mask_ij y_j y_j^T."""
        if name == "X":
            other, mask = point["Y"].detach(), self.mask
        else:
            other, mask = point["X"].detach(), self.mask.mT
        r = other.shape[1]
        outer = (other[:, :, None] * other[:, None, :]).flatten(1)
        blocks = (2.0 / self.observed) * (mask @ outer).unflatten(1, (r, r))
        return (torch.linalg.pinv(blocks, hermitian=True) @ G.unsqueeze(-1)).squeeze(-1)


class Observations(NamedTuple):
    """A matrix of which some entries are observed and others known but held out.

    Attributes:
        M: (p, q), 0 where nothing is known.
        mask: (p, q), bool, the observed entries.
        held_out: (p, q), bool, known and not observed; None if there are none.
        offset: what was subtracted from every known entry.
    """

    M: Tensor
    mask: Tensor
    held_out: Tensor | None
    offset: float


def _check_mask(name: str, mask: Tensor, M: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}; write for example {name} != 0")
    if mask.shape != M.shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, and M has {tuple(M.shape)}; they must be the same")
    if not bool(mask.any()):
        raise ValueError(f"{name} selects no entry, so there is nothing to fit; observe at least one")
    return mask
