"""What `polargrad run` understands for a matrix problem besides --steps, --seed and --out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from polargrad.lab.cli.arguments import option
from polargrad.lab.matrix.laboratory import Choices

__all__ = ["MatrixOptions"]


@dataclass(frozen=True)
class MatrixOptions:
    """Of the matrix problems, which `polargrad list` names."""

    only: Annotated[tuple[str, ...], option(metavar="NAME ...", help="configurations to run; all by default")] = ()
    preset: Annotated[
        str | None,
        option(
            metavar="NAME",
            help="of the paper's problems: paper, the authors' settings (default), or exact, converged polar factors "
            "with step sizes that converge",
        ),
    ] = None
    size: Annotated[Literal["full", "small"], option(help="of the problem")] = "full"
    set: Annotated[
        tuple[str, ...],
        option(metavar="NAME=VALUE ...", help="settings of the problem, such as rows=2000 rank=3 observed=0.2"),
    ] = ()
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
    picture: Annotated[Literal["china", "flower"] | None, option(help="which one the problem `picture` completes")] = (
        None
    )
    ratings: Annotated[
        Path | None,
        option(metavar="FILE", help="what the problem `ratings` completes: a CSV of user, item, rating"),
    ] = None
    jobs: Annotated[
        int,
        option(metavar="N", help="configurations at a time, each in a process of its own with its share of the cores"),
    ] = 1

    def choices(self, *, steps: int | None, seed: int) -> Choices:
        """The same as the laboratory takes it.

        Raises:
            ValueError: a setting that is not NAME=VALUE, or given twice.
        """
        settings: dict[str, str] = {}
        given = [("picture", self.picture), ("file", self.ratings)]
        pairs = [text.partition("=") for text in self.set]
        if wrong := [text for text, (_, sign, _) in zip(self.set, pairs, strict=True) if not sign]:
            raise ValueError(f"--set takes NAME=VALUE, got {wrong[0]!r}")
        for name, value in [*((n, v) for n, v in given if v is not None), *((n, v) for n, _, v in pairs)]:
            if name in settings:
                raise ValueError(f"{name} is given twice; give it once")
            settings[name] = str(value)
        return Choices(
            only=self.only,
            preset=self.preset,
            size=self.size,
            settings=settings,
            seed=seed,
            repeat=self.repeat,
            steps=steps,
            eval_every=self.eval_every,
            diagnostics_every=self.diagnostics,
            jobs=self.jobs,
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
            raise ValueError(f"{', '.join(given)}: of matrix problems alone, and {name} is none; leave out")
