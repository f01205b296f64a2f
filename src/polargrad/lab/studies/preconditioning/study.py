"""`polargrad run preconditioning`: the unifying view, each optimizer measured where the Hessian is known."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from polargrad.lab.matrix.quadratic import MatrixQuadratic
from polargrad.lab.report.figures import INK, LIGHT, MUTED, Figure, style, titled_canvas
from polargrad.lab.report.page import UNKNOWN, Section, Table
from polargrad.lab.run.environment import torch_threads
from polargrad.lab.studies.preconditioning.measure import Course, measure, regression
from polargrad.lab.studies.preconditioning.views import VIEWS
from polargrad.lab.studies.study import StageProgress, StudyFolder, StudyResult, table_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Iterates at which condition numbers and the best step are computed.
AT = (0, 1, 2, 3, 5, 10, 20, 30, 60, 100)


def preconditioning(
    out: str | Path,
    *,
    seed: int = 42,
    at: Sequence[int] = AT,
    problem: MatrixQuadratic | None = None,
    progress: StageProgress = lambda _stage, _share: None,
) -> StudyResult:
    """Measure every optimizer of the unifying view and write a folder with records, one figure and a page.

    Args:
        out: the new folder.
        seed: of the regression's data and first iterate.
        at: iterates to measure at.
        problem: the regression; by default the paper's at a tenth of its size, drawn from the seed.
        progress: called with the name of each optimizer as it begins, and the share of the work before it.

    Returns:
        The page's path and the findings in sentences.

    Raises:
        FileExistsError: `out` exists.
        ValueError: no iterates, or a negative one.
    """
    at = tuple(at)
    if not at or min(at) < 0:
        raise ValueError(f"at is {at}; give at least one iterate, from 0")
    problem = problem or regression(seed)
    begun = perf_counter()
    courses = []
    # one thread: small matrices lose more by sharing work than they gain
    with torch_threads(1), StudyFolder(out, "preconditioning", {"seed": seed, "at": list(at)}) as folder:
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
        summary = {"status": "finished", "kappa": problem.condition_number, "seconds": perf_counter() - begun}
        page = folder.finish("The unifying view of preconditioning", lead, [section], summary)
    return StudyResult(page, lead)


def _about(problem: MatrixQuadratic) -> str:
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


def _lead(courses: Sequence[Course], problem: MatrixQuadratic) -> list[str]:
    by: Mapping[str, Course] = {course.optimizer: course for course in courses}
    polar, gradient = by["PolarGrad"], by["gradient descent"]
    first = polar.measurements[0]
    return [
        f"The Hessian has condition number {problem.condition_number:.0f}. Optimizers that see vectors lower it to "
        f"{min(_median(by[name], 'preconditioned_kappa') for name in ('Adam', 'AdaGrad, diagonal', 'Shampoo')):.3g} "
        f"at best without seeing it (Shampoo), and K-FAC to {_median(by['K-FAC'], 'preconditioned_kappa'):.2f}.",
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
    columns = (
        ("optimizer", "{name}"),
        ("norm", "{norm}"),
        ("preconditioner P", "{operator}"),
        ("form", "{form}"),
        ("sees", "{sees}"),
        ("targets", "{targets}"),
        ("update vanishes with the gradient", "{vanishes}"),
    )
    note = "For a tall gradient; a wide one swaps sides. ⊗ on the rows of X: left factor ⊗ right factor."
    return table_of(({"name": name, **view._asdict()} for name, view in VIEWS.items()), columns, note)


def _measured(courses: Sequence[Course]) -> Table:
    keys = ("hessian_kappa", "preconditioned_kappa", "gradient_kappa", "direction_kappa", "share", "efficiency")
    rows = [{"optimizer": c.optimizer, "steps": _steps(c), **{key: _median(c, key) for key in keys}} for c in courses]
    for row in rows:
        known = not math.isnan(kappa := row["preconditioned_kappa"])
        row["preconditioned_kappa"] = f"{kappa:.3g}" if known else UNKNOWN
    columns = (
        ("optimizer", "{optimizer}"),
        ("κ Hessian before", "{hessian_kappa:.0f}"),
        ("after", "{preconditioned_kappa}"),
        ("κ gradient before", "{gradient_kappa:.3g}"),
        ("after", "{direction_kappa:.3g}"),
        ("descent per step, of the gap", "{share:.1%}"),
        ("of the best step", "{efficiency:.2f}"),
        ("steps to 0.1% of the gap", "{steps}"),
    )
    return table_of(rows, columns, "Medians over the iterates of each optimizer's run.")


_BEFORE: dict[str, Any] = {"marker": "o", "color": MUTED, "markerfacecolor": "white"}
_AFTER: dict[str, Any] = {"marker": "s", "color": LIGHT[0]}


def figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Three panels over the optimizers: kappa of the Hessian and of the gradient before and after, and the descent."""
    rows = [record for record in records if record["kind"] == "measurement"]
    names = list(dict.fromkeys(row["optimizer"] for row in rows))
    with style():
        canvas = titled_canvas("What each optimizer conditions: curvature, gradient, descent", (9.6, 4.6))
        panels = [canvas.add_subplot(1, 3, 1)]
        panels += [canvas.add_subplot(1, 3, i, sharey=panels[0]) for i in (2, 3)]
        _dumbbells(panels[0], rows, names, "hessian_kappa", "preconditioned_kappa")
        panels[0].set_xlabel("condition number of the Hessian")
        _dumbbells(panels[1], rows, names, "gradient_kappa", "direction_kappa")
        panels[1].set_xlabel("condition number of the gradient")
        for y, name in enumerate(names):
            values = [row["efficiency"] for row in rows if row["optimizer"] == name]
            panels[2].plot([min(values), max(values)], [y, y], color=LIGHT[0], linewidth=2.0, alpha=0.45)
            panels[2].plot([statistics.median(values)], [y], "s", color=LIGHT[0])
        panels[2].set_xlim(0.0, 1.05)
        panels[2].set_xlabel("descent over the best step\nof that length in its norm")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)
        handles = [
            panels[0].plot([], [], linestyle="none", **_BEFORE, label="before")[0],
            panels[0].plot([], [], linestyle="none", **_AFTER, label="after (median over the run)")[0],
            panels[2].plot([], [], color=LIGHT[0], linewidth=2.0, alpha=0.45, label="range over the run")[0],
        ]
        canvas.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=8)
    return Figure("unifying-view", "Condition numbers and descent of every optimizer", canvas)


def _dumbbells(axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], before: str, after: str) -> None:
    """A line from the median before to the median after, on a logarithmic axis."""
    axes.set_xscale("log")
    for y, name in enumerate(names):
        measured = [row for row in rows if row["optimizer"] == name]
        start = statistics.median(row[before] for row in measured)
        finite = [row[after] for row in measured if row[after] is not None and math.isfinite(row[after])]
        if finite:
            end = statistics.median(finite)
            axes.plot([start, end], [y, y], color=INK, linewidth=1.0, zorder=1)
            axes.plot([end], [y], zorder=3, **_AFTER)
        axes.plot([start], [y], zorder=2, **_BEFORE)
