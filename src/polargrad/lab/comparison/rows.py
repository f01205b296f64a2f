"""Runs as rows of a table: for pandas, for files and for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from polargrad.lab.comparison.analysis import best_evaluation, final_metric
from polargrad.lab.run.folder import Run

TextFormat = Literal["csv", "json", "md"]


def row_of(run: Run) -> dict[str, Any]:
    """A run as a row of a table: names, how it ended, its metric at the end and at its best, its time, its rates.

    The metric has its own name, "val_loss" or "gap"; it is None where the run diverged. Seconds are those of forward,
    backward and optimizer.
    """
    metric = run.spec.objective.metric
    best, last = best_evaluation(run), next(reversed(run.of_kind("step")), {})
    return {
        "run": run.spec.name,
        "recipe": run.spec.recipe,
        "seed": run.spec.seed,
        "status": run.status,
        "steps": int(last.get("step", 0)),
        metric: final_metric(run),
        f"best_{metric}": None if best is None else best[0],
        "best_step": None if best is None else best[1],
        "seconds": last.get("seconds"),
        "optimizer_seconds": last.get("optimizer_seconds"),
        "parameters": run.environment.get("parameters"),
        **{f"{role}.lr": rate for role, rate in run.spec.learning_rates.items()},
        "folder": str(run.path),
    }


def formatted(rows: Sequence[Mapping[str, Any]], kind: TextFormat) -> str:
    """Rows as CSV, JSON or a Markdown table; what a row lacks is empty, in JSON left out.

    Example:
        >>> print(formatted([{"run": "a|b", "loss": 1.5}, {"run": "c", "gap": None}], "md"), end="")
        | run | loss | gap |
        |---|---|---|
        | a\\|b | 1.5 |  |
        | c |  |  |
    """
    if kind == "json":
        return json.dumps([dict(row) for row in rows], indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [["" if row.get(column) is None else row[column] for column in columns] for row in rows]
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *cells])
        return text.getvalue()
    lines = [columns, ["---"] * len(columns), *([str(cell).replace("|", "\\|") for cell in row] for row in cells)]
    return "".join(f"|{'|'.join(line)}|\n" if line[:1] == ["---"] else f"| {' | '.join(line)} |\n" for line in lines)
