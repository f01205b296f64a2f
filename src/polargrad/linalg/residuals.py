"""How good a computed polar factor is: LAPACK-style ratios to eps * dimension."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Residuals", "residuals"]


class Residuals(NamedTuple):
    """Ratios of shape batch, each near or below 1 for a backward stable computation of a full-rank matrix.

    A matrix without full rank has no unique unitary factor: its partial isometry shows in `orthogonality` alone.

    With k = min(m, n), eps of the dtype, H the Hermitian part of U^H A (tall) or A U^H (wide):

    Attributes:
        orthogonality: ||U^H U - I||_F / (eps k).
        symmetry: ||K - K^H||_F / (eps k ||A||_F), where K = U^H A before it is made Hermitian.
        definiteness: max(0, -lambda_min(H)) / (eps k ||A||_2).
        backward_error: ||A - U H||_F / (eps k ||A||_F).
        nuclear_gap: | <A, U> - ||A||_nuc | / (eps k ||A||_nuc).
    """

    orthogonality: Tensor
    symmetry: Tensor
    definiteness: Tensor
    backward_error: Tensor
    nuclear_gap: Tensor


def residuals(A: Tensor, U: Tensor) -> Residuals:
    """Measure the computed unitary factor U of A, in double precision.

    Args:
        A: (*batch, m, n), real or complex.
        U: the same shape; its dtype sets eps.

    Returns:
        Residuals, five float64 tensors of shape batch; NaN for a matrix that is not finite.

    Raises:
        ValueError: the shapes differ or are not matrices.
        TypeError: not floating point or complex, or only one of the two is complex.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([2.0, 3.0]))
        >>> residuals(A, torch.eye(2)).backward_error.item()
        0.0

    Source: Higham and Papadimitriou (1994), section 4, for the choice of the residuals.
    """
    if A.shape != U.shape or A.ndim < 2:
        raise ValueError(f"A and U must be matrices of one shape, got {tuple(A.shape)} and {tuple(U.shape)}")
    if A.is_complex() != U.is_complex() or not (A.is_complex() or (A.is_floating_point() and U.is_floating_point())):
        raise TypeError(f"A and U must both be floating point or both complex, got {A.dtype} and {U.dtype}")
    with torch.no_grad():
        return _ratios(A, U)


def _ratios(A: Tensor, U: Tensor) -> Residuals:
    k = min(A.shape[-2:])
    if A.numel() == 0:
        zero = torch.zeros(A.shape[:-2], dtype=torch.float64, device=A.device)
        return Residuals(zero, zero, zero, zero, zero)
    unit = torch.finfo(U.dtype).eps * k
    double = torch.complex128 if A.is_complex() else torch.float64
    A, U = A.to(double), U.to(double)
    finite = (A.isfinite() & U.isfinite()).all(-1).all(-1)
    A, U = (torch.where(finite[..., None, None], M, 0.0) for M in (A, U))
    A = A / A.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    if A.shape[-2] < A.shape[-1]:
        A, U = A.mH, U.mH
    norm = torch.linalg.matrix_norm(A)
    safe = torch.where(norm > 0, norm, 1.0)
    K = U.mH @ A
    H = (K + K.mH) / 2
    eye = torch.eye(k, dtype=double, device=A.device)
    sigma = torch.linalg.svdvals(A)
    nuclear = sigma.sum(-1)
    inner = K.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    lowest = torch.linalg.eigvalsh(H)[..., 0]
    metrics = (
        torch.linalg.matrix_norm(U.mH @ U - eye),
        torch.linalg.matrix_norm(K - K.mH) / safe,
        (-lowest).clamp_min(0.0) / torch.where(norm > 0, sigma[..., 0], 1.0),
        torch.linalg.matrix_norm(A - U @ H) / safe,
        (inner - nuclear).abs() / torch.where(norm > 0, nuclear, 1.0),
    )
    return Residuals(*(torch.where(finite, metric / unit, math.nan) for metric in metrics))
