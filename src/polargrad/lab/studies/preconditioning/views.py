"""Every optimizer of the unifying view: how it is described, and its direction and operator from past gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from polargrad.geometry import Geometry, LeftPolar, RightPolar, Rows, Spectral
from polargrad.geometry import preconditioners as pre
from polargrad.lab.matrix.quadratic import MatrixQuadratic
from polargrad.lab.studies.preconditioning.best_step import Ball
from polargrad.linalg import NewtonSchulz

# Relative to the largest eigenvalue, of statistics that few gradients leave (nearly) singular.
DAMPING = 1e-4


class Direction(NamedTuple):
    """What an optimizer makes of a gradient.

    Attributes:
        direction: D (m, n); the step is -t D.
        operator: P with D = P^{-1} M for the (averaged) gradient M; None where none is known.
        ball: the norm in which D is steepest descent.
    """

    direction: Tensor
    operator: pre.Preconditioner | None
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


class Memoryless(Memory):
    """A direction of the gradient alone.

    Args:
        direction: G -> D.
        operator: G -> P.
        shape: of the ball, see `Ball`.
    """

    def __init__(
        self, direction: Callable[[Tensor], Tensor], operator: Callable[[Tensor], pre.Preconditioner], shape: str
    ) -> None:
        self.direction, self.operator, self.shape = direction, operator, shape

    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        return Direction(self.direction(G), self.operator(G), Ball(self.shape))


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


class Accumulated(_Ellipsoid):
    """The operator of sums over all gradients: AdaGrad, Shampoo.

    Args:
        statistics: G -> the tensors that are summed.
        of_sums: the sums -> P.
    """

    def __init__(
        self, statistics: Callable[[Tensor], tuple[Tensor, ...]], of_sums: Callable[..., pre.Preconditioner]
    ) -> None:
        self.statistics, self.of_sums = statistics, of_sums
        self.sums: tuple[Tensor, ...] = ()

    def operator(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> tuple[pre.Preconditioner, Tensor]:
        new = self.statistics(G)
        self.sums = tuple(old + term for old, term in zip(self.sums, new, strict=True)) if self.sums else new
        return self.of_sums(*self.sums), G


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


class Whitened(Memory):
    """Polar factors after whitening by the sums L of G G^T and R of G^T G.

    Steepest in ||L^g X R^g||_2 is L^{-g} U R^{-g} with U the polar factor of W = L^{-g} G R^{-g}; U alone, as
    `PolarGrad(whitening=...)` takes it, is the steepest direction in no norm of L and R, and P is unknown.

    Args:
        power: g.
        steepest: whether to take the steepest direction, times the dual norm, or U.
    """

    def __init__(self, power: float, *, steepest: bool) -> None:
        self.power, self.steepest = power, steepest
        self.L: Tensor | float = 0.0
        self.R: Tensor | float = 0.0

    def __call__(self, G: Tensor, problem: MatrixQuadratic, X: Tensor) -> Direction:
        self.L, self.R = self.L + G @ G.mT, self.R + G.mT @ G
        L, R = (S + DAMPING * torch.linalg.eigvalsh(S)[-1] * torch.eye(len(S), dtype=S.dtype) for S in (self.L, self.R))
        coordinates = pre.Kronecker(*(pre.symmetric_power(S, self.power) for S in (L, R)))
        if not self.steepest:
            return Direction(Spectral("svd").lmo(coordinates.solve(G)), None, Ball("spectral"))
        P = pre.whitened_polar(G, L, R, self.power)
        return Direction(P.solve(G), P, Ball("spectral", coordinates=coordinates))


def _one_sided(G: Tensor) -> Tensor:
    """Through the Gram matrix of the shorter side, which is all that is decomposed."""
    return (RightPolar() if G.shape[0] >= G.shape[1] else LeftPolar()).sharp(G)


gradient_descent = partial(Memoryless, torch.clone, pre.identity, "frobenius")
sign_descent = partial(Memoryless, torch.sign, pre.sign_preconditioner, "entrywise")
row_norm = partial(Memoryless, Rows().sharp, pre.row_norm, "rows")
one_sided_polar = partial(Memoryless, _one_sided, pre.polar_preconditioner, "spectral")
adagrad = partial(Accumulated, lambda G: (G.square(),), pre.adagrad)
full_adagrad = partial(
    Accumulated, lambda G: (torch.outer(G.flatten(), G.flatten()),), lambda S: pre.adagrad_full(S, DAMPING)
)
shampoo = partial(Accumulated, lambda G: (G @ G.mT, G.mT @ G), lambda L, R: pre.shampoo(L, R, DAMPING))
empirical_kfac = partial(KFac, empirical=True)
polargrad = partial(Polar, Spectral("svd"))
whitened_polargrad = partial(Whitened, 1 / 16, steepest=True)
whitened_polar_factor = partial(Whitened, 0.3, steepest=False)
muon = partial(Polar, Spectral(NewtonSchulz()), beta=0.95, with_size=False)


class View(NamedTuple):
    """One optimizer in words.

    Attributes:
        norm: in which its step is steepest descent.
        operator: P, with the step -t P^{-1} G.
        form: "explicit" where P is formed, "implicit" where a norm does its work, "both".
        sees: the weights as a "vector" or as a "matrix".
        targets: "curvature" (kappa of the Hessian), "gradient" (kappa of the gradient matrix), "both", "-" for neither.
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
        "gradient descent": View("Frobenius", "I", "explicit", "vector", "-", "yes", gradient_descent),
        "sign descent": View("largest entry", "diag |g|", "implicit", "vector", "curvature", "no", sign_descent),
        "Adam": View("diagonal ellipsoid", "diag v^½", "explicit", "vector", "curvature", "no", Adam),
        "AdaGrad, diagonal": View(
            "diagonal ellipsoid", "diag (Σ g²)^½", "explicit", "vector", "curvature", "by memory", adagrad
        ),
        "AdaGrad, full": View("ellipsoid", "(Σ g gᵀ)^½", "explicit", "vector", "curvature", "by memory", full_adagrad),
        "Shampoo": View(
            "Kronecker ellipsoid", "(Σ G Gᵀ)^¼ ⊗ (Σ GᵀG)^¼", "explicit", "vector", "curvature", "by memory", shampoo
        ),
        "K-FAC": View("Kronecker ellipsoid", "E[a aᵀ] ⊗ E[d dᵀ]", "explicit", "vector", "curvature", "yes", KFac),
        "K-FAC, empirical": View(
            "Kronecker ellipsoid", "the same, d from the data", "explicit", "vector", "curvature", "no", empirical_kfac
        ),
        "Newton": View("the Hessian's ellipsoid", "AᵀA ⊗ B Bᵀ", "explicit", "vector", "curvature", "yes", Newton),
        "row norm": View("largest row", "diag ‖gᵢ‖ ⊗ I", "implicit", "matrix", "gradient", "with dual norm", row_norm),
        "one-sided polar": View(
            "spectral", "I ⊗ (GᵀG)^½", "explicit", "matrix", "gradient", "with dual norm", one_sided_polar
        ),
        "Muon": View("spectral", "I ⊗ (MᵀM)^½", "implicit", "matrix", "gradient", "no", muon),
        "PolarGrad": View("spectral", "I ⊗ (GᵀG)^½ / ν", "implicit", "matrix", "gradient", "yes", polargrad),
        "whitened PolarGrad": View(
            "spectral, of LᵍXRᵍ", "L²ᵍ ⊗ RᵍHRᵍ / ν", "both", "matrix", "both", "yes", whitened_polargrad
        ),
        "whitened polar factor": View("–", "–", "both", "matrix", "both", "no", whitened_polar_factor),
    }
)
