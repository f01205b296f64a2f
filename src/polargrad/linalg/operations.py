"""Floating-point operations of the pieces that methods are made of, for one matrix (m, n) with m >= n.

An operation is one of the dtype's own arithmetic, so that a complex product counts like a real one. Products count all
of their 2 m n k operations, symmetric results included; LAPACK's routines count by their leading terms.

Source: Golub and Van Loan, Matrix Computations (2013), sections 4.2, 5.2, 8.3 and 8.6; LAPACK Working Note 41.
"""

from __future__ import annotations

__all__ = ["cholesky", "eigh", "gram", "inverse", "polynomial", "product", "qr", "svd", "triangular_inverse"]


def product(m: int, n: int) -> float:
    """X S: (m, n) times (n, n). A solve with a triangular S takes half of it.

    Example:
        >>> product(3, 2)
        24.0
    """
    return 2.0 * m * n**2


gram = product  # X^H X: as many


def polynomial(m: int, n: int, quintic: bool = True) -> float:
    """X (a I + b G + c G^2) with G = X^H X; a cubic has c = 0."""
    return gram(m, n) + (product(n, n) if quintic else 0.0) + product(m, n)


def cholesky(n: int) -> float:
    """G = R^H R."""
    return n**3 / 3


def triangular_inverse(n: int) -> float:
    """R^{-1} of a triangular matrix; the inverse of G = R^H R takes as many again."""
    return n**3 / 3


def inverse(n: int) -> float:
    """X^{-1} of a square matrix, by elimination."""
    return 2.0 * n**3


def qr(m: int, n: int) -> float:
    """X = Q R by Householder reflections, with Q (m, n) formed."""
    return 4.0 * m * n**2 - 4 / 3 * n**3


def eigh(n: int) -> float:
    """All eigenvalues and eigenvectors of a Hermitian matrix."""
    return 9.0 * n**3


def svd(m: int, n: int) -> float:
    """X = P diag(sigma) Q^H with P (m, n) and Q (n, n), after a QR factorization."""
    return 6.0 * m * n**2 + 20.0 * n**3
