"""One-sided polar factors, from a decomposition of the small Gram matrix alone: for embeddings, heads and routers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.geometry.base import Geometry, Reduction, register
from polargrad.linalg import GramPolynomials, operations, polar_factor
from polargrad.linalg.decomposition import on_host
from polargrad.linalg.kernels import gram, product
from polargrad.linalg.precision import at_least_single, double_precision
from polargrad.linalg.scaling import largest_entry, power_of_two_scale

__all__ = ["LeftPolar", "RightPolar"]


# Products alone: an eigendecomposition reads its status from the device.
_ON_A_DEVICE = GramPolynomials()


def _inverse_square_root(S: Tensor) -> Tensor:
    """S^{-1/2} of positive semidefinite matrices (k, n, n), zero where an eigenvalue is rounding error."""
    values, vectors = torch.linalg.eigh(S)
    least = S.shape[-1] * torch.finfo(S.dtype).eps * values[..., -1:]
    roots = torch.where(values > least, values, torch.inf).rsqrt()
    return (vectors * roots.unsqueeze(-2)) @ vectors.mH


@dataclass(frozen=True)
class _OneSided(Geometry):
    """A polar factor through the Gram matrix of one side, the shorter one."""

    reduction: ClassVar[Reduction | None] = "gram"

    def check_shape(self, m: int, n: int) -> None:
        """Refuse a matrix whose small Gram matrix is on the other side."""
        tall = self.name == "right-polar"
        if (m < n) if tall else (m > n):
            side, other = ("wide", "left-polar") if tall else ("tall", "right-polar")
            raise ValueError(
                f"geometry={self.name!r} forms the {max(m, n)} x {max(m, n)} Gram matrix of a {side} matrix "
                f"({m}, {n}); use {other!r}, which forms the smaller one"
            )

    def squared_length(self, m: int, n: int) -> float:
        """min(m, n), the rank."""
        return float(min(m, n))

    def operations(self, m: int, n: int, dtype: torch.dtype = torch.float32) -> float:
        """A Gram matrix of the smaller side, its inverse root by an eigendecomposition, and a product."""
        m, n = max(m, n), min(m, n)
        return operations.gram(m, n) + operations.eigh(n) + operations.product(n, n) + operations.product(m, n)

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """float64, in which everything is formed and decomposed."""
        return torch.complex128 if dtype.is_complex else torch.float64

    @property
    def peak_memory(self) -> float:
        """The most memory: all is formed in float64, and an eigendecomposition takes several times its Gram matrix."""
        return 12.0

    def bytes_per_entry(self, dtype: torch.dtype, device: torch.device) -> float:
        """On a device the factor comes from products alone, which hold more."""
        peak = self.peak_memory if device.type == "cpu" else GramPolynomials.peak_memory
        return peak * max(4, dtype.itemsize)


@register
@dataclass(frozen=True)
class RightPolar(_OneSided):
    """The spectral norm of a tall matrix through its columns: lmo(G) = G (G^H G)^{-1/2}, ||G||_* = ||G||_nuc.

    With scale nu^alpha, alpha in [0, 1], it is the step G (G^H G)^{-1/2} nu^alpha for an embedding or head whose rows
    are the vocabulary. In exact arithmetic this is the polar factor. Everything is formed and decomposed
    in float64: for float32 and half precision nothing is lost; in float64 singular values below 1.5e-8 sqrt(n) ||G||_2
    count as zero (their squares are rounding error), where `Spectral("svd")` resolves them. The cost is one pass over
    G, one product, and an eigendecomposition of n x n.

    Example:
        >>> import torch
        >>> RightPolar().lmo(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])).tolist()
        [[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]]

    Source: Lau, Long, Su, arXiv 2605.18106, one-sided polar updates.
    """

    name: ClassVar[str] = "right-polar"

    def lmo(self, G: Tensor) -> Tensor:
        """The polar factor of each tall matrix of G (*batch, m, n); NaN if not finite; zero on the null space of G.

        On a device other than a CPU, and under torch.compile, somewhere between zero and an isometry there.

        Raises:
            ValueError: G is wide.
        """
        self.check_shape(*G.shape[-2:])
        if G.numel() == 0:
            return torch.zeros_like(G)
        if not on_host(G):
            return polar_factor(G, _ON_A_DEVICE)
        X = G.flatten(0, -3) if G.ndim > 2 else G.unsqueeze(0)
        # In float64, which holds the reciprocal of every float32 number.
        X = (X * power_of_two_scale(largest_entry(X).double())).to(at_least_single(X.dtype))
        S = gram(X, double_precision(X.dtype))
        finite = S.isfinite().all(-1).all(-1)[:, None, None]
        root = torch.where(finite, _inverse_square_root(torch.where(finite, S, 0.0)), torch.nan)
        # In float64 too: where cond(G) is large, the terms of the product cancel.
        U = product(X, root)
        return U.to(G.dtype).reshape(G.shape)


@register
@dataclass(frozen=True)
class LeftPolar(_OneSided):
    """The spectral norm of a wide matrix through its rows: lmo(G) = (G G^H)^{-1/2} G, the transpose of `RightPolar`.

    Example:
        >>> import torch
        >>> LeftPolar().dual_norm(torch.tensor([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]])).item()
        7.0

    Source: Lau, Long, Su, arXiv 2605.18106, one-sided polar updates.
    """

    name: ClassVar[str] = "left-polar"

    def lmo(self, G: Tensor) -> Tensor:
        """The polar factor of each wide matrix of G (*batch, m, n); zero on the null space of G.

        Raises:
            ValueError: G is tall.
        """
        self.check_shape(*G.shape[-2:])
        return RightPolar().lmo(G.mH).mH
