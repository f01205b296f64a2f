"""Norms on matrices and their dual maps: the unifying view that the optimizers are made of."""

from polargrad.geometry import preconditioners
from polargrad.geometry.base import GEOMETRIES, Geometry, inner, register
from polargrad.geometry.normalized import Columns, Entrywise, Frobenius, Rows
from polargrad.geometry.onesided import LeftPolar, RightPolar
from polargrad.geometry.spectral import Spectral

__all__ = [
    "GEOMETRIES",
    "Columns",
    "Entrywise",
    "Frobenius",
    "Geometry",
    "LeftPolar",
    "RightPolar",
    "Rows",
    "Spectral",
    "inner",
    "preconditioners",
    "register",
]
