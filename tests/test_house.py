"""The rules of the house: imports go one way, the core is light, files stay small."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import polargrad

SOURCE = Path(polargrad.__file__).parent
# Each layer may import itself and the layers to its left.
ORDER = ["linalg", "geometry", "optim", "diagnostics", "distributed", "train", "integrations", "experiments", "cli"]
APART = ["problems", "lm"]  # know only torch; used by experiments
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
    parts = module.split(".")
    return parts[1] if parts[0] == "polargrad" and len(parts) > 1 else None


def _violations(layer, imported):
    """The imported layers that `layer` may not know."""
    known = ORDER + APART
    used = {name for name in map(_layer, imported) if name in known}
    if layer in APART:
        allowed = {layer}
    else:
        allowed = set(ORDER[: ORDER.index(layer) + 1]) | (
            set(APART) if ORDER.index(layer) >= ORDER.index("experiments") else set()
        )
    return used - allowed


@pytest.mark.parametrize("layer", ORDER + APART)
def test_imports_go_one_way(layer):
    files = sorted(SOURCE.glob("*.py") if layer == "cli" else (SOURCE / layer).rglob("*.py"))
    for path in files:
        assert not _violations(layer, _imports(path)), path


def test_the_import_rule_can_fail():
    assert _violations("linalg", ["polargrad.optim.polargrad"]) == {"optim"}
    assert _violations("lm", ["polargrad.train.loop"]) == {"train"}
    assert not _violations("experiments", ["polargrad.lm.models", "polargrad.linalg"])


def test_a_relative_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "linalg").mkdir()
    (tmp_path / "linalg" / "svd.py").write_text("from ..optim import PolarGrad\nfrom .method import register\n")
    assert _violations("linalg", _imports(tmp_path / "linalg" / "svd.py")) == {"optim"}


def test_importing_the_package_leaves_the_laboratory_alone():
    script = "import sys, polargrad; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "polargrad" in loaded
    # torch itself imports numpy where it is installed; mpmath is slow to import and wanted by few calls
    assert not (LABORATORY - {"numpy"} | {"mpmath"}) & loaded


def test_the_bridges_leave_their_frameworks_alone():
    script = "import sys, polargrad; polargrad.integrations; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "polargrad" in loaded
    assert not (LABORATORY - {"numpy"}) & loaded


def test_what_is_imported_later_is_found_and_listed():
    for name in ("experiments", "integrations", "lm", "problems", "train"):
        assert getattr(polargrad, name).__name__ == f"polargrad.{name}"
        assert name in dir(polargrad)
    assert polargrad.__version__
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = polargrad.nosuch


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_no_file_past_400_lines(folder):
    root = SOURCE.parents[1]
    for path in (root / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_a_release_has_one_version():
    root = SOURCE.parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()
    assert f"\n## {version}" in (root / "CHANGELOG.md").read_text()


def test_a_polar_method_is_one_new_file_and_one_line(tmp_path):
    """A method made elsewhere is usable by name once it is imported: registering is the one line."""
    script = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from polargrad.linalg.method import Iterate, PolarMethod, register

@register
@dataclass(frozen=True)
class Eigen(PolarMethod):
    """U = X (X^H X)^{-1/2} by an eigendecomposition."""
    name: ClassVar[str] = "eigen"
    def iterate(self, X):
        w, V = torch.linalg.eigh(X.mH @ X)
        return Iterate(X @ (V * w.rsqrt().unsqueeze(-2)) @ V.mH, steps=1)
'''
    (tmp_path / "eigen.py").write_text(script)
    use = (
        "import torch, polargrad, eigen; A = torch.randn(2, 5, 4, dtype=torch.float64);"
        "e = polargrad.polar_factor(A, 'eigen') - polargrad.polar_factor(A, 'svd'); assert e.abs().max() < 1e-8"
    )
    subprocess.run([sys.executable, "-c", use], check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
