"""Optimizing matrices by polar decomposition."""

from importlib.metadata import version

from polargrad.linalg import PolarMethod, PolarResult, Status, polar, polar_factor

__version__ = version("polargrad")

__all__ = ["PolarMethod", "PolarResult", "Status", "polar", "polar_factor"]
