"""docs/own-optimizer.md: its files and commands as they stand there, on a model that runs in a moment."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import polargrad
from polargrad.geometry import GEOMETRIES
from polargrad.lab import recipes
from polargrad.lab.cli import main as cli
from polargrad.lab.lm.sources import SOURCES
from polargrad.lab.matrix import PROBLEMS
from polargrad.lab.report import curves
from polargrad.lab.run import runner
from polargrad.lab.run.folder import find_runs, read_run
from polargrad.lab.train import CheckpointError, CheckpointPolicy
from polargrad.linalg import METHODS
from polargrad.outside import load
from tests.runs import StopsAt, patch_recipes

PAGE = (Path(polargrad.__file__).parents[2] / "docs" / "own-optimizer.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r'^```python title="([\w.]+)"\n(.*?)^```', PAGE, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's files in the working folder, and recipes that run in a moment."""
    tables = [(table, set(table)) for table in (METHODS, GEOMETRIES, PROBLEMS, SOURCES)]
    patch_recipes(tmp_path, monkeypatch, steps=4)
    recipes.RECIPES["muon+adamw"] = recipes.Recipe("muon+adamw", "", recipes.RECIPES["polar"].optimizer)
    monkeypatch.setattr(curves, "draw", lambda run: [])
    for name, block in BLOCKS.items():
        if name.endswith(".py"):
            (tmp_path / name).write_text(block, encoding="utf-8")
    yield tmp_path
    for table, before in tables:
        for key in set(table) - before:
            del table[key]


def run(line):
    return cli.main(shlex.split(line)[1:])


def commands_with(text):
    found = [line for line in COMMANDS if text in line]
    assert found
    return found


BAD = """
class NotScalar(Shrinkage):
    def value(self, point):
        return point["X"] - self.M

class NotFinite(Shrinkage):
    def value(self, point):
        return super().value(point) * float("nan")

class NoTensor(Shrinkage):
    def value(self, point):
        return 1.0

class Detached(Shrinkage):
    def value(self, point):
        return super().value(point).detach()

class Nothing(Shrinkage):
    @classmethod
    def draw(cls, seed, *, rows=30, columns=20, weight=0.5):
        return None

class Lowest(Shrinkage):
    minimum = float("nan")
"""


def test_the_example_is_short():
    assert len(BLOCKS["mine.py"].splitlines()) <= 32


@pytest.mark.slow
def test_its_optimizer_is_compared_tuned_resumed_and_reported(page, capsys):
    for line in [*commands_with("--set mine.lr"), *commands_with("runs/mine")]:
        assert run(line) == 0, capsys.readouterr().err
    ended = [read_run(path) for path in find_runs(page / "runs" / "mine")]
    tried = {r.spec.learning_rates["hidden"] for r in ended if r.spec.recipe == "mine.MyOptimizer"}
    assert len(tried) >= 3
    seeds = [r for r in ended if r.spec.name.startswith("mine.MyOptimizer@seed=")]
    assert [r.spec.seed for r in seeds] == [42, 43, 44]
    assert "mine.MyOptimizer" in (page / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    code = seeds[0].environment["code"]
    (name,) = code
    assert name == f"{page / 'mine.py'}:MyOptimizer"
    assert set(code[name]) == {"file", "sha256"}


def test_a_run_of_it_goes_on_to_the_last_bit_and_not_with_other_code(page):
    spec = recipes.spec_of("mine.py:MyOptimizer+adamw", steps=6, changes=["hidden.beta=0.5"])
    whole = runner.run(spec, "whole")

    with pytest.raises(runner.Interrupted):
        runner.run(spec, "stopped", progress=StopsAt(3), policy=CheckpointPolicy(every_steps=1))
    text = (page / "mine.py").read_text()
    (page / "mine.py").write_text(text + "# changed\n")
    with pytest.raises(CheckpointError, match=r"mine\.py:MyOptimizer has changed since stopped was begun"):
        runner.resume("stopped")
    environment = page / "stopped" / "environment.json"
    environment.write_text(environment.read_text()[:-40])
    with pytest.raises(CheckpointError, match=r"is of another configuration: code\..*mine\.py:MyOptimizer was"):
        runner.resume("stopped")  # the checkpoint knows, where the record of the run is damaged
    (page / "mine.py").write_text(text)
    resumed = runner.resume("stopped")
    assert [r["val_loss"] for r in resumed.of_kind("eval")] == [r["val_loss"] for r in whole.of_kind("eval")]
    assert any(r["event"] == "resumed" and "step" in r["message"] for r in resumed.of_kind("event"))


def test_from_a_notebook(page, monkeypatch):
    pandas = pytest.importorskip("pandas")
    block = BLOCKS["notebook"].replace("steps=100", "steps=2, out='out'")
    assert "steps=2" in block
    names: dict[str, object] = {}
    exec(compile(block, "notebook", "exec"), names)
    results = names["results"]
    table = pandas.DataFrame(results)
    assert list(table["run"]) == ["adamw", "mine.MyOptimizer"]
    assert (table["steps"] == 2).all()
    assert table["val_loss"].notna().all()
    assert table.set_index("run")["hidden.lr"]["mine.MyOptimizer"] == 0.003
    assert results.report == Path("out/report.html")
    rows = polargrad.lab.compare(load("mine.py:MyOptimizer")[1], steps=1, out="again")
    assert rows[0]["recipe"].endswith("MyOptimizer")


def test_its_polar_method_is_swept(page, capsys):
    A = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(polargrad.polar_factor(A, "methods.py:Halley"), polargrad.polar_factor(A, "svd"))
    (line,) = commands_with("hidden.method")
    assert run(line + " --steps 2 --out swept") == 0, capsys.readouterr().err
    named = {r.spec.optimizer["hidden"]["method"] for r in map(read_run, find_runs(page / "swept"))}
    assert named == {"newton-schulz", "methods.py:Halley"}
    assert all(
        ("code" in r.environment) == (r.spec.optimizer["hidden"]["method"] == "methods.py:Halley")
        for r in map(read_run, find_runs(page / "swept"))
    )


def test_its_geometry_steps_a_model(page, capsys):
    line = "polargrad run polar --set hidden.geometry=norms.py:TopSingular --set hidden.method=auto --out top"
    assert run(line) == 0, capsys.readouterr().err
    assert read_run(page / "top").status == "finished"


def test_its_problem_is_run_resumed_and_reported(page, capsys):
    for line in commands_with("runs/shrinkage"):
        assert run(line) == 0, capsys.readouterr().err
    folder = page / "runs" / "shrinkage"
    spec = json.loads((folder / "gd" / "spec.json").read_text())
    assert spec["objective"] == {"kind": f"{page / 'problems.py'}:Shrinkage", "rows": 6, "columns": 4, "weight": 0.25}
    gaps = [record["gap"] for record in read_run(folder / "polargrad").of_kind("eval")]
    assert gaps[-1] < 1e-2 * gaps[0]
    (folder / "gd" / "summary.json").unlink()
    assert run("polargrad resume runs/shrinkage --jobs 2") == 0, capsys.readouterr().err
    assert read_run(folder / "gd").status == "finished"


def test_its_source_is_trained_on(page, capsys):
    line = commands_with("texts.py:counting")[0] + " --recipe polar"
    assert run(line) == 0, capsys.readouterr().err
    assert read_run(page / "runs" / "counting").environment["corpus"] == "counting"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare adamw mine.py:Absent", "mine.py has no 'Absent'; it has MyOptimizer"),
        ("compare adamw nosuch.py:Mine", "there is no file nosuch.py"),
        (
            "compare adamw problems.py:Shrinkage",
            "is a class (Shrinkage, Problem, ABC), and not an",
        ),
        ("compare adamw mine.py:MyOptimizer --set mine.momentum=1", "unknown option 'momentum'; the allowed names are"),
        ("compare adamw mine.py:MyOptimizer --set yours.lr=1", "--set yours.lr=1 names none of the recipes"),
        ("compare adamw mine.py:MyOptimizer --set mine.lr=-1", "the lr of 'hidden' is -1"),
        ("compare mine.py:MyOptimizer mine.py:MyOptimizer", "mine.MyOptimizer is given twice"),
        ("run mine.py", "mine.py is a whole file; write mine.py:NAME for one thing in it; it has MyOptimizer"),
        ("run norms.py:TopSingular", "and not an optimizer"),
        ("run nosuch", "unknown recipe, matrix problem or study 'nosuch'"),
        ("run bad.py:NotScalar", "NotScalar.value must return a tensor without dimensions; got shape (30, 20)"),
        ("run bad.py:NotFinite", "NotFinite.value is nan at the initial point"),
        ("run bad.py:NoTensor", "NoTensor.value must return a tensor without dimensions; got float"),
        ("run bad.py:Detached", "Detached.value does not depend on the point by operations that autograd follows"),
        ("run bad.py:Nothing", "Nothing.draw must return the problem; got NoneType"),
        ("run bad.py:Lowest", "Lowest.minimum must be a finite float, or None where it is not known; got nan"),
        ("run problems.py:Shrinkage --set rows=-3", "rows"),
        ("run problems.py:Shrinkage --set wieght=1", "did you mean 'weight'"),
        ("pretrain --data mine.py:MyOptimizer --layers 1 --recipe polar", "gave no source: TypeError"),
        ("pretrain --data texts.py:Source --layers 1 --recipe polar", "gave no source: TypeError"),
    ],
)
def test_bad_input_is_one_sentence(page, capsys, arguments, message):
    Path("bad.py").write_text(BLOCKS["problems.py"] + BAD)
    code = run(f"polargrad {arguments}")
    lines = capsys.readouterr().err.splitlines()
    said = lines[-1]
    assert code == 2, said
    assert message in said
    assert not [line for line in lines if line.startswith("Results go to")]
    assert not list(page.glob("runs/*/*"))
