"""The best step of a given length in a norm, on a quadratic whose Hessian is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polargrad.geometry import Columns, Entrywise, Frobenius, Geometry, Rows, Spectral, inner
from polargrad.geometry.preconditioners import Kronecker, Preconditioner, symmetric_power


@dataclass(frozen=True)
class Ball:
    """A norm on steps: of a geometry, where given of X in other coordinates, or <X, P X>^{1/2} of a preconditioner.

    Args:
        shape: "spectral", "entrywise", "rows", "columns", "frobenius", or "ellipsoid".
        operator: P, for an ellipsoid.
        coordinates: X -> A X B, whose result has the norm of the geometry; None is X itself.
    """

    shape: str
    operator: Preconditioner | None = None
    coordinates: Kronecker | None = None

    def __post_init__(self) -> None:
        if self.shape not in (*_NORMS, "ellipsoid") or (self.shape == "ellipsoid") != (self.operator is not None):
            raise ValueError(
                f"shape is {self.shape!r} with operator {self.operator!r}; give one of {', '.join(_NORMS)} alone, "
                "or 'ellipsoid' with a preconditioner"
            )

    def norm(self, X: Tensor) -> float:
        """||X||."""
        if self.operator is not None:
            return math.sqrt(max(float(inner(X, self.operator.apply(X))), 0.0))
        return float(_NORMS[self.shape](X if self.coordinates is None else self.coordinates.apply(X)))

    @property
    def geometry(self) -> Geometry:
        """The geometry of a norm that is not an ellipsoid's."""
        return _GEOMETRIES[self.shape]


_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "spectral": lambda X: torch.linalg.matrix_norm(X, 2),
    "entrywise": lambda X: X.abs().max(),
    "rows": lambda X: torch.linalg.vector_norm(X, dim=-1).max(),
    "columns": lambda X: torch.linalg.vector_norm(X, dim=-2).max(),
    "frobenius": torch.linalg.matrix_norm,
}
_GEOMETRIES: dict[str, Geometry] = {
    "spectral": Spectral("svd"),
    "entrywise": Entrywise(),
    "rows": Rows(),
    "columns": Columns(),
    "frobenius": Frobenius(),
}


def project(X: Tensor, shape: str, radius: float) -> Tensor:
    """The nearest matrix to X (m, n) whose norm is at most radius.

    Example:
        >>> project(torch.tensor([[3.0, -0.5]]), "entrywise", 1.0).tolist()
        [[1.0, -0.5]]
    """
    if shape == "spectral":
        P, sigma, Qh = torch.linalg.svd(X, full_matrices=False)
        return (P * sigma.clamp_max(radius)) @ Qh
    if shape == "entrywise":
        return X.clamp(-radius, radius)
    if shape == "frobenius":
        return X * min(1.0, radius / max(float(torch.linalg.matrix_norm(X)), 1e-300))
    dim = -1 if shape == "rows" else -2
    lengths = torch.linalg.vector_norm(X, dim=dim, keepdim=True)
    return X * (radius / lengths.clamp_min(1e-300)).clamp_max(1.0)


def best_descent(hessian: Kronecker, G: Tensor, ball: Ball, radius: float, *, tolerance: float = 1e-3) -> float:
    """How far the objective can fall in one step: the maximum of <G, D> - <D, H D> / 2 over ||D|| <= radius.

    Args:
        hessian: H, positive definite.
        G: the gradient (m, n).
        ball: the norm.
        radius: longest step.
        tolerance: relative; in an ellipsoid the result is exact to rounding.

    Returns:
        The descent of a step that is admissible, so at most the maximum and at least (1 - tolerance) times it.
    """
    if ball.operator is not None:
        return _in_ellipsoid(hessian.matrix(), ball.operator.matrix(), G.flatten(), radius)
    if ball.coordinates is not None:
        A, B = (symmetric_power(factor, -1.0) for factor in (ball.coordinates.left, ball.coordinates.right))
        hessian, G = Kronecker(_congruent(hessian.left, A), _congruent(hessian.right, B)), A @ G @ B
    return _in_norm_ball(hessian, G, ball, radius, tolerance)


def _congruent(S: Tensor, A: Tensor) -> Tensor:
    """A S A, symmetric to the last bit."""
    T = A @ S @ A
    return (T + T.mT) / 2.0


def _in_ellipsoid(H: Tensor, P: Tensor, g: Tensor, radius: float) -> float:
    """The trust-region problem in the eigenvectors of P^{-1/2} H P^{-1/2}: D = sum c_i / (lambda_i + tau) v_i."""
    values, vectors = torch.linalg.eigh(P)
    root = vectors * values.clamp_min(torch.finfo(P.dtype).eps * values[-1]).rsqrt()
    curvature, basis = torch.linalg.eigh(root.mT @ H @ root)
    c = basis.mT @ (root.mT @ g)
    low, high = 0.0, float(c.norm()) / radius
    if float((c / curvature).norm()) <= radius:
        high = 0.0
    for _ in range(100):
        tau = (low + high) / 2.0
        if float((c / (curvature + tau)).norm()) > radius:
            low = tau
        else:
            high = tau
    s = c / (curvature + high)
    return float((c * s).sum() - (curvature * s * s).sum() / 2.0)


def _in_norm_ball(hessian: Kronecker, G: Tensor, ball: Ball, radius: float, tolerance: float) -> float:
    """Accelerated projected gradient, restarted, until the duality gap over the ball is below the tolerance.

    With R = H D - G the gradient at D, no D' in the ball does better than by <R, D> + radius ||R||_*.

    Source: O'Donoghue and Candes, Found. Comput. Math. 15 (2015) (restarts); Jaggi, ICML 2013 (the gap).
    """
    L = float(torch.linalg.matrix_norm(hessian.left, 2) * torch.linalg.matrix_norm(hessian.right, 2))
    D = torch.zeros_like(G)
    Y, t = D, 1.0
    for k in range(20000):
        new = project(Y - (hessian.apply(Y) - G) / L, ball.shape, radius)
        if float(inner(Y - new, new - D)) > 0.0:
            t = 1.0
        t_new = (1.0 + math.sqrt(1.0 + 4.0 * t * t)) / 2.0
        Y, D, t = new + (t - 1.0) / t_new * (new - D), new, t_new
        if k % 20 == 19:
            HD = hessian.apply(D)
            descent = float(inner(G, D) - inner(D, HD) / 2.0)
            gap = float(inner(HD - G, D) + radius * ball.geometry.dual_norm(HD - G))
            if gap <= tolerance * descent:
                return descent
    raise ArithmeticError(
        f"the search ended before a step within {tolerance} of the best in the {ball.shape} ball of {radius:.3g}"
    )
