"""The one shared path of every method: validate -> orient -> scale -> iterate -> finish."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from polargrad.linalg.method import Iterate, PolarMethod, resolve_method
from polargrad.linalg.result import PolarResult, Status

__all__ = ["polar", "polar_factor"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


class _Canonical(NamedTuple):
    """A validated input in the form that methods see, and what is needed to undo it."""

    X: Tensor  # (k, m, n), m >= n, scaled, non-finite matrices replaced by zero
    scale: Tensor  # (k, 1, 1) power of two with X = scale * A
    finite: Tensor  # bool (k,)
    wide: bool


def _validate(A: Tensor) -> None:
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor, got {type(A).__name__}; convert it with torch.as_tensor")
    if A.ndim < 2:
        raise ValueError(f"A must have shape (*batch, m, n), got {tuple(A.shape)}; a vector v needs v.unsqueeze(-1)")
    if A.dtype not in _DTYPES:
        raise TypeError(f"A must be floating point or complex, got {A.dtype}; convert it, for example A.float()")
    if A.layout != torch.strided:
        raise TypeError(f"A must be a dense tensor, got layout {A.layout}; use A.to_dense()")


def _canonical(A: Tensor, method: PolarMethod) -> _Canonical:
    wide = A.shape[-2] < A.shape[-1]
    X = (A.mH if wide else A).flatten(0, -3) if A.ndim > 2 else (A.mH if wide else A).unsqueeze(0)
    X = X.resolve_conj()
    entries = torch.view_as_real(X).flatten(-2) if X.is_complex() else X
    # One pass gives the size and whether anything is not finite: the maximum carries NaN and infinity along.
    largest = torch.linalg.vector_norm(entries, math.inf, dim=(-2, -1), keepdim=True)
    finite = largest.isfinite()
    # A power of two scales without rounding; float32 holds the exponents of every smaller dtype.
    wider = largest.to(torch.float64 if largest.dtype == torch.float64 else torch.float32)
    limit = math.log2(torch.finfo(wider.dtype).max) - 2
    exponent = torch.frexp(torch.where(finite, wider, 0.0)).exponent.clamp(-int(limit), int(limit))
    scale = torch.ldexp(torch.ones_like(wider), -exponent)
    work = method.working_dtype(A.dtype)
    if A.dtype == torch.float16 or (A.dtype == torch.float32 and work in (torch.bfloat16, torch.float16)):
        X = X.to(torch.float32)  # the scale of a tiny matrix does not fit a half-precision number
    X = torch.where(finite, X * scale, 0.0).to(work).contiguous()
    return _Canonical(X, scale, finite.flatten(), wide)


def _factor(canonical: _Canonical, A: Tensor, method: PolarMethod) -> tuple[Tensor, Iterate]:
    """The unitary factors in A's shape and dtype (NaN where A was not finite), and what the method said."""
    iterate = method.iterate(canonical.X)
    U = torch.where(canonical.finite[:, None, None], iterate.unitary, math.nan).to(A.dtype)
    return (U.mH if canonical.wide else U).reshape(A.shape), iterate


def polar_factor(
    A: Tensor,
    method: str | PolarMethod = "auto",
    *,
    accuracy: float | str | None = None,
    max_steps: int | None = None,
) -> Tensor:
    """The unitary polar factor U of A, where A = U H (m >= n) or A = H U (m < n).

    U = A (A^H A)^{-1/2} for a matrix of full column rank: the nearest matrix with orthonormal columns, and the
    direction of steepest descent in the spectral norm. <A, U> is the nuclear norm of A. A is not modified.

    Args:
        A: (*batch, m, n), real or complex, float16 to float64.
        method: a name (`polargrad.linalg.available_methods()`) or a `PolarMethod`.
        accuracy: what to ask of `auto`: a number, or "full".
        max_steps: limit on the iterations of an iterative method.

    Returns:
        U of A's shape and dtype. A matrix with NaN or infinity gives NaN, a zero matrix gives zero.

    Raises:
        TypeError: A is not a dense floating-point or complex tensor.
        ValueError: fewer than two dimensions, unknown method, bad max_steps.

    Example:
        >>> import torch, polargrad
        >>> U = polargrad.polar_factor(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), "svd")
        >>> U.round().tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """
    _validate(A)
    chosen = resolve_method(method, max_steps)
    if A.numel() == 0:
        return torch.zeros_like(A)
    return _factor(_canonical(A, chosen), A, chosen)[0]


def polar(
    A: Tensor,
    method: str | PolarMethod = "auto",
    *,
    hermitian: bool = True,
    accuracy: float | str | None = None,
    max_steps: int | None = None,
) -> PolarResult:
    """The polar decomposition A = U H (m >= n) or A = H U (m < n), with a status for each matrix.

    Args:
        A: (*batch, m, n), real or complex, float16 to float64.
        method: a name (`polargrad.linalg.available_methods()`) or a `PolarMethod`.
        hermitian: whether to form H = (U^H A + A^H U) / 2; without it the result's `hermitian` is None.
        accuracy: what to ask of `auto`: a number, or "full".
        max_steps: limit on the iterations of an iterative method.

    Returns:
        PolarResult(unitary, hermitian, status, stats).

    Raises:
        TypeError: A is not a dense floating-point or complex tensor.
        ValueError: fewer than two dimensions, unknown method, bad max_steps.

    Example:
        >>> import torch, polargrad
        >>> result = polargrad.polar(torch.tensor([[0.0, -2.0], [3.0, 0.0]]), "svd")
        >>> result.hermitian.round().tolist()
        [[3.0, 0.0], [0.0, 2.0]]

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """
    _validate(A)
    chosen = resolve_method(method, max_steps)
    batch, k = A.shape[:-2], min(A.shape[-2:])
    if A.numel() == 0:
        empty = torch.zeros(*batch, k, k, dtype=A.dtype, device=A.device) if hermitian else None
        status = torch.zeros(batch, dtype=torch.int8, device=A.device)
        stats = {"method": chosen.name, "steps": 0, "orthogonality": torch.zeros(batch, device=A.device)}
        return PolarResult(torch.zeros_like(A), empty, status, stats)
    canonical = _canonical(A, chosen)
    U, iterate = _factor(canonical, A, chosen)
    V = iterate.unitary
    gram = V.mH @ V
    # A partial isometry has a projector for a Gram matrix: G^2 = G. For full rank this is G = I.
    defect = torch.linalg.matrix_norm(gram @ gram - gram) / math.sqrt(k)
    converged = defect <= chosen.tolerance(V.dtype, k)
    status = torch.where(converged, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    if iterate.breakdown is not None:
        status = torch.where(iterate.breakdown, int(Status.BREAKDOWN), status)
    status = torch.where(canonical.finite, status, int(Status.NON_FINITE)).to(torch.int8).reshape(batch)
    H = _hermitian_factor(canonical, V, A).reshape(*batch, k, k) if hermitian else None
    stats = {"method": chosen.name, "steps": iterate.steps, "orthogonality": defect.reshape(batch)}
    return PolarResult(U, H, status, stats)


def _hermitian_factor(canonical: _Canonical, V: Tensor, A: Tensor) -> Tensor:
    """H = (V^H X + X^H V) / 2, in the accuracy of the input, unscaled and NaN where A was not finite."""
    work = A.dtype if A.dtype not in (torch.float16, torch.bfloat16) else torch.float32
    X, scale, finite, _ = canonical
    H = V.to(work).mH @ X.to(work)
    H = (H + H.mH) / 2
    return torch.where(finite[:, None, None], H / scale, math.nan).to(A.dtype)
