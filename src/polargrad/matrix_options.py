"""What `polargrad run quadratic|logistic|completion` understands besides --steps, --seed and --out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from polargrad.arguments import option
from polargrad.experiments.matrix.laboratory import Choices

__all__ = ["MatrixOptions"]


@dataclass(frozen=True)
class MatrixOptions:
    """Of the matrix problems quadratic, logistic and completion."""

    only: Annotated[tuple[str, ...], option(metavar="NAME ...", help="configurations to run; all by default")] = ()
    preset: Annotated[
        Literal["paper", "exact"],
        option(help="the authors' settings, or converged polar factors with step sizes that converge"),
    ] = "paper"
    size: Annotated[Literal["paper", "small"], option(help="of the problem")] = "paper"
    repeat: Annotated[int, option(metavar="N", help="how many seeds, from --seed on; figures show bands")] = 1
    eval_every: Annotated[int | None, option(metavar="N", help="steps between evaluations of the gap in float64")] = (
        None
    )
    diagnostics: Annotated[
        int | None,
        option(
            metavar="N",
            help="steps between looks at the singular values of gradient and residual, outside the timed path; "
            "0: never; by default a hundred looks",
        ),
    ] = None
    picture: Annotated[Literal["china", "flower"] | None, option(help="complete this picture (needs scikit-learn)")] = (
        None
    )
    ratings: Annotated[
        Path | None, option(metavar="FILE", help="complete the ratings of a CSV file: user, item, rating")
    ] = None
    rank: Annotated[int | None, option(metavar="N", help="of the completion's factors")] = None

    def choices(self, *, steps: int | None, seed: int) -> Choices:
        """The same as the laboratory takes it.

        Raises:
            ValueError: a picture and ratings at once.
        """
        if self.picture is not None and self.ratings is not None:
            raise ValueError("--picture and --ratings are two different matrices; give one of them")
        if self.ratings is not None and not self.ratings.is_file():
            raise FileNotFoundError(f"{self.ratings} is not a file; give a CSV file with columns user, item and rating")
        return Choices(
            only=self.only,
            preset=self.preset,
            size=self.size,
            seed=seed,
            repeat=self.repeat,
            steps=steps,
            eval_every=self.eval_every,
            diagnostics_every=self.diagnostics,
            source=self.picture or (None if self.ratings is None else str(self.ratings)),
            rank=self.rank,
        )

    def refuse(self, name: str) -> None:
        """Say that what is no matrix problem takes none of these.

        Raises:
            ValueError: naming the options given.
        """
        given: Sequence[str] = [
            f"--{entry.name.replace('_', '-')}" for entry in fields(self) if getattr(self, entry.name) != entry.default
        ]
        if given:
            raise ValueError(
                f"{', '.join(given)}: of quadratic, logistic and completion alone, not of {name}; leave out"
            )
