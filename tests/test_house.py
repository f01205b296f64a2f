"""The rules of the house: imports go one way, the core is light, files stay readable."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import polargrad

SOURCE = Path(polargrad.__file__).parent
# Each layer and the others that it may import besides itself.
LIBRARY = ("outside", "linalg", "geometry", "optim", "diagnostics", "distributed")
TRAIN = (*LIBRARY, "lab.options", "lab.files", "lab.exit_codes", "lab.train")
RUN = (*TRAIN, "lab.lm", "lab.matrix", "lab.run")
ALLOWED = {
    **{layer: LIBRARY[:position] for position, layer in enumerate(LIBRARY)},
    "integrations": TRAIN,
    "lab.options": ("linalg",),
    "lab.files": LIBRARY,
    "lab.exit_codes": (),
    "lab.train": TRAIN,
    "lab.lm": TRAIN,
    "lab.matrix": TRAIN,
    "lab.run": RUN,
    "lab.recipes": RUN,
    "lab.estimate": RUN,
    "lab.launch": (*RUN, "lab.recipes"),
    "lab.report": RUN,
    "lab.comparison": (*RUN, "lab.recipes", "lab.estimate", "lab.launch", "lab.report"),
    "lab.studies": (*RUN, "lab.report"),
    "lab.cli": (*RUN, "lab.recipes", "lab.estimate", "lab.launch", "lab.report", "lab.comparison", "lab.studies"),
}
LABORATORY = {
    *("transformers", "tokenizers", "tyro", "rich", "matplotlib", "tensorboard", "jinja2", "sklearn", "numpy"),
    *("accelerate", "datasets", "lightning"),
}


def _imports(path):
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # relative: resolved against the file's own package
                package = ("polargrad", *path.relative_to(SOURCE).parent.parts)
                module = ".".join((*package[: len(package) - node.level + 1], *filter(None, [module])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _layer(module):
    """The layer of a module: a folder of the library, or a folder or file of the laboratory."""
    parts = module.split(".")
    if parts[0] != "polargrad":
        return None
    name = ".".join(parts[1:3] if parts[1:2] == ["lab"] else parts[1:2])
    return name if name in ALLOWED else None


def _violations(layer, imported):
    """The imported layers that `layer` may not know."""
    return {name for name in map(_layer, imported) if name} - {layer, *ALLOWED[layer]}


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_go_one_way(layer):
    wrong = {}
    place = SOURCE / layer.replace(".", "/")
    for path in sorted(place.rglob("*.py")) or [place.with_suffix(".py")]:
        if found := _violations(layer, _imports(path)):
            wrong[str(path.relative_to(SOURCE))] = found
    assert not wrong


def test_the_import_rule_can_fail():
    assert _violations("linalg", ["polargrad.optim.polargrad"]) == {"optim"}
    assert _violations("lab.lm", ["polargrad.lab.run.spec"]) == {"lab.run"}
    assert not _violations("lab.run", ["polargrad.lab.lm.models", "polargrad.linalg"])


def _cycle(imports):
    """Modules that import each other in a circle, in order; empty if there are none."""
    done = set()

    def follow(module, path):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        found = next(filter(None, (follow(other, [*path, module]) for other in sorted(imports[module]))), [])
        done.add(module)
        return found

    return next(filter(None, (follow(module, []) for module in sorted(imports))), [])


def test_no_modules_import_each_other():
    names = {
        path: ".".join(("polargrad", *path.relative_to(SOURCE).with_suffix("").parts)) for path in SOURCE.rglob("*.py")
    }
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    known = set(names.values())
    imports = {name: {i for i in _imports(path) if i in known} - {name} for path, name in names.items()}
    # `from package import module` is an import of the module
    for name, found in imports.items():
        imports[name] = {i for i in found if not any(other.startswith(f"{i}.") for other in found)}
    assert not _cycle(imports)
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_a_relative_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "linalg").mkdir()
    (tmp_path / "linalg" / "svd.py").write_text("from ..optim import PolarGrad\nfrom .method import register\n")
    assert _violations("linalg", _imports(tmp_path / "linalg" / "svd.py")) == {"optim"}


def test_importing_the_package_leaves_the_laboratory_alone():
    script = "import sys, polargrad; polargrad.PolarGrad; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "polargrad" in loaded
    # torch itself imports numpy where it is installed; mpmath is slow to import and wanted by few calls
    assert not (LABORATORY - {"numpy"} | {"mpmath"}) & loaded


def test_an_optimizer_alone_knows_many_processes():
    script = (
        "import sys, torch; from polargrad.optim.polargrad import PolarGrad; p = torch.nn.Parameter(torch.eye(2));"
        "p.grad = torch.eye(2); PolarGrad([p]).step(); assert 'polargrad.distributed.processes' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_bridges_leave_their_frameworks_alone():
    script = "import sys, polargrad; polargrad.integrations; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "polargrad" in loaded
    assert not (LABORATORY - {"numpy"}) & loaded


@pytest.mark.parametrize("package", ["polargrad", "polargrad.lab", "polargrad.lab.lm", "polargrad.lab.matrix"])
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nosuch'"):
        _ = module.nosuch
    assert polargrad.__version__


def test_a_release_has_one_version():
    root = SOURCE.parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    released = version.removesuffix(".dev0")  # which says that the release of this number is to come
    heading = f"\n## {released} (unreleased)\n" if released != version else f"\n## {released}"
    assert f"\nversion: {released}\n" in (root / "CITATION.cff").read_text()
    assert heading in (root / "CHANGELOG.md").read_text()
    assert ("(unreleased)" in (root / "CHANGELOG.md").read_text()) == (released != version)


def test_a_polar_method_is_one_new_file_and_one_line(tmp_path):
    """A method made elsewhere is usable by name once it is imported: registering is the one line."""
    script = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from polargrad.linalg.method import IterationResult, PolarMethod, register

@register
@dataclass(frozen=True)
class Eigen(PolarMethod):
    """U = X (X^H X)^{-1/2} by an eigendecomposition."""
    name: ClassVar[str] = "eigen"
    def iterate(self, X):
        w, V = torch.linalg.eigh(X.mH @ X)
        return IterationResult(X @ (V * w.rsqrt().unsqueeze(-2)) @ V.mH, steps=1)
'''
    (tmp_path / "eigen.py").write_text(script)
    use = (
        "import torch, polargrad, eigen; A = torch.randn(2, 5, 4, dtype=torch.float64);"
        "e = polargrad.polar_factor(A, 'eigen') - polargrad.polar_factor(A, 'svd'); assert e.abs().max() < 1e-8"
    )
    subprocess.run([sys.executable, "-c", use], check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
