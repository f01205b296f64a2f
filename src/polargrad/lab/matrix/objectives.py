"""What a matrix run minimizes, as plain data: the paper's problems at any size, and the union of all problems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, get_args

from polargrad.lab.matrix.beyond import Multinomial, Nonnegative, NonnegativeSoftplus, Procrustes, Regression
from polargrad.lab.matrix.observed import Picture, Ratings
from polargrad.lab.matrix.sized import Sized, check_observed, check_rank

if TYPE_CHECKING:
    from polargrad.lab.matrix.problems import Problem

__all__ = ["MATRIX_OBJECTIVES", "Completion", "Logistic", "MatrixObjective", "Quadratic", "problem_of"]


@dataclass(frozen=True)
class Quadratic(Sized):
    """f(X) = 1/2 ||A X B - C||_F^2 with A (rows, m), B (n, columns), C (rows, columns) normal.

    Args:
        rows: of A and C.
        m: rows of X.
        n: columns of X.
        columns: of B and C.
    """

    kind: ClassVar[str] = "quadratic"
    drawn: ClassVar[str] = "MatrixQuadratic"

    rows: int = 1000
    m: int = 500
    n: int = 100
    columns: int = 250

    @classmethod
    def small(cls) -> Quadratic:
        """A size that runs in a moment."""
        return cls(rows=60, m=30, n=8, columns=20)

    @property
    def gradient_rank(self) -> int:
        """The smaller side of X."""
        return min(self.m, self.n)

    @property
    def step_scale(self) -> float:
        """1/(L r) over that of the paper's size, with L expected from normal A and B, r = min(m, n)."""
        return _inverse_smoothness(self) / _inverse_smoothness(Quadratic())


@dataclass(frozen=True)
class Logistic(Sized):
    """f(X) = sum softplus(-C * (A X B)) over a batch of rows, labels C = +-1.

    Args:
        rows: of A and C.
        m: rows of X.
        n: columns of X.
        columns: of B and C.
        batch: rows in a step, drawn with replacement.
    """

    kind: ClassVar[str] = "logistic"
    drawn: ClassVar[str] = "MatrixLogistic"
    metric_unit: ClassVar[str] = "mean over all entries, float64"

    rows: int = 10000
    m: int = 1000
    n: int = 100
    columns: int = 400
    batch: int = 1000

    @classmethod
    def small(cls) -> Logistic:
        """A size that runs in a moment."""
        return cls(rows=400, m=30, n=8, columns=20, batch=50)

    @property
    def gradient_rank(self) -> int:
        """The smaller side of X."""
        return min(self.m, self.n)

    @property
    def step_scale(self) -> float:
        """1/(L r) over that of the paper's size, for the sum over a batch."""
        return _inverse_smoothness(self, self.batch) / _inverse_smoothness(Logistic(), Logistic().batch)


@dataclass(frozen=True)
class Completion(Sized):
    """f(X, Y) = ||mask * (X Y^T - M)||_F^2 / sum(mask), M = U V^T with normal factors.

    Args:
        rows: of M.
        columns: of M.
        rank: of M, and columns of X and Y.
        observed: probability that an entry is observed.

    Raises:
        ValueError: a size below 1, a rank above a dimension, a probability outside (0, 1].
    """

    kind: ClassVar[str] = "completion"
    drawn: ClassVar[str] = "MatrixCompletion"
    metric_label: ClassVar[str] = "mean squared error of observed entries"
    matrices: ClassVar[tuple[str, ...]] = ("X", "Y")

    rows: int = 500
    columns: int = 250
    rank: int = 5
    observed: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_observed(self.observed)
        check_rank(self.rank, self.rows, self.columns)

    @classmethod
    def small(cls) -> Completion:
        """A size that runs in a moment."""
        return cls(rows=60, columns=40, rank=2, observed=0.5)

    @property
    def gradient_rank(self) -> int:
        """The columns of X and Y."""
        return self.rank

    @property
    def step_scale(self) -> float:
        """1/(L r) over that of the paper's size.

        L is about 2 sigma_1(M) / (p q) where X and Y are balanced; for normal factors sigma_1 is about sqrt(p q).
        """
        paper = Completion()
        return math.sqrt((self.rows * self.columns) / (paper.rows * paper.columns)) * paper.rank / self.rank


MatrixObjective = (
    Quadratic
    | Logistic
    | Completion
    | Regression
    | Multinomial
    | Nonnegative
    | NonnegativeSoftplus
    | Procrustes
    | Picture
    | Ratings
)
MATRIX_OBJECTIVES: tuple[type[MatrixObjective], ...] = get_args(MatrixObjective)


@lru_cache(maxsize=1)
def problem_of(objective: MatrixObjective, seed: int) -> Problem:
    """The problem of an objective and a seed; the runs of one experiment share it, and with it what it knows."""
    return objective.build(seed)


def _inverse_smoothness(sizes: Quadratic | Logistic, rows: int | None = None) -> float:
    """1/(L r), L = sigma_max(A)^2 sigma_max(B)^2 with sigma_max(p, m) = sqrt(p) + sqrt(m) for normal matrices."""
    spectral = (math.sqrt(rows or sizes.rows) + math.sqrt(sizes.m)) * (math.sqrt(sizes.n) + math.sqrt(sizes.columns))
    return 1.0 / (spectral**2 * sizes.gradient_rank)
