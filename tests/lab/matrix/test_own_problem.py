"""A problem from outside the package: one file, registered by one line, with its command, report and resume."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from polargrad.lab.matrix import PROBLEMS, MatrixQuadratic, Problem, register
from polargrad.lab.matrix.configurations import tuned

# As CONTRIBUTING walks it.
SHRINKAGE = '''
import torch
from polargrad.lab.matrix import Problem, register
from polargrad.lab.matrix.configurations import tuned
from polargrad.lab.matrix.problem import check_shapes, check_sizes, generator, uniform

@register
class Shrinkage(Problem):
    """f(X) = 1/2 ||X - M||^2 + w/2 ||X||^2."""

    kind = "shrinkage"
    small = {"rows": 6, "columns": 4}
    experiment = tuned(
        "Shrinkage", "f(X) = ½ ‖X − M‖² + w/2 ‖X‖²", 60, {"polargrad": 1.0, "adam": 0.1, "gd": 1.0}
    )

    def __init__(self, M, X, w):
        check_shapes(M=(M, "p q"), X=(X, "p q"))
        super().__init__({"X": X})
        self.M, self.w = M, w

    @classmethod
    def draw(cls, seed, *, rows=30, columns=20, weight=0.5):
        check_sizes(rows=rows, columns=columns)
        M = torch.randn(rows, columns, generator=generator(seed))
        return cls(M, uniform(rows, columns, draw=generator(seed)), weight)

    @classmethod
    def expected_curvature(cls, sizes):
        return 1.0 + sizes.weight, min(sizes.rows, sizes.columns)

    def value(self, point):
        return 0.5 * (point["X"] - self.M).square().sum() + 0.5 * self.w * point["X"].square().sum()

    @property
    def minimum(self):
        return float(self.float64.value({"X": self.float64.M / (1.0 + self.w)}))
'''


def _run(folder, code):
    """In a process of its own that finds the file."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "shrinkage.py").write_text(SHRINKAGE, encoding="utf-8")
    return tmp_path


def test_a_problem_of_ones_own_is_listed_run_reported_and_resumed(outside):
    said = _run(
        outside,
        """
import sys; sys.path.insert(0, ".")
import shrinkage
from polargrad.lab.cli.main import main
quick = ["--size", "small", "--steps", "40", "--only", "polargrad", "gd", "--diagnostics", "0"]
codes = [
    main(["list"]),
    main(["run", "shrinkage", *quick, "--set", "weight=0.25", "--out", "out"]),
    main(["report", "out", "--out", "again.html"]),
    main(["resume", "out"]),
]
assert codes == [0, 0, 0, 0], codes
""",
    )
    assert "Shrinkage, 3" in said
    assert "Lowest at the end" in said
    spec = json.loads((outside / "out" / "gd" / "spec.json").read_text())
    assert spec["objective"] == {"kind": "shrinkage", "rows": 6, "columns": 4, "weight": 0.25}
    assert spec["optimizer"]["matrix"]["lr"] == pytest.approx(1.0 / 1.25)
    gaps = [json.loads(line) for line in (outside / "out" / "polargrad" / "records.jsonl").read_text().splitlines()]
    ends = [record["gap"] for record in gaps if record["kind"] == "eval"]
    assert ends[-1] < 1e-2 * ends[0]
    assert "Shrinkage" in (outside / "again.html").read_text(encoding="utf-8")


def test_its_spec_travels_to_another_process(outside):
    """As the workers of --jobs take it: unpickling imports the problem's module."""
    made = """
import sys, pickle; sys.path.insert(0, ".")
from shrinkage import Shrinkage
from polargrad.lab.studies.matrix.experiments import ExperimentOptions
(spec,) = ExperimentOptions(only=["gd"], size="small").specs(Shrinkage)
open("spec.pickle", "wb").write(pickle.dumps(spec))
"""
    _run(outside, made)
    read = """
import sys, pickle; sys.path.insert(0, ".")
print(pickle.load(open("spec.pickle", "rb")).objective.build(0).kind)
"""
    assert _run(outside, read).strip() == "shrinkage"


def test_an_unknown_optimizer_in_its_table_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'lion'; the allowed names are 'polargrad', "):
        tuned("Shrinkage", "", 10, {"lion": 1.0})


def test_a_kind_that_is_taken_is_refused():
    class Impostor(Problem):
        kind = "quadratic"

    with pytest.raises(ValueError, match="matrix problem 'quadratic' is taken by MatrixQuadratic"):
        register(Impostor)
    assert PROBLEMS["quadratic"] is MatrixQuadratic


def test_a_setting_without_a_type_is_refused():
    class Untyped(Problem):
        kind = "untyped"

        @classmethod
        def draw(cls, seed, *, sizes=(3, 4)): ...

    with pytest.raises(TypeError, match=r"setting sizes .* has the default \(3, 4\); give an int, a float or a str"):
        register(Untyped)
    assert "untyped" not in PROBLEMS


def test_a_start_without_its_matrices_is_refused():
    with pytest.raises(ValueError, match="quadratic has the matrices X, got Z"):
        Problem.__init__(MatrixQuadratic.draw(0, rows=4, m=2, n=2, columns=3), {"Z": None})
