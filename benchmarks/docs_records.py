"""Reduce results to the numbers that figures of the docs are drawn from.

    polargrad run theory --out runs/theory
    polargrad run completion --eval-every 10 --out runs/completion
    python benchmarks/docs_records.py runs/theory runs/preconditioning runs/bench-polar runs/completion

Of a study it writes docs/records/STUDY.jsonl with one record a line, the machine first; of `polargrad bench polar`
docs/records/polar-DTYPE.csv; of a folder of run folders docs/records/FOLDER.jsonl with one run a line.
`docs/hooks/figures.py` draws them when the docs are built.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polargrad.lab.run.folder import find_runs, read_run

RECORDS = Path(__file__).parents[1] / "docs" / "records"
# What the figures need of each kind of record.
KEYS = {
    "descent": ("claim", "guaranteed_rate", "measured_rate"),
    "plateau": ("shape", "kappa", "steps", "levels", "bounds"),
    "consistency": ("optimizer", "gradient_norms", "update_norms"),
    "noise": ("against", "optimizer", "noise", "steps", "variances", "levels", "bounds"),
    "bias": ("predicted",),
    "measurement": (
        *("optimizer", "hessian_kappa", "preconditioned_kappa", "gradient_kappa", "direction_kappa", "efficiency"),
    ),
}
SERIES = (
    ("step", ("seconds", "loss")),
    ("eval", ("seconds", "gap")),
    ("eval", ("seconds", "val_loss")),
    ("eval", ("seconds", "residual_condition_number")),
    ("matrix", ("condition_number", "nuclear_norm")),
)
MEASUREMENT = ("contender", "ours", "shape", "dtype", "spectrum", "multiples", "error")


def reduced(folder: Path) -> Path:
    """Write the record of a study's folder and return its path."""
    name = json.loads((folder / "study.json").read_text())["study"]
    lines = [{"kind": "environment", **json.loads((folder / "environment.json").read_text())}]
    for text in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(text)
        if record["kind"] in KEYS:
            lines.append({"kind": record["kind"], **{key: rounded(record.get(key)) for key in KEYS[record["kind"]]}})
    path = RECORDS / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")
    return path


def reduced_runs(folder: Path) -> Path:
    """Write what figures show of the runs in a folder, one run a line, and return the path."""
    lines: list[dict[str, Any]] = []
    for run in map(read_run, find_runs(folder)):
        if not lines:
            lines.append({"kind": "environment", **run.environment})
        lines.append({"kind": "run", "recipe": run.spec.recipe, "status": run.status, "series": []})
        for kind, keys in SERIES:
            found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
            for record in run.of_kind(kind):
                if all(record.get(key) is not None for key in keys):
                    found.setdefault((record.get("parameter", ""), record.get("role", "")), []).append(record)
            for (parameter, role), records in found.items():
                # The first ten, where most happens, and about a hundred others.
                kept = records[:10] + records[10 :: max(1, len(records) // 100)]
                columns = {key: [rounded(record[key], 4) for record in kept] for key in ("step", *keys)}
                lines[-1]["series"].append({"kind": kind, "parameter": parameter, "role": role, **columns})
    path = RECORDS / f"{folder.name}.jsonl"
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")
    return path


def reduced_benchmark(folder: Path) -> list[Path]:
    """Write the record of each dtype of a benchmark of the polar engine and return their paths."""
    rows = list(csv.DictReader((folder / "polar.csv").read_text().splitlines()))
    paths = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        paths.append(RECORDS / f"polar-{dtype}.csv")
        with paths[-1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, MEASUREMENT, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            for row in rows:
                if row["dtype"] == dtype and row["multiples"]:
                    numbers = {"multiples": f"{float(row['multiples']):.3g}", "error": f"{float(row['error']):.2g}"}
                    writer.writerow({**row, **numbers, "ours": int(row["ours"] == "True")})
    return paths


def rounded(value: Any, digits: int = 5) -> Any:
    """Numbers to the digits that a figure shows. Rates are close to 1, and their distance from it counts."""
    if isinstance(value, list):
        return [rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits if not 0.9 < value < 1.0 else 9}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    RECORDS.mkdir(exist_ok=True)
    for given in map(Path, sys.argv[1:]):
        if (given / "polar.csv").is_file():
            print(*reduced_benchmark(given), sep="\n")
        else:
            print(reduced(given) if (given / "study.json").is_file() else reduced_runs(given))
