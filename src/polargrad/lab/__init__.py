"""The laboratory: language models, matrix problems and studies on one training loop, with records and reports.

A run is a frozen spec; its folder holds all that is needed to read it again, and reports are made from folders alone.
"""

from __future__ import annotations

import importlib

# Where each public name lives; imported when first asked for, so that a command imports only what it runs.
_PUBLIC = {
    "Axis": "compare.sweep",
    "LanguageModel": "run.spec",
    "RECIPES": "recipes",
    "Run": "run.folder",
    "RunSpec": "run.spec",
    "compare": "comparison.request",
    "expand": "compare.sweep",
    "find_runs": "run.folder",
    "parse_axis": "compare.sweep",
    "read_run": "run.folder",
    "spec_of": "recipes",
}
_PACKAGES = ("comparison", "lm", "matrix", "recipes", "report", "run", "studies", "train")

__all__ = [*sorted(_PUBLIC), *_PACKAGES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
