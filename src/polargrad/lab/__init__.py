"""The laboratory: language models, matrix problems and studies on one training loop, with records and reports.

A run is a frozen spec; its folder holds all that is needed to read it again, and reports are made from folders alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def import_later(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are imported when they are first used.

    Args:
        package: name of the package.
        modules: the module of each public name, within the package; a module has itself.

    Example:
        >>> find, _ = import_later("polargrad.lab", {"RunSpec": "run.spec"})
        >>> find("RunSpec").__name__
        'RunSpec'
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name]}")
        return module if modules[name] == name else getattr(module, name)

    return find, lambda: sorted({*vars(sys.modules[package]), *modules})


# Imported when first asked for, so that a command imports only what it runs.
_PUBLIC = {
    "Axis": "comparison.sweep",
    "LanguageModel": "run.spec",
    "RECIPES": "recipes",
    "Run": "run.folder",
    "RunSpec": "run.spec",
    "compare": "comparison.request",
    "expand": "comparison.sweep",
    "find_runs": "run.folder",
    "parse_axis": "comparison.sweep",
    "read_run": "run.folder",
    "spec_of": "recipes",
    **{name: name for name in ("comparison", "lm", "matrix", "recipes", "report", "run", "studies", "train")},
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = import_later(__name__, _PUBLIC)
