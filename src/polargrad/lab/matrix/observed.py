"""Completion of matrices that are not drawn, as plain data: a photograph, and ratings from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from polargrad.lab.matrix.sized import Sized, check_observed

if TYPE_CHECKING:
    from polargrad.lab.matrix.problems import MatrixCompletion, Observations

__all__ = ["Picture", "Ratings"]


@dataclass(frozen=True)
class _Factored(Sized):
    """Two factors of so many columns, fitted to the observed entries of given data."""

    matrices: ClassVar[tuple[str, ...]] = ("X", "Y")

    rank: int = 10

    @property
    def gradient_rank(self) -> int:
        """The columns of X and Y."""
        return self.rank

    @property
    def step_scale(self) -> float:
        """1/(L r) with L = 2 sigma_1(M) / (p q) at balanced factors; M is estimated from its observed entries."""
        from polargrad.linalg.bounds import spectral_norm

        problem = self.build(0)
        p, q = problem.M.shape
        filled = problem.mask * problem.M * (p * q / problem.observed)
        largest = float(spectral_norm(filled[None] if p >= q else filled.mT[None]))
        return p * q / (2.0 * largest * self.rank) if largest else 1.0

    def build(self, seed: int) -> MatrixCompletion:
        """The seed draws which entries are observed, and the initial point."""
        from polargrad.lab.matrix.problems import MatrixCompletion

        data = self.observe(seed)
        return MatrixCompletion.fit(data.M, data.mask, rank=self.rank, seed=seed, held_out=data.held_out)

    def observe(self, seed: int) -> Observations:
        """The data, some of them observed and the others held out."""
        raise NotImplementedError


@dataclass(frozen=True)
class Picture(_Factored):
    """f(X, Y) = mean of (X Y^T - M)^2 over the observed pixels of a photograph that scikit-learn ships.

    Args:
        picture: "china" or "flower", 427 x 640 grey levels.
        shrink: keep every so many-th pixel in both directions.
        rank: columns of X and Y.
        observed: probability of each pixel; the others are held out.

    Raises:
        ValueError: a size below 1, a probability outside (0, 1].
    """

    kind: ClassVar[str] = "picture"
    metric_label: ClassVar[str] = "mean squared error of observed pixels"

    picture: str = "china"
    shrink: int = 2
    observed: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_observed(self.observed)

    @classmethod
    def small(cls) -> Picture:
        """A size that runs in a moment."""
        return cls(shrink=10, rank=3)

    def observe(self, seed: int) -> Observations:
        """The seed draws the mask."""
        from polargrad.lab.matrix.problems import picture

        return picture(self.picture, observed=self.observed, seed=seed, shrink=self.shrink)


@dataclass(frozen=True)
class Ratings(_Factored):
    """f(X, Y) = mean of (X Y^T - M)^2 over the observed ratings of a file, less their mean.

    Args:
        file: CSV with the columns user, item and rating.
        rank: columns of X and Y.
        held_out: the share of ratings that is not observed.

    Raises:
        ValueError: a size below 1; when it is built, a file that cannot be read as ratings.
    """

    kind: ClassVar[str] = "ratings"
    metric_label: ClassVar[str] = "mean squared error of observed ratings"

    rank: int = 3
    file: str = ""
    held_out: float = 0.1

    def observe(self, seed: int) -> Observations:
        """The seed draws which ratings are held out."""
        from polargrad.lab.matrix.problems import ratings

        if not self.file:
            raise ValueError(
                "ratings has no file yet; give --ratings FILE, a CSV with the columns user, item and rating"
            )
        return ratings(Path(self.file), held_out=self.held_out, seed=seed)
