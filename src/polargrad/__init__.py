"""Optimizing matrices by polar decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polargrad.later import import_later

if TYPE_CHECKING:
    from polargrad import diagnostics as diagnostics
    from polargrad import distributed as distributed
    from polargrad import geometry as geometry
    from polargrad import integrations as integrations
    from polargrad import lab as lab
    from polargrad import linalg as linalg
    from polargrad import optim as optim
    from polargrad.linalg import PolarMethod as PolarMethod
    from polargrad.linalg import PolarResult as PolarResult
    from polargrad.linalg import Status as Status
    from polargrad.linalg import polar as polar
    from polargrad.linalg import polar_factor as polar_factor
    from polargrad.optim import PolarGrad as PolarGrad
    from polargrad.optim import describe_groups as describe_groups
    from polargrad.optim import parameter_groups as parameter_groups

    __version__: str


# Nothing is imported yet, so that the command line can set what torch reads from the environment when it is imported.
_PUBLIC = {
    **{name: name for name in ("diagnostics", "distributed", "geometry", "integrations", "lab", "linalg", "optim")},
    **dict.fromkeys(("PolarMethod", "PolarResult", "Status", "polar", "polar_factor"), "linalg"),
    **dict.fromkeys(("PolarGrad", "describe_groups", "parameter_groups"), "optim"),
    "__version__": "version",
}

__all__ = sorted(set(_PUBLIC) - {"__version__"})  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = import_later(__name__, _PUBLIC)
