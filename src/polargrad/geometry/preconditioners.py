"""Optimizers as preconditioners: the operator P that each puts between gradient and step, and what it makes of kappa.

Every direction here is P^{-1} G for a symmetric positive definite operator P on m x n matrices, and is the direction of
steepest descent in the norm <X, P X>^{1/2}. P is explicit where the optimizer forms it, implicit where a norm does its
work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from polargrad.geometry.base import inner
from polargrad.geometry.spectral import Spectral

__all__ = [
    "Dense",
    "Diagonal",
    "Kronecker",
    "Preconditioner",
    "adagrad",
    "adagrad_full",
    "adam",
    "curvature_condition_number",
    "gradient_condition_number",
    "identity",
    "kfac",
    "newton",
    "polar_preconditioner",
    "row_norm",
    "shampoo",
    "sign_preconditioner",
    "symmetric_power",
    "whitened_polar",
]


class Preconditioner(ABC):
    """A symmetric positive (semi)definite operator P on m x n matrices."""

    @abstractmethod
    def apply(self, X: Tensor) -> Tensor:
        """P X, of X's shape (m, n)."""

    @abstractmethod
    def solve(self, G: Tensor) -> Tensor:
        """P^{-1} G, of G's shape (m, n); by the pseudoinverse where P is singular."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """P on vec(X), rows of X one after another: (m n, m n)."""


@dataclass(frozen=True)
class Diagonal(Preconditioner):
    """P X = weights * X, entry by entry: sees X as a vector.

    Args:
        weights: (m, n), at least 0.

    Raises:
        ValueError: a weight is negative or not finite.

    Example:
        >>> import torch
        >>> Diagonal(torch.tensor([[2.0, 4.0]])).solve(torch.ones(1, 2)).tolist()
        [[0.5, 0.25]]
    """

    weights: Tensor

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or not bool((self.weights >= 0).all() & self.weights.isfinite().all()):
            raise ValueError("weights must be a finite matrix without negative entries; take absolute values first")

    def apply(self, X: Tensor) -> Tensor:
        return self.weights * X

    def solve(self, G: Tensor) -> Tensor:
        safe = torch.where(self.weights > 0, self.weights, 1.0)
        return torch.where(self.weights > 0, G / safe, 0.0)

    def matrix(self) -> Tensor:
        return torch.diag(self.weights.flatten())


@dataclass(frozen=True)
class Kronecker(Preconditioner):
    """P X = left X right: sees X as a matrix. On vec(X) it is left kron right.

    Args:
        left: (m, m), symmetric positive semidefinite.
        right: (n, n), symmetric positive semidefinite.

    Raises:
        ValueError: a factor is not square or not symmetric.

    Example:
        >>> import torch
        >>> P = Kronecker(torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([[4.0]]))
        >>> P.solve(torch.tensor([[8.0], [8.0]])).tolist()
        [[2.0], [1.0]]
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        for name, factor in (("left", self.left), ("right", self.right)):
            if factor.ndim != 2 or factor.shape[0] != factor.shape[1]:
                raise ValueError(f"{name} must be a square matrix, got shape {tuple(factor.shape)}")
            limit = 100.0 * torch.finfo(factor.dtype).eps * len(factor)
            if not bool((factor - factor.mT).abs().max() <= limit * factor.abs().max()):
                raise ValueError(f"{name} must be symmetric and finite; symmetrize it as (S + S.mT) / 2")

    def apply(self, X: Tensor) -> Tensor:
        return self.left @ X @ self.right

    def solve(self, G: Tensor) -> Tensor:
        return symmetric_power(self.left, -1.0) @ G @ symmetric_power(self.right, -1.0)

    def matrix(self) -> Tensor:
        return torch.kron(self.left, self.right)


@dataclass(frozen=True)
class Dense(Preconditioner):
    """P as any symmetric matrix on vec(X), rows of X one after another.

    Args:
        operator: (m n, m n), symmetric positive semidefinite.

    Raises:
        ValueError: it is not square.
    """

    operator: Tensor

    def __post_init__(self) -> None:
        if self.operator.ndim != 2 or self.operator.shape[0] != self.operator.shape[1]:
            raise ValueError(f"operator must be a square matrix, got shape {tuple(self.operator.shape)}")

    def apply(self, X: Tensor) -> Tensor:
        return (self.operator @ X.flatten()).reshape(X.shape)

    def solve(self, G: Tensor) -> Tensor:
        return (symmetric_power(self.operator, -1.0) @ G.flatten()).reshape(G.shape)

    def matrix(self) -> Tensor:
        return self.operator


def symmetric_power(S: Tensor, power: float) -> Tensor:
    """S^power of a symmetric positive semidefinite S (n, n), zero on its null space.

    Eigenvalues below eps * n times the largest count as zero.

    Example:
        >>> import torch
        >>> symmetric_power(torch.diag(torch.tensor([4.0, 0.0])), -0.5).tolist()
        [[0.5, 0.0], [0.0, 0.0]]
    """
    values, vectors = torch.linalg.eigh(S)
    kept = values > torch.finfo(S.dtype).eps * len(S) * values.abs().max()
    powers = torch.where(kept, torch.where(kept, values, 1.0) ** power, 0.0)
    return (vectors * powers) @ vectors.mT


def identity(G: Tensor) -> Diagonal:
    """P = I: gradient descent, in the Frobenius norm."""
    return Diagonal(torch.ones_like(G))


def sign_preconditioner(G: Tensor) -> Diagonal:
    """P = diag |G|, for which P^{-1} G = sign(G): sign descent, Adam without memory."""
    return Diagonal(G.abs())


def adam(second_moment: Tensor, eps: float = 1e-8) -> Diagonal:
    """P = diag(sqrt(v) + eps) with v the (bias-corrected) average of squared gradients (m, n).

    Source: Kingma and Ba, arXiv 1412.6980, Algorithm 1.
    """
    return Diagonal(second_moment.sqrt() + eps)


def adagrad(squares: Tensor, eps: float = 1e-10) -> Diagonal:
    """P = diag(sqrt(sum g^2) + eps), (m, n).

    Source: Duchi, Hazan, Singer, JMLR 12 (2011), section 1.1.
    """
    return Diagonal(squares.sqrt() + eps)


def adagrad_full(outer: Tensor, damping: float = 0.0) -> Dense:
    """P = (sum g g^T)^{1/2} + damping * ||.||_2 I on vec(X), from the sum of outer products (m n, m n).

    Source: Duchi, Hazan, Singer, JMLR 12 (2011), section 1.1.
    """
    return Dense(_damped(symmetric_power(outer, 0.5), damping))


def shampoo(left: Tensor, right: Tensor, damping: float = 0.0) -> Kronecker:
    """P X = L^{1/4} X R^{1/4} with L = sum G G^T (m, m) and R = sum G^T G (n, n).

    With a single gradient in the sums P^{-1} G is the polar factor of G.

    Example:
        >>> import torch
        >>> G = torch.tensor([[0.0, -2.0], [3.0, 0.0]], dtype=torch.float64)
        >>> shampoo(G @ G.mT, G.mT @ G).solve(G).round(decimals=9).tolist()
        [[0.0, -1.0], [1.0, 0.0]]

    Source: Gupta, Koren, Singer, arXiv 1802.09568, Algorithm 1.
    """
    return Kronecker(symmetric_power(_damped(left, damping), 0.25), symmetric_power(_damped(right, damping), 0.25))


def kfac(inputs: Tensor, outputs: Tensor, damping: float = 0.0) -> Kronecker:
    """P X = E[a a^T] X E[d d^T], second moments of a layer's inputs (m, m) and of its output gradients (n, n).

    Source: Martens and Grosse, arXiv 1503.05671, section 3.
    """
    return Kronecker(_damped(inputs, damping), _damped(outputs, damping))


def newton(left: Tensor, right: Tensor) -> Kronecker:
    """P = Hessian of 1/2 ||A X B - C||_F^2: P X = (A^T A) X (B B^T)."""
    return Kronecker(left, right)


def polar_preconditioner(G: Tensor, *, with_size: bool = True) -> Kronecker:
    """P X = X (G^T G)^{1/2} / nu (tall G) or (G G^T)^{1/2} X / nu (wide G), for which P^{-1} G = nu U.

    Args:
        G: (m, n).
        with_size: divide by nu = ||G||_nuc (PolarGrad), or not (Muon, P^{-1} G = U).

    Example:
        >>> import torch
        >>> G = torch.diag(torch.tensor([3.0, -1.0], dtype=torch.float64))
        >>> polar_preconditioner(G).solve(G).round(decimals=9).tolist()
        [[4.0, 0.0], [0.0, -4.0]]

    Source: Lau, Long, Su, arXiv 2505.21799, section on explicit and implicit preconditioners.
    """
    m, n = G.shape
    U = Spectral("svd").lmo(G)
    size = float(inner(G, U)) if with_size else 1.0
    if m >= n:
        H = U.mT @ G
        return Kronecker(torch.eye(m, dtype=G.dtype), (H + H.mT) / (2.0 * size))
    H = G @ U.mT
    return Kronecker((H + H.mT) / (2.0 * size), torch.eye(n, dtype=G.dtype))


def whitened_polar(G: Tensor, left: Tensor, right: Tensor, power: float) -> Kronecker:
    """The operator of steepest descent in ||L^g X R^g||_2, both kinds of preconditioning in one: P^{-1} G = nu D.

    With W = L^{-g} G R^{-g} = U H the dual norm is nu = ||W||_nuc, the nuclear norm of the whitened gradient, and the
    direction of norm 1 is D = L^{-g} U R^{-g}. For tall G, P X = L^{2g} X (R^g H R^g) / nu; a wide one swaps sides.
    g = 0 is PolarGrad. In the coordinates Y = L^g X R^g the step is that of PolarGrad, so that its rate
    1 - 1 / (r kappa) holds with kappa that of the Hessian preconditioned by L^{2g} kron R^{2g}, whatever L and R are.

    Args:
        G: (m, n).
        left: L (m, m), positive definite.
        right: R (n, n), positive definite.
        power: g.

    Example:
        >>> import torch
        >>> G = torch.diag(torch.tensor([3.0, -1.0], dtype=torch.float64))
        >>> whitened_polar(G, G @ G.mT, G.mT @ G, 0.25).solve(G).round(decimals=9).tolist()
        [[0.666666667, 0.0], [0.0, -2.0]]

    Source: Lau, Long, Su, arXiv 2505.21799 (steepest descent and rate, here in other coordinates).
    """
    inner_left, inner_right = symmetric_power(left, -power), symmetric_power(right, -power)
    outer_left, outer_right = symmetric_power(left, power), symmetric_power(right, power)
    W = inner_left @ G @ inner_right
    plain = polar_preconditioner(W)
    factors = outer_left @ plain.left @ outer_left, outer_right @ plain.right @ outer_right
    return Kronecker(*((factor + factor.mT) / 2.0 for factor in factors))


def row_norm(G: Tensor) -> Kronecker:
    """P X = diag(||g_i||_2) X, for which every row of P^{-1} G has length 1."""
    return Kronecker(torch.diag(torch.linalg.vector_norm(G, dim=-1)), torch.eye(G.shape[1], dtype=G.dtype))


def gradient_condition_number(G: Tensor) -> float:
    """sigma_1 / sigma_r of G (m, n) over its nonzero singular values; what a matrix-minded optimizer lowers.

    Singular values below eps * max(m, n) times the largest count as zero; a zero matrix has condition number 1.

    Example:
        >>> import torch
        >>> gradient_condition_number(torch.diag(torch.tensor([6.0, 2.0, 0.0])))
        3.0
    """
    sigma = torch.linalg.svdvals(G)
    kept = sigma[sigma > torch.finfo(G.dtype).eps * max(G.shape) * sigma[0]]
    return float(kept[0] / kept[-1]) if len(kept) else 1.0


def curvature_condition_number(hessian: Preconditioner, preconditioner: Preconditioner) -> float:
    """kappa(P^{-1/2} H P^{-1/2}); what a vector-minded optimizer lowers.

    It bounds the contraction of X <- X - t P^{-1} G by 1 - 1 / kappa while P stays. Two Kronecker products are compared
    factor by factor, so that large m n are no obstacle; otherwise (m n, m n) matrices are formed.

    Args:
        hessian: H, as an operator.
        preconditioner: P, positive definite.

    Returns:
        The condition number, infinite where P is singular to rounding.

    Example:
        >>> import torch
        >>> H = Kronecker(torch.diag(torch.tensor([1.0, 5.0])), torch.eye(2))
        >>> curvature_condition_number(H, identity(torch.ones(2, 2))), curvature_condition_number(H, H)
        (5.0, 1.0)
    """
    if isinstance(hessian, Kronecker) and isinstance(preconditioner, Kronecker):
        return _pencil_condition(hessian.left, preconditioner.left) * _pencil_condition(
            hessian.right, preconditioner.right
        )
    return _pencil_condition(hessian.matrix(), preconditioner.matrix())


def _damped(S: Tensor, damping: float) -> Tensor:
    """S + damping * ||S||_2 I."""
    return S + damping * torch.linalg.eigvalsh(S)[-1] * torch.eye(len(S), dtype=S.dtype) if damping else S


def _pencil_condition(H: Tensor, P: Tensor) -> float:
    """Largest over smallest eigenvalue of P^{-1/2} H P^{-1/2}."""
    values, vectors = torch.linalg.eigh(P)
    if not bool(values[0] > torch.finfo(P.dtype).eps * len(P) * values[-1]):
        return float("inf")
    root = vectors * values.rsqrt()
    pencil = torch.linalg.eigvalsh(root.mT @ H @ root)
    return float(pencil[-1] / pencil[0]) if pencil[0] > 0 else float("inf")
