"""The inverse square root of a well-conditioned Gram matrix, by polynomials of that matrix alone."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from polargrad.linalg.bounds import largest_eigenvalue
from polargrad.linalg.kernels import hermitian_product

__all__ = ["inverse_root"]

# Degrees of the polynomials; each costs half as many products.
_DEGREES = (2, 4, 6, 8)
# The degree where none is enough.
_USUAL = 6
# Intervals are rounded outwards on a grid of the logarithm of their Bernstein ellipse's size.
_GRID = 0.05
# The deviation is estimated from below; it is widened by this.
_MARGIN = 1.1
_NODES = 64


def _root_coefficients(logarithm: float, degree: int) -> tuple[tuple[float, ...], float]:
    """Coefficients, ascending, of the polynomial in x in [-1, 1] that is near t^{-1/2}, and its relative error.

    t = (1 + a) / 2 + (1 - a) / 2 x covers [a, 1] with sqrt(a) = (rho - 1) / (rho + 1), rho = exp(logarithm): the error
    falls like rho^{-degree}. Least squares at Chebyshev nodes, near the best in the maximum norm.
    """
    a = math.tanh(logarithm / 2) ** 2
    x = torch.cos((torch.arange(_NODES, dtype=torch.float64) + 0.5) * (math.pi / _NODES))
    weighted = (0.5 * (1 + a) + 0.5 * (1 - a) * x).sqrt()[:, None] * torch.linalg.vander(x, N=degree + 1)
    target = torch.ones(_NODES, 1, dtype=torch.float64)
    c = torch.linalg.lstsq(weighted, target).solution
    return tuple(c[:, 0].tolist()), float((weighted @ c - target).abs().max())


@functools.cache
def _choice(logarithm: float, tolerance: float) -> tuple[tuple[float, ...], bool]:
    """The cheapest coefficients with a relative error up to the tolerance, or those of the usual degree and False."""
    for degree in _DEGREES:
        coefficients, error = _root_coefficients(logarithm, degree)
        if error <= tolerance:
            return coefficients, True
    return _root_coefficients(logarithm, _USUAL)[0], False


def _logarithm(a: float) -> float:
    """Of rho for the interval [a, 1], rounded down to the grid."""
    return max(_GRID, _GRID * math.floor(2 * math.atanh(math.sqrt(min(max(a, 0.0), 1 - 1e-15))) / _GRID))


def _polynomial(B: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """sum_i c_i B^i for Hermitian B (k, n, n) by powers up to B^2 or B^3 and Horner's rule in the last of them."""
    degree = len(coefficients) - 1
    width = 2 if degree <= 4 else 3
    powers = [B]
    while len(powers) < width:
        powers.append(hermitian_product(powers[-1], B))

    def part(c: tuple[float, ...]) -> Tensor:
        total = c[1] * powers[0]
        for power, factor in zip(powers[1:], c[2:], strict=False):
            total.add_(power, alpha=factor)
        total.diagonal(dim1=-2, dim2=-1).add_(c[0])
        return total

    start = degree - (degree % width or width)
    P = part(coefficients[start:])
    while start:
        start -= width
        P = hermitian_product(P, powers[-1], part(coefficients[start : start + width]))
    return P


def inverse_root(G: Tensor, lower: float, *, most: int = 8) -> tuple[Tensor, int]:
    """G^{-1/2} for G (k, n, n) with eigenvalues in [lower^2, 1], and the number of polynomials.

    With G = X^H X, X G^{-1/2} is the unitary factor of X. Each polynomial p is near the best one for t^{-1/2} where the
    eigenvalues of the current R lie: Q <- Q p(R), R <- p(R) R p(R). The first interval is given, the next ones are
    measured, so that a `lower` that was estimated too high costs one more polynomial and no accuracy. Reads a number
    back from the device. Rounding leaves an error of about eps / lower.

    Args:
        G: in single or double precision; not modified.
        lower: in (0, 1).
        most: how many polynomials to apply at most.

    Example:
        >>> Q, _ = inverse_root(torch.diag(torch.tensor([1.0, 0.25]))[None], 0.5)
        >>> [round(q, 5) for q in Q[0].diagonal().tolist()]
        [1.0, 2.0]

    Source: Higham, Functions of Matrices (2008), sections 4.2 (Paterson and Stockmeyer) and 6.3 (coupled iterations).
    """
    tolerance = torch.finfo(G.dtype).eps / 4
    R, Q, low, high = G, None, lower**2, 1.0
    for count in range(1, most + 1):
        logarithm = _logarithm(low / high)
        coefficients, exact = _choice(logarithm, tolerance)
        a = math.tanh(logarithm / 2) ** 2
        B = R * (2 / (high * (1 - a)))
        B.diagonal(dim1=-2, dim2=-1).sub_((1 + a) / (1 - a))
        P = _polynomial(B, tuple(c / math.sqrt(high) for c in coefficients))
        Q = P if Q is None else hermitian_product(Q, P)
        if exact or count == most:
            return Q, count
        R = hermitian_product(P, hermitian_product(R, P))
        D = R.clone()
        D.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        deviation = _MARGIN * float(largest_eigenvalue(D).max())
        low, high = 1.0 - deviation, 1.0 + deviation
    raise ValueError(f"most must be at least 1, got {most}")
