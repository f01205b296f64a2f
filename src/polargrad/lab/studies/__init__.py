"""Studies: commands that measure many small things rather than one run, by name; each is imported when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from polargrad.lab.studies.study import StageProgress, StudyResult

__all__ = ["STUDIES", "Study"]


class RunStudy(Protocol):
    """Writes a new folder of records, figures and a page."""

    def __call__(self, out: str | Path, *, seed: int = 42, progress: StageProgress = ...) -> StudyResult: ...


@dataclass(frozen=True)
class Study:
    """A study.

    Args:
        description: one line for people.
        run: does it.
    """

    description: str
    run: RunStudy


def _theory(out: str | Path, **options: Any) -> StudyResult:
    from polargrad.lab.studies.theory.study import theory

    return theory(out, **options)


def _preconditioning(out: str | Path, **options: Any) -> StudyResult:
    from polargrad.lab.studies.preconditioning.study import preconditioning

    return preconditioning(out, **options)


STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        "theory": Study("The theorems, checked on random strongly convex quadratics with known constants.", _theory),
        "preconditioning": Study(
            "The unifying view: which norm, which preconditioner, which condition number, measured on a regression.",
            _preconditioning,
        ),
    }
)
