"""Every optimizer of the unifying view: how it is described, and its direction and operator from past gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from polargrad.geometry import Geometry, LeftPolar, RightPolar, Rows, Spectral
from polargrad.geometry import preconditioners as pre
from polargrad.lab.matrix import MatrixQuadratic
from polargrad.lab.studies.preconditioning.best_step import Ball
from polargrad.linalg import NewtonSchulz

__all__ = ["DAMPING", "VIEWS", "Direction", "View"]

# Relative to the largest eigenvalue, of statistics that few gradients leave (nearly) singular.
DAMPING = 1e-4


class Direction(NamedTuple):
    """What an optimizer makes of a gradient.

    Attributes:
        direction: D (m, n); the step is -t D.
        operator: P with D = P^{-1} M for the (averaged) gradient M.
        ball: the norm in which D is steepest descent.
    """

    direction: Tensor
    operator: pre.Preconditioner
    ball: Ball


class Memory(ABC):
    """An optimizer's state: takes gradients one by one."""

    @abstractmethod
    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        """The direction after one more gradient G (m, n), taken at X; few optimizers look at the problem besides."""


class _Ellipsoid(Memory):
    """D = P^{-1} M, steepest descent in <X, P X>^{1/2}."""

    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        P, M = self.operator(G, problem, X)
        return Direction(P.solve(M), P, Ball("ellipsoid", P))

    @abstractmethod
    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        """P, and the averaged gradient that it is applied to."""


class GradientDescent(Memory):
    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        return Direction(G, pre.identity(G), Ball("frobenius"))


class SignDescent(Memory):
    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        return Direction(G.sign(), pre.sign_preconditioner(G), Ball("entrywise"))


class Adam(_Ellipsoid):
    def __init__(self, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.beta1, self.beta2, self.k = beta1, beta2, 0
        self.m: Tensor | float = 0.0
        self.v: Tensor | float = 0.0

    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        self.k += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * G
        self.v = self.beta2 * self.v + (1 - self.beta2) * G.square()
        return pre.adam(self.v / (1 - self.beta2**self.k)), self.m / (1 - self.beta1**self.k)


class AdaGrad(_Ellipsoid):
    def __init__(self) -> None:
        self.squares: Tensor | float = 0.0

    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        self.squares = self.squares + G.square()
        return pre.adagrad(self.squares), G


class FullAdaGrad(_Ellipsoid):
    def __init__(self) -> None:
        self.outer: Tensor | float = 0.0

    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        self.outer = self.outer + torch.outer(G.flatten(), G.flatten())
        return pre.adagrad_full(self.outer, DAMPING), G


class Shampoo(_Ellipsoid):
    def __init__(self) -> None:
        self.left: Tensor | float = 0.0
        self.right: Tensor | float = 0.0

    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        self.left, self.right = self.left + G @ G.mT, self.right + G.mT @ G
        return pre.shampoo(self.left, self.right, DAMPING), G


class KFac(_Ellipsoid):
    """Samples are the rows a_i of A; the gradient at the layer's output is d_i = z_i B^T, averaged over past batches.

    z is the residual A X B - C for the empirical Fisher matrix, or drawn from N(0, I), the model's own distribution,
    for the true one, whose expectation B B^T makes K-FAC Newton's method here.
    """

    def __init__(self, beta: float = 0.95, *, empirical: bool = False) -> None:
        self.beta, self.empirical, self.k = beta, empirical, 0
        self.outputs: Tensor | float = 0.0
        self.generator = torch.Generator().manual_seed(0)

    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        A, B, residual = problem.A, problem.B, problem.residual({"X": X})
        self.k += 1
        drawn = torch.randn(residual.shape, dtype=G.dtype, generator=self.generator)
        d = (residual if self.empirical else drawn) @ B.mT
        self.outputs = self.beta * self.outputs + (1 - self.beta) * (d.mT @ d) / len(A)
        return pre.kfac(A.mT @ A / len(A), self.outputs / (1 - self.beta**self.k), DAMPING), G


class Newton(_Ellipsoid):
    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        return pre.newton(problem.A.mT @ problem.A, problem.B @ problem.B.mT), G


class Polar(Memory):
    """Polar factor of an averaged gradient: PolarGrad (exact, no average), Muon (quintic Newton-Schulz, Nesterov)."""

    def __init__(self, geometry: Geometry, beta: float = 0.0, with_size: bool = True) -> None:
        self.geometry, self.beta, self.with_size = geometry, beta, with_size
        self.M: Tensor | float = 0.0

    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        self.M = self.beta * self.M + (1 - self.beta) * G
        ahead = self.beta * self.M + (1 - self.beta) * G
        D = self.geometry.sharp(ahead) if self.with_size else self.geometry.lmo(ahead)
        return Direction(D, pre.polar_preconditioner(ahead, with_size=self.with_size), Ball("spectral"))


def empirical_kfac() -> KFac:
    """Output gradients from the data."""
    return KFac(empirical=True)


def polargrad() -> Polar:
    """The exact factor of the gradient itself, with its nuclear norm."""
    return Polar(Spectral("svd"))


def muon() -> Polar:
    """Momentum 0.95 with Nesterov, five quintic Newton-Schulz steps in bfloat16, no size."""
    return Polar(Spectral(NewtonSchulz()), beta=0.95, with_size=False)


class OneSidedPolar(Memory):
    """The polar factor through the Gram matrix of the shorter side, which is all that is decomposed."""

    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        geometry = RightPolar() if G.shape[0] >= G.shape[1] else LeftPolar()
        return Direction(geometry.sharp(G), pre.polar_preconditioner(G), Ball("spectral"))


class RowNorm(Memory):
    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        return Direction(Rows().sharp(G), pre.row_norm(G), Ball("rows"))


class View(NamedTuple):
    """One optimizer in words.

    Attributes:
        norm: in which its step is steepest descent.
        operator: P, with the step -t P^{-1} G.
        form: "explicit" where P is formed, "implicit" where a norm does its work.
        sees: the weights as a "vector" or as a "matrix".
        targets: "curvature" (kappa of the Hessian) or "gradient" (kappa of the gradient matrix); "-" for neither.
        vanishes: whether the update vanishes with the gradient; "by memory" where past gradients keep it from growing.
        make: a fresh state.
    """

    norm: str
    operator: str
    form: str
    sees: str
    targets: str
    vanishes: str
    make: Callable[[], Memory]


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "gradient descent": View("Frobenius", "I", "explicit", "vector", "-", "yes", GradientDescent),
        "sign descent": View("largest entry", "diag |g|", "implicit", "vector", "curvature", "no", SignDescent),
        "Adam": View("diagonal ellipsoid", "diag v^½", "explicit", "vector", "curvature", "no", Adam),
        "AdaGrad, diagonal": View(
            "diagonal ellipsoid", "diag (Σ g²)^½", "explicit", "vector", "curvature", "by memory", AdaGrad
        ),
        "AdaGrad, full": View("ellipsoid", "(Σ g gᵀ)^½", "explicit", "vector", "curvature", "by memory", FullAdaGrad),
        "Shampoo": View(
            "Kronecker ellipsoid", "(Σ G Gᵀ)^¼ ⊗ (Σ GᵀG)^¼", "explicit", "vector", "curvature", "by memory", Shampoo
        ),
        "K-FAC": View("Kronecker ellipsoid", "E[a aᵀ] ⊗ E[d dᵀ]", "explicit", "vector", "curvature", "yes", KFac),
        "K-FAC, empirical": View(
            "Kronecker ellipsoid", "the same, d from the data", "explicit", "vector", "curvature", "no", empirical_kfac
        ),
        "Newton": View("the Hessian's ellipsoid", "AᵀA ⊗ B Bᵀ", "explicit", "vector", "curvature", "yes", Newton),
        "row norm": View("largest row", "diag ‖gᵢ‖ ⊗ I", "implicit", "matrix", "gradient", "with dual norm", RowNorm),
        "one-sided polar": View(
            "spectral", "I ⊗ (GᵀG)^½", "explicit", "matrix", "gradient", "with dual norm", OneSidedPolar
        ),
        "Muon": View("spectral", "I ⊗ (MᵀM)^½", "implicit", "matrix", "gradient", "no", muon),
        "PolarGrad": View("spectral", "I ⊗ (GᵀG)^½ / ν", "implicit", "matrix", "gradient", "yes", polargrad),
    }
)
