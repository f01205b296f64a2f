"""Draw the figures of the docs from the numbers in docs/records; nothing that is drawn is kept in the repository."""

import csv
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from polargrad.lab.report.figures import Figure, style
from polargrad.lab.studies.engine import PolarMeasurement
from polargrad.lab.studies.engine_report import pareto_figure
from polargrad.lab.studies.preconditioning.study import figure as unifying_view
from polargrad.lab.studies.theory.page import figures as theory_figures

RECORDS = Path(__file__).parents[1] / "records"


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
    }


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
