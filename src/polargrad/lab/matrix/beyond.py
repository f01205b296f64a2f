"""Problems beyond the paper's, as plain data: two regressions, nonnegative factorization, orthogonal Procrustes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from polargrad.lab.matrix.sized import Sized, check_rank

if TYPE_CHECKING:
    from polargrad.lab.matrix.problems import Problem

__all__ = ["Multinomial", "Nonnegative", "NonnegativeSoftplus", "Procrustes", "Regression"]


def _marchenko_pastur(columns: int, rows: int) -> float:
    """The largest eigenvalue of A^T A / rows expected of a normal A (rows, columns)."""
    return (1.0 + math.sqrt(columns / rows)) ** 2


@dataclass(frozen=True)
class Regression(Sized):
    """f(X) = 1/(2N) ||A X - Y||_F^2 + ridge/2 ||X||_F^2, several responses at once.

    Args:
        rows: N, observations.
        features: rows of X.
        responses: columns of X.
        condition: of the Hessian of features without correlation, at least 1.
        noise: standard deviation of the responses about their mean.
        ridge: at least 0.
    """

    kind: ClassVar[str] = "regression"
    drawn: ClassVar[str] = "MultiResponseRegression"

    rows: int = 1000
    features: int = 200
    responses: int = 50
    condition: float = 100.0
    noise: float = 0.1
    ridge: float = 0.0

    @classmethod
    def small(cls) -> Regression:
        """A size that runs in a moment."""
        return cls(rows=80, features=20, responses=8)

    @property
    def gradient_rank(self) -> int:
        """The smaller side of X."""
        return min(self.features, self.responses)

    @property
    def step_scale(self) -> float:
        """1/(L r) with L = lambda_max(A^T A / N) + ridge; the columns that are scaled near 1 count."""
        effective = sum(self.condition ** (-j / self.features) for j in range(self.features))
        L = _marchenko_pastur(max(1, round(effective)), self.rows) + self.ridge
        return 1.0 / (L * self.gradient_rank)


@dataclass(frozen=True)
class Multinomial(Sized):
    """f(X) = mean cross-entropy of softmax(A X) against labels + ridge/2 ||X||_F^2.

    Args:
        rows: observations.
        features: rows of X.
        classes: columns of X.
        ridge: above 0.
    """

    kind: ClassVar[str] = "multinomial"
    drawn: ClassVar[str] = "MultinomialRegression"

    rows: int = 2000
    features: int = 100
    classes: int = 20
    ridge: float = 1e-3

    @classmethod
    def small(cls) -> Multinomial:
        """A size that runs in a moment."""
        return cls(rows=200, features=10, classes=5)

    @property
    def gradient_rank(self) -> int:
        """The smaller side of X."""
        return min(self.features, self.classes)

    @property
    def step_scale(self) -> float:
        """1/(L r) with L = lambda_max(A^T A / N) / 2 + ridge."""
        L = 0.5 * _marchenko_pastur(self.features, self.rows) + self.ridge
        return 1.0 / (L * self.gradient_rank)


@dataclass(frozen=True)
class Nonnegative(Sized):
    """f(X, Y) = ||X Y^T - M||_F^2 / (p q) with X, Y >= 0 by projection, M = U V^T with factors uniform on (0, 1).

    Args:
        rows: of M.
        columns: of M.
        rank: of M, and columns of X and Y.

    Raises:
        ValueError: a size below 1, a rank above a dimension.
    """

    kind: ClassVar[str] = "nonnegative"
    metric_label: ClassVar[str] = "mean squared error"
    matrices: ClassVar[tuple[str, ...]] = ("X", "Y")
    constraint: ClassVar[str] = "projected"

    rows: int = 200
    columns: int = 100
    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank, self.rows, self.columns)

    @classmethod
    def small(cls) -> Nonnegative:
        """A size that runs in a moment."""
        return cls(rows=30, columns=20, rank=3)

    @property
    def gradient_rank(self) -> int:
        """The columns of X and Y."""
        return self.rank

    @property
    def step_scale(self) -> float:
        """1/(L r) with L = 2 sigma_1(M) / (p q), sigma_1 about r sqrt(p q) / 4 for uniform factors."""
        return 2.0 * math.sqrt(self.rows * self.columns) / self.rank**2

    def build(self, seed: int) -> Problem:
        """The problem drawn from a seed."""
        from polargrad.lab.matrix.problems import NonnegativeFactorization

        return NonnegativeFactorization.draw(seed, **asdict(self), constraint=self.constraint)


@dataclass(frozen=True)
class NonnegativeSoftplus(Nonnegative):
    """The same with X and Y the softplus of free parameters."""

    kind: ClassVar[str] = "nonnegative-softplus"
    constraint: ClassVar[str] = "softplus"


@dataclass(frozen=True)
class Procrustes(Sized):
    """f(X) = 1/2 ||A X - B||_F^2 over orthogonal X, B = A Q + noise.

    Args:
        rows: of A and B.
        n: rows and columns of X.
        noise: standard deviation.
    """

    kind: ClassVar[str] = "procrustes"
    drawn: ClassVar[str] = "OrthogonalProcrustes"

    rows: int = 200
    n: int = 50
    noise: float = 0.1

    @classmethod
    def small(cls) -> Procrustes:
        """A size that runs in a moment."""
        return cls(rows=30, n=6)

    @property
    def gradient_rank(self) -> int:
        """The side of X."""
        return self.n

    @property
    def step_scale(self) -> float:
        """1/(L r) with L = sigma_max(A)^2."""
        return 1.0 / (self.rows * _marchenko_pastur(self.n, self.rows) * self.n)
