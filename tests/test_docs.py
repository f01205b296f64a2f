"""Pages of the docs: figures from records, formulas, notebooks, a page for each public object, tables."""

import csv
import importlib
import inspect
import json
import re
from importlib import util
from pathlib import Path

import markdown
import pytest

from polargrad.lab.studies.engine import PolarMeasurement
from polargrad.lab.studies.engine_report import write
from polargrad.lab.studies.study import StudyFolder
from tests.runs import written_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def hook(name):
    return module(ROOT / "docs" / "hooks" / f"{name}.py")


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


def test_runs_are_reduced_to_what_their_figures_need(records, tmp_path):
    folder = tmp_path / "toy"
    written_run(folder / "one", [(0, 8.0), (5, 6.12345), (10, 5.0)])
    _, run = (json.loads(line) for line in records.reduced_runs(folder).read_text().splitlines())
    assert run["status"] == "finished"
    evaluations = next(series for series in run["series"] if series["kind"] == "eval")
    assert (evaluations["step"], evaluations["val_loss"]) == ([0, 5, 10], [8.0, 6.123, 5.0])


def test_every_figure_of_the_docs_is_drawn_from_a_record():
    linked = set()
    for page in (ROOT / "docs").glob("*.md"):
        linked |= set(re.findall(r"\]\(figures/([\w.-]+)\.svg\)", page.read_text()))
    drawn = hook("figures").drawn()
    assert linked == set(drawn)
    assert all(figure.canvas.axes for figure in drawn.values())


def html(text):
    return markdown.markdown(text, extensions=[hook("text").Text(), "tables"])


def test_formulas_become_mathml():
    inline = html("The factor $U$ has $\\lVert U\\rVert_F^2 = r$, *so*.")
    assert inline.count("<math ") == 2
    assert "<em>so</em>" in inline
    assert 'display="block"' in html("$$A = U H,$$")
    assert "<math" not in html("`$x$` costs $5, and $PATH")
    assert html("| a |\n|---|\n| $\\alpha_i$ |").count("<math ") == 1


def test_docstrings_are_no_html_and_no_emphasis():
    assert html("nu = <G, U~> <b>v</b>") == "<p>nu = &lt;G, U~&gt; &lt;b&gt;v&lt;/b&gt;</p>"
    assert html("_x_ and v_i, __all__ <br>") == "<p>_x_ and v_i, __all__ &lt;br&gt;</p>"
    assert (
        html("min(f - f*, 2 * a * b) of f*, and (*batch, m, n)")
        == "<p>min(f - f*, 2 * a * b) of f*, and (*batch, m, n)</p>"
    )
    assert html("*a* **b c** (*d*)") == "<p><em>a</em> <strong>b c</strong> (<em>d</em>)</p>"
    assert html("<div>\n*x*\n</div>").startswith("<p>&lt;div&gt;")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_formula_is_known_to_the_converter(page):
    """What latex2mathml does not know it leaves as a backslash."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for formula in re.findall(r"<math .*?</math>", html(text), flags=re.DOTALL):
        assert "\\" not in formula, formula


def cells(row):
    """Of a row of a Markdown table; a | inside of code or after a backslash ends none."""
    return len(re.sub(r"`[^`]*`|\\\|", "", row).strip().strip("|").split("|"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_of_tables_have_the_cells_of_their_head(page):
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        head, *rows = table.splitlines()
        for row in rows:
            assert cells(row) == cells(head), row


def test_a_norm_that_cuts_a_cell_is_seen():
    assert cells("| a | ||M||_F |") != cells("| a | `||M||` |") == 2


def test_every_public_object_has_a_page():
    api = hook("api")
    pages = [name for runs in api.listed().values() for run in runs for name in run]
    assert len(pages) == len(set(pages))
    documented = {id(api.found(name)) for name in pages}
    assert all(api.summary(name) for name in pages)
    packages = ["", ".linalg", ".optim", ".geometry", ".diagnostics", ".distributed", ".lab", ".lab.train", ".lab.lm"]
    for package in (*packages, ".lab.matrix", ".geometry.preconditioners", ".integrations.torchtitan"):
        loaded = importlib.import_module(f"polargrad{package}")
        for name in loaded.__all__:
            value = getattr(loaded, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                assert id(value) in documented, f"{loaded.__name__}.{name} has no page; name it in docs/api"


def _is_there(name):
    """Whether a dotted name leads from the package to an object."""
    found, parts = importlib.import_module("polargrad"), name.split(".")
    for i, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:i]))
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


def test_every_name_of_the_package_that_is_written_leads_to_something():
    sources = [path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*.py")]
    written = {
        (name, path.name)
        for path in [*PAGES, *(ROOT / "docs" / "api").glob("*.md"), *NOTEBOOKS, *sources]
        for name in re.findall(r"(?<![\w./-])polargrad(?:\.[A-Za-z_]\w*)+", path.read_text(encoding="utf-8"))
    }
    entry_points = {f"polargrad.{group}" for group in ("data", "geometries", "methods", "problems", "recipes")}
    assert len(written) > 100
    assert {pair for pair in written if pair[0] not in entry_points and not _is_there(pair[0])} == set()
    assert not _is_there("polargrad.distributed.save")
    assert _is_there("polargrad.distributed.checkpoint.save")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_hold_their_outputs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    kept = [cell["outputs"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    made = hook("notebooks").execute(path, tmp_path)
    assert [[o["output_type"] for o in outputs] for outputs in made] == [
        [o["output_type"] for o in outputs] for outputs in kept
    ]
    text, figures = hook("notebooks").page(path)
    assert figures
    assert all(f"({name})" in text for name in figures)


def test_a_notebook_that_fails_is_seen(tmp_path):
    path = tmp_path / "bad.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}))
    with pytest.raises(ZeroDivisionError):
        hook("notebooks").execute(path, tmp_path)
