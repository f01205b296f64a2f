"""Optimizing matrices by polar decomposition."""

from importlib.metadata import version

from polargrad import diagnostics, geometry
from polargrad.linalg import PolarMethod, PolarResult, Status, polar, polar_factor
from polargrad.optim import PolarGrad, describe_groups, parameter_groups

__version__ = version("polargrad")

__all__ = [
    "PolarGrad",
    "PolarMethod",
    "PolarResult",
    "Status",
    "describe_groups",
    "diagnostics",
    "geometry",
    "parameter_groups",
    "polar",
    "polar_factor",
]
