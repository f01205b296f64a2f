"""Public names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["import_later"]


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
        value = module if modules[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    return find, lambda: sorted({*vars(sys.modules[package]), *modules})
