"""The laboratory: language models, matrix problems and studies on one training loop, with records and reports.

A run is a frozen spec; its folder holds all that is needed to read it again, and reports are made from folders alone.
"""

from __future__ import annotations

from polargrad.later import import_later

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
