"""The polar decomposition engine: batched, every algorithm behind one shared path."""

from polargrad.linalg.auto import Auto
from polargrad.linalg.decomposition import polar, polar_factor
from polargrad.linalg.gram_newton_schulz import GramNewtonSchulz
from polargrad.linalg.gram_polynomials import GramPolynomials
from polargrad.linalg.method import METHODS, PolarMethod, available_methods, resolve_method
from polargrad.linalg.newton import Newton
from polargrad.linalg.newton_schulz import NewtonSchulz
from polargrad.linalg.orthogonalization import inverse_sqrt, lowdin
from polargrad.linalg.polar_express import PolarExpress
from polargrad.linalg.preconditioned_newton_schulz import PreconditionedNewtonSchulz
from polargrad.linalg.procrustes import nearest_rotation, orthogonal_procrustes
from polargrad.linalg.qdwh import QDWH
from polargrad.linalg.residuals import Residuals, residuals
from polargrad.linalg.result import PolarResult, Status
from polargrad.linalg.svd import SVD
from polargrad.linalg.zolo import ZoloPD

__all__ = [
    "METHODS",
    "QDWH",
    "SVD",
    "Auto",
    "GramNewtonSchulz",
    "GramPolynomials",
    "Newton",
    "NewtonSchulz",
    "PolarExpress",
    "PolarMethod",
    "PolarResult",
    "PreconditionedNewtonSchulz",
    "Residuals",
    "Status",
    "ZoloPD",
    "available_methods",
    "inverse_sqrt",
    "lowdin",
    "nearest_rotation",
    "orthogonal_procrustes",
    "polar",
    "polar_factor",
    "residuals",
    "resolve_method",
]
