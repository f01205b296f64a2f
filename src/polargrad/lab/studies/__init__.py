"""Studies: commands that measure many small things rather than one run, by name; each is imported when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
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
        run: writes a new folder of records, figures and a page: `run(out, seed=..., progress=...)`.
    """

    description: str
    run: Callable[..., StudyResult]


def _of(module: str, function: str) -> Callable[..., StudyResult]:
    """A function of a module here, which is imported when it is called."""

    def run(out: str | Path, **options: Any) -> StudyResult:
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)(out, **options)

    return run


STUDIES: Registry[Study] = Registry("study")
STUDIES["theory"] = Study(
    "The theorems, checked on random strongly convex quadratics with known constants.", _of("theory.study", "theory")
)
STUDIES["preconditioning"] = Study(
    "The unifying view: which norm, which preconditioner, which condition number, measured on a regression.",
    _of("preconditioning.study", "preconditioning"),
)
