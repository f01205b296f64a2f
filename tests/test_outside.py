"""Code from outside of the package: what is loaded, under which name, and what is refused."""

import sys
from importlib.metadata import EntryPoint

import pytest
import torch

import polargrad
from polargrad import PolarGrad, outside
from polargrad.geometry import GEOMETRIES
from polargrad.lab.recipes import RECIPES, recipe
from polargrad.linalg import METHODS
from polargrad.outside import is_reference, load, origin

FILE = """
from dataclasses import dataclass
import torch
from beside import SCALE
from polargrad import PolarMethod
from polargrad.geometry import Geometry
from polargrad.linalg.method import IterationResult


@dataclass(frozen=True)
class Eigen(PolarMethod):
    def iterate(self, X):
        w, V = torch.linalg.eigh(X.mH @ X)
        return IterationResult(X @ (V * w.rsqrt().unsqueeze(-2)) @ V.mH, steps=1)


@dataclass(frozen=True)
class Frobenius(Geometry):
    power: int = 1

    def lmo(self, G):
        return G / G.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-30)

    def squared_length(self, m, n):
        return 1.0


@dataclass(frozen=True)
class Weighted(Frobenius):
    weights: torch.Tensor = None


@dataclass(frozen=True)
class Turned(Eigen):
    def iterate(self, X):
        return IterationResult(X.mH, steps=1)


@dataclass(frozen=True)
class Plain(Eigen):
    def iterate(self, X):
        return X


@dataclass(frozen=True)
class TurnedGeometry(Frobenius):
    def lmo(self, G):
        return G.mT


@dataclass(frozen=True)
class NoDirection(Frobenius):
    def lmo(self, G):
        return None
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "beside.py").write_text("SCALE = 1\n")
    path = tmp_path / "own.py"
    path.write_text(FILE)
    yield path
    sys.modules.pop("beside", None)
    outside._BESIDE.pop("beside", None)
    for table in (METHODS, GEOMETRIES, RECIPES):
        for key in [key for key in table if str(tmp_path) in key or key in ("Frobenius", "Weighted")]:
            del table[key]


def weight():
    return torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))


def test_a_method_from_a_file(file):
    A = torch.randn(2, 6, 4, dtype=torch.float64)
    error = polargrad.polar_factor(A, f"{file}:Eigen") - polargrad.polar_factor(A, "svd")
    assert error.abs().max() < 1e4 * torch.finfo(A.dtype).eps
    W = weight()
    optimizer = PolarGrad([W], method=f"{file}:Eigen")
    W.grad = torch.randn(5, 3)
    optimizer.step()
    assert optimizer.param_groups[0]["method"] == f"{file}:Eigen"


@pytest.mark.parametrize("by", ["reference", "object", "group"])
def test_a_geometry_from_a_file_steps_as_ours(file, by):
    made = load(f"{file}:Frobenius")[1](power=2)
    reference = {"name": f"{file}:Frobenius", "power": 2}
    W, V = weight(), weight()
    options = {"lr": 0.1, "momentum": 0.0, "scale": "none"}
    ours = PolarGrad([V], geometry="frobenius", **options)
    if by == "group":
        theirs = PolarGrad([{"params": [W], "geometry": made}], **options)
    else:
        theirs = PolarGrad([W], geometry=made if by == "object" else reference, **options)
    W.grad, V.grad = torch.ones(5, 3), torch.ones(5, 3)
    theirs.step()
    ours.step()
    torch.testing.assert_close(W, V)
    held = theirs.param_groups[0]["geometry"]
    assert held["power"] == 2
    assert held["name"] == (reference["name"] if by == "reference" else "Frobenius")
    theirs.load_state_dict(theirs.state_dict())


def test_roles_take_a_geometry_object(file):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    made = load(f"{file}:Frobenius")[1]()
    groups = polargrad.parameter_groups(model, hidden={"geometry": made, "scale": "none"})
    assert groups[0]["geometry"]["name"] == "Frobenius"


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("method", "Turned", r"Turned\.iterate must return factors of X's shape \(1, 5, 3\); got \(1, 3, 5\)"),
        ("method", "Plain", r"Plain\.iterate must return an IterationResult; got Tensor"),
        ("geometry", "TurnedGeometry", r"TurnedGeometry\.lmo must return directions of G's shape \(1, 5, 3\)"),
        ("geometry", "NoDirection", r"NoDirection\.lmo must return directions of G's shape"),
    ],
)
def test_what_returns_no_direction_is_refused(file, option, name, message):
    W = weight()
    before = W.detach().clone()
    optimizer = PolarGrad([W], **{option: f"{file}:{name}"})
    W.grad = torch.ones_like(W)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(W.detach(), before)
    if option == "method":
        with pytest.raises(ValueError, match=message):
            polargrad.polar(W.detach(), f"{file}:{name}")


def test_a_subclass_without_a_name_is_not_taken_for_its_base(file):
    base = load(f"{file}:Frobenius")[1]

    class Twice(base):
        def lmo(self, G):
            return 2.0 * super().lmo(G)

    assert (base.name, Twice.name) == ("Frobenius", "Twice")
    del GEOMETRIES[PolarGrad([weight()], geometry=Twice()).param_groups[0]["geometry"]["name"]]


def test_what_a_group_cannot_hold_is_refused(file):
    weighted = load(f"{file}:Weighted")[1]
    with pytest.raises(ValueError, match="weights of geometry='Weighted' is a Tensor; its fields are plain data"):
        PolarGrad([weight()], geometry=weighted(weights=torch.ones(2)))


def test_a_state_runs_no_code(file, tmp_path):
    """A reference in a state that was not loaded by the program stays unloaded."""
    (tmp_path / "trap.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n")
    optimizer = PolarGrad([weight()])
    for option in ("geometry", "method"):
        state = optimizer.state_dict()
        state["param_groups"][0][option] = f"{tmp_path / 'trap.py'}:Trap"
        with pytest.raises(ValueError, match="code from outside that is not loaded here"):
            optimizer.load_state_dict(state)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(ValueError, match="has no 'Trap'"):  # the trap does spring where code is asked for
        PolarGrad([weight()], geometry=f"{tmp_path / 'trap.py'}:Trap")
    assert (tmp_path / "sprung").exists()


def test_a_file_that_changed_is_loaded_again(file):
    assert GEOMETRIES[GEOMETRIES.key(f"{file}:Frobenius")]().power == 1
    before = origin(load(f"{file}:Frobenius")[1])
    assert load(f"{file}:Frobenius")[1] is load(f"{file}:Frobenius")[1]
    file.write_text(FILE.replace("power: int = 1", "power: int = 3"))
    assert load(f"{file}:Frobenius")[1]().power == 3
    assert GEOMETRIES[GEOMETRIES.key(f"{file}:Frobenius")]().power == 3
    after = origin(load(f"{file}:Frobenius")[1])
    assert before["file"] == after["file"] == str(file)
    assert before["sha256"] != after["sha256"]


@pytest.fixture
def folders(tmp_path):
    """Two folders, each with a file and a module that it imports."""
    modules, path = set(sys.modules), list(sys.path)
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own_helper.py").write_text(f"VALUE = {number}\n")
        (tmp_path / name / "mine.py").write_text("from own_helper import VALUE\nclass Mine:\n    value = VALUE\n")
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    for name in [name for name, files in outside._BESIDE.items() if str(tmp_path) in next(iter(files))]:
        del outside._BESIDE[name]
    sys.path[:] = path


@pytest.mark.parametrize("late", [False, True])
def test_a_file_never_gets_the_module_of_another_folder(folders, late):
    if late:
        for name in "ab":
            (folders / name / "mine.py").write_text("class Mine:\n    def value(self):\n        import own_helper\n")
    assert load(f"{folders / 'a/mine.py'}:Mine")[1]
    with pytest.raises(ValueError, match=r"imports own_helper, which lies beside it, and .*a/own_helper.py has that"):
        load(f"{folders / 'b/mine.py'}:Mine")
    (folders / "b" / "own_helper.py").rename(folders / "b" / "other_helper.py")
    (folders / "b" / "mine.py").write_text("from other_helper import VALUE\nclass Mine:\n    value = VALUE\n")
    assert load(f"{folders / 'b/mine.py'}:Mine")[1].value == 1


def test_a_module_beside_a_file_may_be_a_link(folders):
    (folders / "elsewhere.py").write_text("VALUE = 7\n")
    (folders / "a" / "own_helper.py").unlink()
    (folders / "a" / "own_helper.py").symlink_to(folders / "elsewhere.py")
    assert load(f"{folders / 'a/mine.py'}:Mine")[1].value == 7
    (folders / "elsewhere.py").write_text("VALUE = 8\n")
    assert load(f"{folders / 'a/mine.py'}:Mine")[1].value == 8


def test_a_module_beside_a_file_goes_before_an_installed_one(folders, monkeypatch):
    monkeypatch.syspath_prepend(str(folders / "a"))
    assert load(f"{folders / 'b/mine.py'}:Mine")[1].value == 1


def test_a_changed_module_beside_a_file_is_noticed_and_loaded_again(folders):
    file, helper = folders / "a" / "mine.py", folders / "a" / "own_helper.py"
    (folders / "a" / "package").mkdir()
    (folders / "a" / "package" / "__init__.py").write_text("from package.inner import OTHER\n")
    (folders / "a" / "package" / "inner.py").write_text("OTHER = 1\n")
    helper.write_text("from package import OTHER as VALUE\n")
    made = load(f"{file}:Mine")[1]
    assert made.value == 1
    before = origin(made)
    assert load(f"{file}:Mine")[1] is made
    (folders / "a" / "package" / "inner.py").write_text("OTHER = 2\n")
    again = load(f"{file}:Mine")[1]
    assert again.value == 2
    after = origin(again)
    assert before["sha256"] == after["sha256"]
    names = ["own_helper.py", "package/__init__.py", "package/inner.py"]
    assert list(after["beside"]) == [str(folders / "a" / name) for name in names]
    assert [before["beside"][name] == after["beside"][name] for name in after["beside"]] == [True, True, False]
    helper.write_text("broken(\n")
    with pytest.raises(ValueError, match="cannot be imported: SyntaxError"):
        load(f"{file}:Mine")
    helper.write_text("VALUE = 5\n")
    assert load(f"{file}:Mine")[1].value == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def broken(:\n", "cannot be imported: SyntaxError: "),
        ("import nosuchpackage\n", "cannot be imported: ModuleNotFoundError: No module named 'nosuchpackage'"),
        ("raise SystemExit\n", "cannot be imported: SystemExit"),
        ("from . import own\n", "relative import with no known parent package; name a module of a package as package"),
        ("x = 1\n", "has no 'Mine'; it defines nothing"),
    ],
)
def test_a_file_that_does_not_load(tmp_path, content, message):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(f"{tmp_path / 'bad.py'}:Mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nosuch.py:Mine", FileNotFoundError, r"there is no file nosuch\.py"),
        ("no.such.module:Mine", ValueError, "cannot be imported"),
        (":Mine", ValueError, "':Mine' names no file or module"),
        ("torch.optim:NoSuch", ValueError, "has no 'NoSuch'"),
    ],
)
def test_a_reference_to_nothing(reference, error, message):
    with pytest.raises(error, match=message):
        load(reference)


def test_a_whole_file_says_what_is_in_it(file):
    with pytest.raises(ValueError, match=r"own\.py is a whole file; write .*own\.py:NAME .*it has Eigen, Frobenius"):
        load(str(file))

    with pytest.raises(ValueError, match=r"own\.py is a whole file; write [^:]*own\.py:NAME for one"):
        load(f"{file}:")
    with pytest.raises(ValueError, match=r"torch\.optim is a whole module; write torch\.optim:NAME for one"):
        load("torch.optim:")


def test_what_is_no_reference():
    assert not any(map(is_reference, ("adamw", "muon+adamw", "spec.json", "runs/x/spec.json", "", None, 3)))


def test_an_entry_point_is_a_name(monkeypatch):
    def announce(*points):
        monkeypatch.setattr(outside, "entry_points", lambda group: [p for p in points if p.group == group])

    announce(EntryPoint("radam", "torch.optim:RAdam", "polargrad.recipes"))
    assert recipe("radam").optimizer["hidden"]["rule"] == "torch.optim:RAdam"
    announce(EntryPoint("broken", "nosuchpackage.inside:Mine", "polargrad.recipes"))
    with pytest.raises(ValueError, match=r"'broken' of polargrad\.recipes: nosuchpackage\.inside cannot be imported"):
        recipe("broken")
    announce(EntryPoint("wrong", "json:dumps", "polargrad.recipes"))
    with pytest.raises(ValueError, match="wrong is a function, and not an optimizer"):
        recipe("wrong")
