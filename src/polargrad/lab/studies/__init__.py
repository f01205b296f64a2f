"""Studies: commands that measure many small things rather than one run, by name; each is imported when it runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrad.linalg.registry import Registry

if TYPE_CHECKING:
    from polargrad.lab.studies.study import StudyResult

__all__ = ["STUDIES", "Study"]


@dataclass(frozen=True)
class Study:
    """A study.

    Args:
        description: one line for people.
        where: module and function, "MODULE:FUNCTION", that does it: writes a new folder of records, figures and a page.
    """

    description: str
    where: str

    def run(self, out: str | Path, **options: Any) -> StudyResult:
        """Do the study; the function's docstring tells its options, and what it raises."""
        module, _, function = self.where.partition(":")
        return getattr(importlib.import_module(module), function)(out, **options)


STUDIES: Registry[Study] = Registry("study")
STUDIES["theory"] = Study(
    "The theorems, checked on random strongly convex quadratics with known constants.",
    f"{__name__}.theory.study:theory",
)
STUDIES["preconditioning"] = Study(
    "The unifying view: which norm, which preconditioner, which condition number, measured on a regression.",
    f"{__name__}.preconditioning.study:preconditioning",
)
