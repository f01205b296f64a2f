"""Inverse square roots, and bases made orthonormal in a metric by the smallest possible change."""

from __future__ import annotations

import torch
from torch import Tensor

from polargrad.linalg.decomposition import needs_gradient, on_host, polar_factor, resolve_request
from polargrad.linalg.derivative import SingularGradient, attach_root_gradient, opaque, product
from polargrad.linalg.precision import at_least_single, stated_precision
from polargrad.linalg.scaling import largest_entry, power_of_two_scale

__all__ = ["inverse_sqrt", "lowdin"]


def inverse_sqrt(A: Tensor) -> Tensor:
    """A^(-1/2), the Hermitian positive definite X with X A X = I.

    With A = R^H R by Cholesky and the polar decomposition R = U H, H is A^(1/2) and X = R^{-1} U. Its relative error is
    about cond(A)^(1/2) eps, or cond(A) eps where A itself is rounded. Gradients flow to any order, at repeated
    eigenvalues too.

    Args:
        A: (*batch, n, n), Hermitian positive definite; real or complex, float16 to float64. What is not Hermitian of it
            is ignored: (A + A^H) / 2 is taken.

    Returns:
        X (*batch, n, n) in A's dtype. A matrix with NaN or infinity gives NaN.

    Raises:
        TypeError: A is not a dense floating-point or complex tensor.
        ValueError: not square; not positive definite beyond rounding (where no number may be read, on a GPU and under
            torch.compile, the result is NaN instead).

    Example:
        >>> inverse_sqrt(torch.diag(torch.tensor([4.0, 0.25]))).tolist()
        [[0.5, 0.0], [0.0, 2.0]]

    Source: Higham, Functions of Matrices (2008), algorithm 6.21.
    """
    resolve_request(A)
    M, root = _scaled(A, "A")
    if not A.numel():
        return A * 1.0

    def inverse_root(M: Tensor) -> tuple[Tensor, ...]:
        with stated_precision(M.device.type):
            R = _cholesky(M, "A")
            X = torch.linalg.solve_triangular(R, polar_factor(R), upper=True)
            return ((X + X.mH) / 2,)

    (X,) = opaque(inverse_root, M)
    if needs_gradient(A):
        X = attach_root_gradient(M, X)
    return (X.reshape(A.shape) * root).to(A.dtype)


def lowdin(A: Tensor, S: Tensor | None = None, *, singular_gradient: SingularGradient = "raise") -> Tensor:
    """The basis nearest to A that is orthonormal in the metric S: Q = A (A^H S A)^(-1/2), Q^H S Q = I.

    Loewdin's symmetric orthogonalization: of all bases of the columns' span that are orthonormal in the metric, Q
    minimizes ||S^(1/2) (Q - A)||_F. With S = R^H R by Cholesky, Q = R^{-1} U with the unitary factor U of R A, so that
    A^H S A, whose condition number is a square, is never formed. Without S it is the polar factor of A. Gradients flow
    through A and S, to any order.

    Args:
        A: (*batch, m, n) with m >= n, a vector in each column; real or complex, float16 to float64. Columns that depend
            on each other give what `polar_factor` gives: a partial isometry, here one of the metric.
        S: (*batch, m, m) or (m, m), Hermitian positive definite, of A's dtype; None is the identity.
        singular_gradient: as for `polar_factor`, where columns of A depend on each other.

    Returns:
        Q, of A's shape and dtype.

    Raises:
        TypeError: A or S is not a dense floating-point or complex tensor, or they differ in dtype.
        ValueError: m < n, shapes that do not fit, or a metric that is not positive definite beyond rounding (where no
            number may be read, on a GPU and under torch.compile, the result is NaN instead).

    Example:
        >>> S = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> Q = lowdin(torch.eye(2), S)
        >>> (Q.mT @ S @ Q).round(decimals=4).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Loewdin, J. Chem. Phys. 18 (1950); Carlson and Keller, Phys. Rev. 105 (1957), for the minimum.
    """
    resolve_request(A)
    if A.shape[-2] < A.shape[-1]:
        raise ValueError(f"A must have at least as many rows as columns, got {tuple(A.shape)}; try lowdin(A.mH)")
    if S is None:
        return polar_factor(A, singular_gradient=singular_gradient)
    if not isinstance(S, Tensor) or S.dtype != A.dtype:
        raise TypeError(f"S must be a tensor of A's dtype {A.dtype}, got {getattr(S, 'dtype', type(S).__name__)}")
    if S.shape not in (A.shape[:-2] + 2 * A.shape[-2:-1], 2 * A.shape[-2:-1]):
        raise ValueError(
            f"S must have shape (*batch, m, m) or (m, m) for A (*batch, m, n) = {tuple(A.shape)}, got {tuple(S.shape)}"
        )
    X, (M, root) = A.to(at_least_single(A.dtype)), _scaled(S, "S")
    if not A.numel():
        return A * 1.0
    X = X.flatten(0, -3) if A.ndim > 2 else X[None]
    every = M.expand(len(X), -1, -1)

    def basis(X: Tensor, M: Tensor) -> tuple[Tensor, ...]:
        with stated_precision(X.device.type):
            R = _cholesky(M[:1] if M.stride(0) == 0 else M, "S")
            return (torch.linalg.solve_triangular(R, polar_factor(R @ X), upper=True),)

    (Q,) = opaque(basis, X, every)
    if needs_gradient(A, S):
        # The same by square roots, whose derivatives are computed in the stated precision: added and taken off again.
        inverse = inverse_sqrt(M).expand_as(every)
        U = polar_factor(product(product(every, inverse), X), singular_gradient=singular_gradient)
        same = product(inverse, U)
        Q = Q + (same - opaque(lambda same: (same.clone(),), same)[0])
    return (Q.reshape(A.shape) * root).to(A.dtype)


def _scaled(A: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """root^2 (A + A^H) / 2 (k, n, n), at least in single precision, and the power of two `root` (*batch, 1, 1)."""
    resolve_request(A)
    if A.shape[-2] != A.shape[-1]:
        raise ValueError(f"{name} must hold square matrices, got shape {tuple(A.shape)}")
    M = A.to(at_least_single(A.dtype))
    root = power_of_two_scale(largest_entry(M.detach()).sqrt()) if A.numel() else M.new_ones(())
    M = M * root * root
    M = (M + M.mH) / 2
    return M.flatten(0, -3) if A.ndim > 2 else M[None], root


def _cholesky(M: Tensor, name: str) -> Tensor:
    """R with R^H R = M (k, n, n), NaN where there is none; where numbers may be read, that is an error."""
    R, info = torch.linalg.cholesky_ex(M, upper=True)
    failed = info != 0
    bad = failed & M.isfinite().all(-1).all(-1)
    if on_host(M) and bool(bad.any()):
        lowest = torch.linalg.eigvalsh(M[bad])[..., 0] / largest_entry(M[bad])[..., 0, 0]
        raise ValueError(
            f"{name} must be Hermitian positive definite: {int(bad.sum())} of {failed.numel()} matrices are not, with "
            f"a smallest eigenvalue of {float(lowest.min()):.1e} times the largest entry; add a multiple of the "
            "identity, or leave out the directions in which it is singular"
        )
    return torch.where(failed[:, None, None], torch.nan, R)
