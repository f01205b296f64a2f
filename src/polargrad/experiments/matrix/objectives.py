"""What a matrix run minimizes, as plain data: the paper's problems at any size, and completion of real data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from polargrad.problems import MatrixCompletion, Problem

__all__ = ["MATRIX_OBJECTIVES", "Completion", "Logistic", "MatrixObjective", "Quadratic", "problem_of"]


@dataclass(frozen=True)
class _Sized:
    """What the objectives share: whole positive sizes, and a figure that should fall to zero."""

    metric: ClassVar[str] = "gap"
    metric_label: ClassVar[str] = "f − f*"
    metric_unit: ClassVar[str] = "float64"
    matrices: ClassVar[tuple[str, ...]] = ("X",)

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{entry.name} is {value!r}; give a positive whole number")


@dataclass(frozen=True)
class Quadratic(_Sized):
    """f(X) = 1/2 ||A X B - C||_F^2 with A (rows, m), B (n, columns), C (rows, columns) normal.

    Args:
        rows: of A and C.
        m: rows of X.
        n: columns of X.
        columns: of B and C.
    """

    kind: ClassVar[str] = "quadratic"

    rows: int = 1000
    m: int = 500
    n: int = 100
    columns: int = 250

    @classmethod
    def small(cls) -> Quadratic:
        """A size that runs in a moment."""
        return cls(rows=60, m=30, n=8, columns=20)

    @property
    def step_scale(self) -> float:
        """1/(L r) over that of the paper's size, with L expected from normal A and B, r = min(m, n)."""
        return _inverse_smoothness(self) / _inverse_smoothness(Quadratic())

    def build(self, seed: int) -> Problem:
        """The problem drawn from a seed."""
        from polargrad.problems import MatrixQuadratic

        return MatrixQuadratic.draw(seed, rows=self.rows, m=self.m, n=self.n, columns=self.columns)


@dataclass(frozen=True)
class Logistic(_Sized):
    """f(X) = sum softplus(-C * (A X B)) over a batch of rows, labels C = +-1.

    Args:
        rows: of A and C.
        m: rows of X.
        n: columns of X.
        columns: of B and C.
        batch: rows in a step, drawn with replacement.
    """

    kind: ClassVar[str] = "logistic"
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
    def step_scale(self) -> float:
        """1/(L r) over that of the paper's size, for the sum over a batch."""
        return _inverse_smoothness(self, self.batch) / _inverse_smoothness(Logistic(), Logistic().batch)

    def build(self, seed: int) -> Problem:
        """The problem drawn from a seed."""
        from polargrad.problems import MatrixLogistic

        return MatrixLogistic.draw(seed, rows=self.rows, m=self.m, n=self.n, columns=self.columns, batch=self.batch)


@dataclass(frozen=True)
class Completion(_Sized):
    """f(X, Y) = ||mask * (X Y^T - M)||_F^2 / sum(mask).

    Args:
        rows: of M; real data has its own.
        columns: of M; real data has its own.
        rank: columns of X and Y; for drawn data also the rank of M.
        observed: probability that an entry is observed; for ratings the share that is not held out.
        source: "normal" (M = U V^T with normal factors), "china" or "flower" (pictures that scikit-learn ships), or the
            path of a CSV file of ratings.

    Raises:
        ValueError: a size below 1, a rank above a dimension, a probability outside (0, 1], an empty source.
    """

    kind: ClassVar[str] = "completion"
    metric_label: ClassVar[str] = "mean squared error of observed entries"
    matrices: ClassVar[tuple[str, ...]] = ("X", "Y")

    rows: int = 500
    columns: int = 250
    rank: int = 5
    observed: float = 0.3
    source: str = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.observed <= 1.0:
            raise ValueError(f"observed is {self.observed!r}; give a probability in (0, 1]")
        if not self.source:
            raise ValueError("source is empty; give 'normal', a picture's name or the path of a file of ratings")
        if self.source == "normal" and self.rank > min(self.rows, self.columns):
            raise ValueError(f"rank {self.rank} is above {min(self.rows, self.columns)}, the smaller dimension")

    @classmethod
    def small(cls) -> Completion:
        """A size that runs in a moment."""
        return cls(rows=60, columns=40, rank=2, observed=0.5)

    @property
    def step_scale(self) -> float:
        """1/(L r) over that of the paper's size.

        L is about 2 sigma_1(M) / (p q) where X and Y are balanced; for normal factors sigma_1 is about sqrt(p q).
        """
        paper = Completion()
        if self.source == "normal":
            ratio = (self.rows * self.columns) / (paper.rows * paper.columns)
            return math.sqrt(ratio) * paper.rank / self.rank
        import torch

        problem = self._fit(0)
        p, q = problem.M.shape
        filled = problem.mask * problem.M * (p * q / problem.observed)
        largest = float(torch.linalg.matrix_norm(filled, 2))
        return math.sqrt(p * q / (paper.rows * paper.columns)) * math.sqrt(p * q) / largest * paper.rank / self.rank

    def build(self, seed: int) -> Problem:
        """The problem drawn from a seed; for real data the seed draws the mask and the initial point."""
        from polargrad.problems import MatrixCompletion

        if self.source == "normal":
            return MatrixCompletion.draw(
                seed, rows=self.rows, columns=self.columns, rank=self.rank, observed=self.observed
            )
        return self._fit(seed)

    def _fit(self, seed: int) -> MatrixCompletion:
        from polargrad import problems

        if self.source in ("china", "flower"):
            data = problems.picture(self.source, observed=self.observed, seed=seed)
        else:
            data = problems.ratings(Path(self.source), held_out=1.0 - self.observed, seed=seed)
        return problems.MatrixCompletion.fit(data.M, data.mask, rank=self.rank, seed=seed, held_out=data.held_out)


MatrixObjective = Quadratic | Logistic | Completion
MATRIX_OBJECTIVES: tuple[type[MatrixObjective], ...] = (Quadratic, Logistic, Completion)


@lru_cache(maxsize=1)
def problem_of(objective: MatrixObjective, seed: int) -> Problem:
    """The problem of an objective and a seed; the runs of one experiment share it, and with it what it knows."""
    return objective.build(seed)


def _inverse_smoothness(sizes: Quadratic | Logistic, rows: int | None = None) -> float:
    """1/(L r), L = sigma_max(A)^2 sigma_max(B)^2 with sigma_max(p, m) = sqrt(p) + sqrt(m) for normal matrices."""
    spectral = (math.sqrt(rows or sizes.rows) + math.sqrt(sizes.m)) * (math.sqrt(sizes.n) + math.sqrt(sizes.columns))
    return 1.0 / (spectral**2 * min(sizes.m, sizes.n))
