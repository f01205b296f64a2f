"""Inverse square roots, and bases made orthonormal in a metric by the smallest possible change."""

from __future__ import annotations

import torch
from torch import Tensor

from polargrad.linalg.decomposition import on_host, polar_factor, resolve_request
from polargrad.linalg.derivative import SingularGradient
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
    R, root = _cholesky(A, "A")
    with stated_precision(A.device.type):
        X = torch.linalg.solve_triangular(R, polar_factor(R), upper=True) * root
        return ((X + X.mH) / 2).to(A.dtype)


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
    R, root = _cholesky(S, "S")
    with stated_precision(A.device.type):
        U = polar_factor(R @ A.to(R.dtype), singular_gradient=singular_gradient)
        return (torch.linalg.solve_triangular(R, U, upper=True) * root).to(A.dtype)


def _cholesky(A: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """R with R^H R = root^2 A, at least in single precision, and the power of two `root`; refuses what has none."""
    resolve_request(A)
    if A.shape[-2] != A.shape[-1]:
        raise ValueError(f"{name} must hold square matrices, got shape {tuple(A.shape)}")
    M = A.to(at_least_single(A.dtype))
    if not A.numel():
        return M, M.new_ones(())
    root = power_of_two_scale(largest_entry(M.detach()).sqrt())
    M = M * root * root
    with stated_precision(A.device.type):
        R, info = torch.linalg.cholesky_ex((M + M.mH) / 2, upper=True)
    failed = info != 0
    definite_or_bad = ~failed | ~M.detach().isfinite().all(-1).all(-1)
    if on_host(A) and not bool(definite_or_bad.all()):
        lowest = torch.linalg.eigvalsh(((M + M.mH) / 2).detach().nan_to_num(0.0, 0.0, 0.0))[..., 0]
        lowest = (lowest / root[..., 0, 0] ** 2)[~definite_or_bad].min()
        raise ValueError(
            f"{name} must be Hermitian positive definite: {int((~definite_or_bad).sum())} of {failed.numel()} matrices "
            f"are not, with a smallest eigenvalue of {float(lowest):.1e}; add a multiple of the identity, or leave out "
            "the directions in which it is singular"
        )
    return torch.where(failed[..., None, None], torch.nan, R), root
