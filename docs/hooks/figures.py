"""Draw the figures of the docs from the numbers in docs/records; nothing that is drawn is kept in the repository."""

import csv
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from polargrad.lab.matrix import ProblemSpec
from polargrad.lab.report.curves import gradient_sections, loss_figures
from polargrad.lab.report.figures import Figure, style
from polargrad.lab.run.folder import Run
from polargrad.lab.run.spec import LanguageModel
from polargrad.lab.studies.engine import PolarMeasurement
from polargrad.lab.studies.engine_report import pareto_figure
from polargrad.lab.studies.matrix.experiments import experiment_of
from polargrad.lab.studies.matrix.page import figures as matrix_figures
from polargrad.lab.studies.preconditioning.study import figure as unifying_view
from polargrad.lab.studies.theory.page import figures as theory_figures

RECORDS = Path(__file__).parents[1] / "records"
# The figures of the paper's matrix problems.
_EVERY = ("objective", "residual-condition", "momentum-objective")
_GRADIENT = ("gradient-condition-number", "gradient-nuclear-norm")
MATRIX = {
    "quadratic": (*_EVERY, *(f"{key}-X" for key in _GRADIENT)),
    "logistic": (*_EVERY, *(f"{key}-X" for key in _GRADIENT)),
    "completion": (*_EVERY, *(f"{key}-{factor}" for key in _GRADIENT for factor in "XY")),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every figure to the site as figures/NAME.svg."""
    for name, figure in drawn().items():
        files.append(File.generated(config, f"figures/{name}.svg", content=_svg(figure)))
    return files


def drawn() -> dict[str, Figure]:
    """The figures of all pages by name."""
    theory = theory_figures(_study("theory"))
    return {
        **{f"theory-{key}": theory[key] for key in ("rates", "plateau", "consistency", "noise")},
        "unifying-view": unifying_view(_study("preconditioning")),
        "polar-float32": pareto_figure(_measurements("polar-float32"), "float32"),
        **{f"{problem}-{key}": figure for problem in MATRIX for key, figure in _matrix(problem).items()},
        **_pretraining(),
    }


def _matrix(problem: str) -> dict[str, Figure]:
    spec = ProblemSpec(problem)
    drawn = {figure.key: figure for figure in matrix_figures(experiment_of(spec.problem), _runs(problem, spec))}
    return {key: drawn[key] for key in MATRIX[problem]}


def _pretraining() -> dict[str, Figure]:
    runs = {run.spec.recipe: run for run in _runs("pretraining", LanguageModel())}
    paper = {name: runs[name] for name in ("adamw", "muon+adamw", "muon+polargrad")}
    (loss, _), (orders, _) = (
        loss_figures({name: [runs[name]] for name in names}) for names in (paper, ("polargrad", "polar-first"))
    )
    gradients = [figure for section in gradient_sections(paper) for figure in section.figures]
    return {
        "pretraining-loss": loss,
        "pretraining-orders": orders,
        # the first two matrices are embedding and head
        **{f"pretraining-{figure.key}": figure for figure in gradients if figure.key[-1] in "01"},
    }


def _runs(name: str, objective: ProblemSpec | LanguageModel) -> list[Run]:
    """Runs of a record, with as much of their specs as figures ask for."""
    runs = []
    for line in _study(name)[1:]:
        spec: Any = SimpleNamespace(recipe=line["recipe"], name=line["recipe"], objective=objective)
        records = []
        for series in line["series"]:
            columns = {key: value for key, value in series.items() if isinstance(value, list)}
            shared = {key: value for key, value in series.items() if key not in columns}
            records += [
                {**shared, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)
            ]
        runs.append(Run(RECORDS / line["recipe"], spec, {}, tuple(records), {"status": line["status"]}))
    return runs


def _study(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _measurements(name: str) -> list[PolarMeasurement]:
    with (RECORDS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [{"multiples": float(row.pop("multiples")), "error": float(row.pop("error"))} for row in rows]
    return [
        PolarMeasurement(**{**row, "ours": row["ours"] == "1"}, **given)
        for row, given in zip(rows, numbers, strict=True)
    ]


def _svg(figure: Figure) -> bytes:
    buffer = BytesIO()
    with style():
        figure.canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
