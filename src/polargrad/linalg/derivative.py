"""The derivative of the polar factor, by the Sylvester equation in the eigenbasis of H."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["attach_gradient"]


def attach_gradient(A: Tensor, U: Tensor) -> Tensor:
    """U, made to carry the derivative of the polar factor at A.

    With A = U H, m >= n, a change dA moves the factor by

        dU = U W + (I - U U^H) dA H^{-1},   where H W + W H = U^H dA - dA^H U,

    and its adjoint takes a cotangent G of U to

        dA = U Y + (G - U U^H G) H^{-1},    where H Y + Y H = U^H G - G^H U.

    It is the derivative of the exact factor, evaluated at the U that was computed, however that was done. Derivatives
    of any order exist: the adjoint is itself differentiable.

    Args:
        A: (k, m, n) with m >= n, floating point or complex.
        U: (k, m, n), its unitary factors, of the same or a wider or narrower dtype; not differentiable itself.

    Returns:
        U with a gradient function. Its backward raises RuntimeError where the factor is not differentiable: at a matrix
        without full rank that received a cotangent other than zero.

    Example:
        >>> import torch
        >>> A = torch.tensor([[[2.0], [0.0]]], requires_grad=True)
        >>> U = attach_gradient(A, torch.tensor([[[1.0], [0.0]]]))
        >>> torch.autograd.grad(U.sum(), A)[0].flatten().tolist()
        [0.0, 0.5]

    Source: Kenney and Laub, Polar decomposition and matrix sign function condition estimates (1991), section 2, for the
    Sylvester equation; the adjoint is derived from it.
    """
    return _Factor.apply(A, U)


class _Factor(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, U: Tensor) -> Tensor:
        return U.view_as(U)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        A, U = ctx.saved_tensors
        return _adjoint(A, U, cotangents[0]), None


def _adjoint(A: Tensor, U: Tensor, G: Tensor) -> Tensor:
    """The cotangent of A, by differentiable operations alone."""
    work = torch.float32 if A.dtype in (torch.float16, torch.bfloat16) else A.dtype
    U, G, X = U.to(work), G.to(work), A.to(work)
    n = X.shape[-1]
    finite = (X.isfinite() & G.isfinite()).all(-1, keepdim=True).all(-2, keepdim=True)
    moved = (G != 0).any(-1, keepdim=True).any(-2, keepdim=True)
    largest = torch.where(finite, X.detach().abs().amax((-2, -1), keepdim=True), 0.0)
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent.clamp(-126, 126))
    X = X * scale
    K = U.mH @ X
    # A matrix without a cotangent contributes nothing and need not be differentiable.
    H = torch.where(finite & moved, (K + K.mH) / 2, torch.eye(n, dtype=work, device=X.device))
    M = U.mH @ G
    gradient = U @ _sylvester(H, M - M.mH)
    if X.shape[-2] > n:
        gradient = gradient + torch.linalg.solve(H, G - U @ M, left=False)
    return torch.where(finite, gradient * scale, math.nan).to(A.dtype)


def _sylvester(H: Tensor, S: Tensor) -> Tensor:
    """Y with H Y + Y H = S, for Hermitian positive definite H (k, n, n)."""
    return _Sylvester.apply(H, S)


class _Sylvester(torch.autograd.Function):
    """The operator S -> Y is self-adjoint, so its own derivative is another solve and never that of an eigenvector."""

    generate_vmap_rule = True

    @staticmethod
    def forward(H: Tensor, S: Tensor) -> Tensor:
        values, Q = torch.linalg.eigh(H)
        _require_full_rank(values)
        return Q @ ((Q.mH @ S @ Q) / (values.unsqueeze(-1) + values.unsqueeze(-2))) @ Q.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        H, Y = ctx.saved_tensors
        T = _sylvester(H, cotangents[0])
        return -(T @ Y.mH + Y.mH @ T), T


def _require_full_rank(values: Tensor) -> None:
    """Raise where an eigenvalue of H is zero up to rounding; values (k, n) ascending."""
    ratio = values[..., 0] / values[..., -1].clamp_min(torch.finfo(values.dtype).tiny)
    singular = ~(ratio > 4 * torch.finfo(values.dtype).eps)
    if bool(singular.any()):
        raise RuntimeError(
            f"the polar factor is not differentiable at a matrix without full rank: {int(singular.sum())} of "
            f"{singular.numel()} matrices have sigma_min / sigma_max below {4 * torch.finfo(values.dtype).eps:.1e} "
            f"(smallest {float(ratio.min()):.1e}); leave them out of the loss, or add a small full-rank perturbation"
        )
