"""Studies: commands that measure many small things rather than one run, by the names under which they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from polargrad.lab.studies.recipes import preconditioning, theory
from polargrad.lab.studies.study import StageProgress, StudyResult

__all__ = ["STUDIES", "Study"]


class RunStudy(Protocol):
    """Writes a new folder of records, figures and a page."""

    def __call__(self, out: str | Path, *, seed: int = 42, progress: StageProgress = ...) -> StudyResult: ...


@dataclass(frozen=True)
class Study:
    """A study by its name.

    Args:
        description: one line for people.
        run: does it.
    """

    description: str
    run: RunStudy


STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        "theory": Study(theory.DESCRIPTION, theory.theory),
        "preconditioning": Study(preconditioning.DESCRIPTION, preconditioning.preconditioning),
    }
)
