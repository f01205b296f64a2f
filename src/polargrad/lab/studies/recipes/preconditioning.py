"""`polargrad run preconditioning`: the unifying view, each optimizer measured where the Hessian is known."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from polargrad.lab.report.page import Section, Table
from polargrad.lab.studies.preconditioning import VIEWS, Course, Regression, measure
from polargrad.lab.studies.study import StageProgress, StudyFolder, StudyResult, one_thread

__all__ = ["DESCRIPTION", "preconditioning"]

DESCRIPTION = "The unifying view: which norm, which preconditioner, which condition number, measured on a regression."

# Iterates at which condition numbers and the best step are computed.
AT = (0, 1, 2, 3, 5, 10, 20, 30, 60, 100)


def preconditioning(
    out: str | Path,
    *,
    seed: int = 42,
    at: Sequence[int] = AT,
    problem: Regression | None = None,
    progress: StageProgress = lambda _stage, _share: None,
) -> StudyResult:
    """Measure every optimizer of the unifying view and write a folder with records, one figure and a page.

    Args:
        out: the new folder.
        seed: of the regression's data and first iterate.
        at: iterates to measure at.
        problem: the regression; by default the paper's at a tenth of its size, drawn from the seed.
        progress: told the name of each optimizer as it begins, and the share of the work before it.

    Returns:
        Where the page is and what was found, in sentences.

    Raises:
        FileExistsError: `out` exists.
        ValueError: no iterates, or a negative one.
    """
    at = tuple(at)
    if not at or min(at) < 0:
        raise ValueError(f"at is {at}; give at least one iterate, from 0")
    from polargrad.lab.studies.preconditioning.figures import figure

    problem = problem or Regression.draw(seed)
    begun = perf_counter()
    courses = []
    with one_thread(), StudyFolder(out, "preconditioning", {"seed": seed, "at": list(at)}) as folder:
        for index, name in enumerate(VIEWS):
            progress(name, index / len(VIEWS))
            course = measure(problem, name, at)
            courses.append(course)
            for measurement in course.measurements:
                folder.record("measurement", **dataclasses.asdict(measurement))
            folder.record("course", optimizer=name, gaps=course.gaps)
        lead = _lead(courses, problem)
        section = Section(
            "One table", (_about(problem), _COLUMNS), [_described(), _measured(courses)], [figure(folder.records)]
        )
        summary = {"status": "finished", "kappa": problem.kappa, "seconds": perf_counter() - begun}
        page = folder.finish("The unifying view of preconditioning", lead, [section], summary)
    return StudyResult(page, lead)


def _about(problem: Regression) -> str:
    (p, m), (n, q) = problem.A.shape, problem.B.shape
    return (
        f"f(X) = ½‖A X B − C‖² with Gaussian A {p}×{m}, B {n}×{q}, C {p}×{q}. The Hessian is AᵀA ⊗ B Bᵀ, its condition "
        "number κ(A)² κ(B)². Every optimizer takes its own direction with the best step length along it, so that "
        "learning rates play no part."
    )


_COLUMNS = (
    "Curvature after: κ(P^-½ H P^-½) for the operator P that turns the gradient into the direction. Gradient after: "
    "σ₁/σᵣ of the direction. Of the best step: the descent over the largest descent that any step no longer than this "
    "one, measured in the optimizer's own norm, could have brought."
)


def _median(course: Course, key: str) -> float:
    return statistics.median(getattr(measurement, key) for measurement in course.measurements)


def _lead(courses: Sequence[Course], problem: Regression) -> list[str]:
    by: Mapping[str, Course] = {course.optimizer: course for course in courses}
    polar, gradient = by["PolarGrad"], by["gradient descent"]
    first = polar.measurements[0]
    return [
        f"The Hessian has condition number {problem.kappa:.0f}. Vector-minded optimizers lower it at best to "
        f"{min(_median(by[name], 'preconditioned_kappa') for name in ('Adam', 'AdaGrad, diagonal', 'Shampoo')):.3g} "
        f"without seeing it (Shampoo), and K-FAC to {_median(by['K-FAC'], 'preconditioned_kappa'):.2f}.",
        f"PolarGrad makes the gradient's condition number {_median(polar, 'direction_kappa'):.3g} "
        f"(before: {_median(polar, 'gradient_kappa'):.3g}); at the start its operator also lowers the Hessian's "
        f"to {first.preconditioned_kappa:.3g}.",
        f"Steps to 0.1% of the first gap: PolarGrad {_steps(polar)}, gradient descent {_steps(gradient)}, "
        f"Shampoo {_steps(by['Shampoo'])}, K-FAC {_steps(by['K-FAC'])}, Newton {_steps(by['Newton'])}.",
    ]


def _steps(course: Course) -> str:
    reached = course.steps_to(1e-3)
    return f"more than {len(course.gaps) - 1}" if reached is None else str(reached)


def _described() -> Table:
    rows = [
        (name, view.norm, view.operator, view.form, view.sees, view.targets, view.vanishes)
        for name, view in VIEWS.items()
    ]
    columns = ("optimizer", "norm", "preconditioner P", "form", "sees", "targets", "update vanishes with the gradient")
    return Table(
        columns, rows, "For a tall gradient; a wide one swaps sides. ⊗ on the rows of X: left factor ⊗ right factor."
    )


def _measured(courses: Sequence[Course]) -> Table:
    def row(course: Course) -> tuple[str, ...]:
        figures: dict[str, Any] = {
            key: _median(course, key)
            for key in (
                "hessian_kappa",
                "preconditioned_kappa",
                "gradient_kappa",
                "direction_kappa",
                "share",
                "efficiency",
            )
        }
        return (
            course.optimizer,
            f"{figures['hessian_kappa']:.0f}",
            f"{figures['preconditioned_kappa']:.3g}",
            f"{figures['gradient_kappa']:.3g}",
            f"{figures['direction_kappa']:.3g}",
            f"{figures['share']:.1%}",
            f"{figures['efficiency']:.2f}",
            _steps(course),
        )

    columns = (
        "optimizer",
        "κ Hessian before",
        "after",
        "κ gradient before",
        "after",
        "descent per step, of the gap",
        "of the best step",
        "steps to 0.1% of the gap",
    )
    return Table(
        columns, [row(course) for course in courses], "Medians over the iterates measured along each one's own run."
    )
