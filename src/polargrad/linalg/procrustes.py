"""Orthogonal Procrustes problems: the nearest rotation, and the isometry that carries one set of points to another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polargrad.linalg.decomposition import factor, polar_factor, resolve_request
from polargrad.linalg.derivative import SingularGradient, product
from polargrad.linalg.method import IterationResult, PolarMethod
from polargrad.linalg.precision import at_least_single
from polargrad.linalg.scaling import largest_entry, power_of_two_scale

__all__ = ["nearest_rotation", "orthogonal_procrustes"]


@dataclass(frozen=True)
class _Rotation(PolarMethod):
    """R = P diag(1, ..., 1, det P Q^T) Q^T from A = P diag(sigma) Q^T."""

    name: ClassVar[str] = "rotation"

    def iterate(self, X: Tensor) -> IterationResult:
        P, _, Qt = torch.linalg.svd(X, full_matrices=False, driver="gesvd" if X.is_cuda else None)
        U = P @ Qt
        reflected = (torch.linalg.det(U) < 0)[:, None, None]
        return IterationResult(torch.where(reflected, U - 2 * P[..., -1:] @ Qt[..., -1:, :], U), steps=1)


def nearest_rotation(A: Tensor, *, singular_gradient: SingularGradient = "raise") -> Tensor:
    """The rotation R, R^T R = I and det R = 1, that is nearest to A.

    R = P diag(1, ..., 1, det P Q^T) Q^T from A = P diag(sigma) Q^T minimizes ||A - R||_F and maximizes <A, R> over all
    rotations. It is the polar factor of A where det A > 0. There is always one, of a singular or a zero matrix too; it
    is unique, and has a gradient, unless sigma_(n-1) = 0, or sigma_(n-1) = sigma_n and det A < 0. The gradient is the
    one of the polar factor, dR = R Y with H Y + Y H = R^T dA - dA^T R and H = R^T A, to any order.

    Args:
        A: (*batch, n, n), real, float16 to float64.
        singular_gradient: what backward does at a matrix that takes part in the loss and has no gradient: "raise" a
            RuntimeError, or make the gradient of that matrix "zero" or "nan".

    Returns:
        R (*batch, n, n) in A's dtype. A matrix with NaN or infinity gives NaN.

    Raises:
        TypeError: A is not a dense real floating-point tensor.
        ValueError: the matrices are not square.

    Example:
        >>> R = nearest_rotation(torch.diag(torch.tensor([3.0, 2.0, -1.0])))
        >>> (R.round() + 0.0).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Source: Kabsch (1978); Umeyama, IEEE Trans. PAMI 13 (1991), lemma.
    """
    request = resolve_request(A, _Rotation(), singular_gradient=singular_gradient)
    if A.is_complex():
        raise TypeError(f"a rotation is real, got {A.dtype}; the nearest unitary matrix is polar_factor(A)")
    if A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A must hold square matrices, got shape {tuple(A.shape)}; for others use polar_factor(A)")
    if A.shape[-1] == 1:
        return A * 0.0 + 1.0
    return factor(A, request._replace(rotation=True))


def orthogonal_procrustes(
    A: Tensor, B: Tensor, *, rotation: bool = False, singular_gradient: SingularGradient = "raise"
) -> tuple[Tensor, Tensor]:
    """The orthogonal (unitary) matrix R that minimizes ||A R - B||_F, and the scale that goes with it.

    R is the unitary factor of M = A^H B, completed where M is singular, or the rotation nearest to M. With
    scale = Re <M, R>, the sum of the singular values of M (the last one with the sign of det M, for rotations), the
    best s R with a number s has s = scale / ||A||_F^2. Subtract the means of the rows first where a translation is
    free. Gradients flow through both, to any order.

    Args:
        A: (*batch, m, n), a point in each row; real or complex, float16 to float64.
        B: of the shape and dtype of A.
        rotation: whether only matrices of determinant +1 are allowed, as for point sets of one handedness; real only.
        singular_gradient: what backward does at an M that takes part in the loss and has no gradient: "raise" a
            RuntimeError, or make it "zero" or "nan". For a rotation in three dimensions two independent directions are
            enough; otherwise n are needed.

    Returns:
        (R, scale): (*batch, n, n), and real of shape batch, as scipy.linalg.orthogonal_procrustes returns them.

    Raises:
        TypeError: A or B is not a dense floating-point or complex tensor, they differ in dtype, or complex rotations.
        ValueError: A and B differ in shape.

    Example:
        >>> A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> R, scale = orthogonal_procrustes(A, A @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]]), rotation=True)
        >>> (R.round() + 0.0).tolist(), round(scale.item() / A.square().sum().item(), 4)
        ([[0.0, 1.0], [-1.0, 0.0]], 2.0)

    Source: Schoenemann, Psychometrika 31 (1966); Umeyama, IEEE Trans. PAMI 13 (1991), eq. (40) to (42).
    """
    for M in (A, B):
        resolve_request(M)
    if A.shape != B.shape or A.dtype != B.dtype:
        raise (ValueError if A.shape != B.shape else TypeError)(
            f"A and B must have one shape and dtype, got {tuple(A.shape)} {A.dtype} and {tuple(B.shape)} {B.dtype}"
        )
    batch, work = A.shape[:-2], at_least_single(A.dtype)
    scales = [power_of_two_scale(largest_entry(M.detach())) for M in (A, B)] if A.numel() else [1.0, 1.0]
    count = math.prod(batch)
    X, Y = ((M.to(work) * scale).reshape(count, *M.shape[-2:]) for M, scale in zip((A, B), scales, strict=True))
    M = product(X.mH, Y)
    if rotation:
        R = nearest_rotation(M, singular_gradient=singular_gradient)
    else:
        R = polar_factor(M, completed=True, singular_gradient=singular_gradient)
    scale = (M * R.conj()).real.sum((-2, -1)).reshape(batch)
    for part in scales:
        scale = scale / (part.reshape(batch) if isinstance(part, Tensor) else part)
    return R.reshape(*batch, *R.shape[-2:]).to(A.dtype), scale.to(A.real.dtype)
