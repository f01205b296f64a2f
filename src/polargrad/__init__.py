"""Optimizing matrices by polar decomposition."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from polargrad import diagnostics, distributed, geometry
from polargrad.linalg import PolarMethod, PolarResult, Status, polar, polar_factor
from polargrad.optim import PolarGrad, describe_groups, parameter_groups

if TYPE_CHECKING:
    from polargrad import integrations as integrations
    from polargrad import lab as lab

    __version__: str

__all__ = [
    "PolarGrad",
    "PolarMethod",
    "PolarResult",
    "Status",
    "describe_groups",
    "diagnostics",
    "distributed",
    "geometry",
    "parameter_groups",
    "polar",
    "polar_factor",
]

# Imported when first asked for, so that `import polargrad` stays quick.
_LATER = ("integrations", "lab")


def __getattr__(name: str) -> object:
    if name in _LATER:
        return importlib.import_module(f"polargrad.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("polargrad")
    raise AttributeError(f"module 'polargrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, "__version__"})
