"""Figures of the docs: recorded numbers are reduced from what studies write, and drawn when the docs are built."""

import csv
import json
import re
from importlib import util
from pathlib import Path

import pytest

from polargrad.lab.studies.engine import PolarMeasurement
from polargrad.lab.studies.engine_report import write
from polargrad.lab.studies.study import StudyFolder

ROOT = Path(__file__).parents[1]


def module(path):
    spec = util.spec_from_file_location(path.stem, path)
    loaded = util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def records(tmp_path, monkeypatch):
    loaded = module(ROOT / "benchmarks" / "docs_records.py")
    monkeypatch.setattr(loaded, "RECORDS", tmp_path)
    return loaded


def test_a_study_is_reduced_to_what_its_figures_need(records, tmp_path):
    with StudyFolder(tmp_path / "study", "toy", {}) as folder:
        folder.record("bias", predicted=1.23456789, other=[1.0] * 1000)
        folder.record("violation", step=1)
        folder.record("descent", claim="exact", guaranteed_rate=0.99912345678, measured_rate=None, gaps=[1.0])
    lines = [json.loads(line) for line in records.reduced(tmp_path / "study").read_text().splitlines()]
    assert "torch" in lines[0]
    assert lines[1:] == [
        {"kind": "bias", "predicted": 1.2346},
        {"kind": "descent", "claim": "exact", "guaranteed_rate": 0.999123457, "measured_rate": None},
    ]


def test_a_benchmark_is_reduced_to_what_its_plot_needs(records, tmp_path):
    measured = [
        PolarMeasurement("a", True, "3x2", "float32", "gaussian", multiples=2.3456, error=1.234e-7),
        PolarMeasurement("b", False, "3x2", "float32", "gaussian", note="fails"),
    ]
    write(measured, tmp_path / "bench")
    (path,) = records.reduced_benchmark(tmp_path / "bench")
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert list(row.values()) == ["a", "1", "3x2", "float32", "gaussian", "2.35", "1.2e-07"]


def test_every_figure_of_the_docs_is_drawn_from_a_record():
    linked = set()
    for page in (ROOT / "docs").glob("*.md"):
        linked |= set(re.findall(r"\]\(figures/([\w.-]+)\.svg\)", page.read_text()))
    drawn = module(ROOT / "docs" / "hooks" / "figures.py").drawn()
    assert linked == set(drawn)
    assert all(figure.canvas.axes for figure in drawn.values())
