"""The one shared path of every method: validate -> orient -> scale -> iterate -> finish."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polargrad.linalg.bounds import is_positive_definite
from polargrad.linalg.derivative import (
    SingularGradient,
    attach_gradient,
    confine,
    iterate_transformed,
    product,
)
from polargrad.linalg.method import Accuracy, IterationResult, PolarMethod, checked, resolve_method
from polargrad.linalg.precision import HALF, at_least_single, double_precision, is_lowered, stated_precision
from polargrad.linalg.result import PolarResult, Status
from polargrad.linalg.scaling import largest_entry, power_of_two_scale, reciprocal_exponent
from polargrad.linalg.tall import has_long_columns

__all__ = [
    "Request",
    "Side",
    "factor",
    "needs_gradient",
    "on_host",
    "polar",
    "polar_factor",
    "resolve_request",
    "unwidened_factor",
]

# On which side of the unitary factor the Hermitian one stands.
Side = Literal["left", "right"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)

# A factor whose singular values have no square below this needs no completion.
_FULL = 0.998

# Largest entries between its reciprocal and this need no scaling: squares and their sums stay in range.
_MODERATE = 2.0**24


class _Canonical(NamedTuple):
    """A validated input in the form that methods see, and what is needed to undo it."""

    A: Tensor  # (k, m, n), m >= n: the input oriented, unscaled, in its own dtype; carries the gradient
    X: Tensor  # (k, m, n), scaled, in the working dtype, non-finite matrices replaced by zero
    scale: Tensor | None  # (k, 1, 1) power of two with X = scale * A; None where every scale is 1
    largest: Tensor | None  # (k, 1, 1) largest entry of each matrix; None where the host saw that all are finite
    confined: bool  # whether X keeps non-finite matrices, whose factor is NaN by itself
    wide: bool

    @property
    def finite(self) -> Tensor | None:
        """Whether each matrix is finite, bool (k,); None where all are."""
        return None if self.largest is None else self.largest.isfinite().flatten()


class Request(NamedTuple):
    """What is asked of the unitary factor."""

    method: PolarMethod
    singular_gradient: SingularGradient
    completed: bool = False
    rotation: bool = False  # the method gives nearest rotations, which have a derivative of their own
    norm_floor: float | Tensor = 0.0
    widened: bool = True  # to the dtype of the input, from half precision in which a method worked

    def iterate(self, X: Tensor) -> IterationResult:
        if has_long_columns(X.shape, X.dtype, X.device):
            # X = Q R has the factor Q times that of R, and no method sums over long columns in single precision.
            Q, R = torch.linalg.qr(X.to(double_precision(X.dtype)))
            result = checked(self.method, R, self.method.iterate(R.to(X.dtype)))
            result = result._replace(unitary=(Q @ result.unitary.to(Q.dtype)).to(X.dtype))
        else:
            result = checked(self.method, X, self.method.iterate(X))
        return result._replace(unitary=_completed(result.unitary)) if self.completed else result


def resolve_request(
    A: Tensor,
    method: str | PolarMethod = "auto",
    accuracy: Accuracy | None = None,
    max_steps: int | None = None,
    singular_gradient: SingularGradient = "raise",
    completed: bool = False,
    norm_floor: float | Tensor = 0.0,
) -> Request:
    """Check A and the options, and turn the method's name into an algorithm."""
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor, got {type(A).__name__}; convert it with torch.as_tensor")
    if A.is_nested:
        raise TypeError("A must be a dense tensor, got a nested one; take its matrices one by one, A.unbind()")
    if A.ndim < 2:
        raise ValueError(f"A must have shape (*batch, m, n), got {tuple(A.shape)}; a vector v needs v.unsqueeze(-1)")
    if A.dtype not in _DTYPES:
        raise TypeError(f"A must be floating point or complex, got {A.dtype}; convert it, for example A.float()")
    if A.layout != torch.strided:
        raise TypeError(f"A must be a dense tensor, got layout {A.layout}; use A.to_dense()")
    if singular_gradient not in ("raise", "zero", "nan"):
        raise ValueError(f"singular_gradient must be 'raise', 'zero' or 'nan', got {singular_gradient!r}")
    if not isinstance(completed, bool):
        raise TypeError(f"completed must be True or False, got {completed!r}")
    if accuracy is not None or max_steps is not None or not isinstance(method, PolarMethod):
        method = resolve_method(method, max_steps, accuracy, A.dtype)
    if completed and (isinstance(norm_floor, Tensor) or norm_floor):
        raise ValueError("completed=True gives every matrix orthonormal columns, and norm_floor not; leave one out")
    _check_floor(norm_floor, A)
    return Request(method.on(A.device), singular_gradient, completed, norm_floor=norm_floor)


def _check_floor(floor: float | Tensor, A: Tensor) -> None:
    """Refuse a `norm_floor` that is not a finite, nonnegative number, or one for each matrix of A."""
    if isinstance(floor, Tensor):
        shape = (*A.shape[:-2], 1, 1)
        if not floor.is_floating_point() or tuple(floor.shape) not in ((), shape) or floor.device != A.device:
            raise ValueError(
                f"norm_floor must be a number or a real floating-point tensor of shape {shape} on {A.device}, one for "
                f"each matrix, got {floor.dtype} of shape {tuple(floor.shape)} on {floor.device}"
            )
        valid = not on_host(floor) or bool(((floor >= 0.0) & floor.isfinite()).all())
    else:
        valid = isinstance(floor, int | float) and not isinstance(floor, bool) and 0.0 <= floor < math.inf
    if not valid:
        raise ValueError(f"norm_floor must be finite and at least 0, got {floor!r}")


def _canonical(A: Tensor, method: PolarMethod) -> _Canonical:
    wide = A.shape[-2] < A.shape[-1]
    work = method.working_dtype(A.dtype)
    oriented = _adjoint(A) if wide else A
    oriented = oriented.flatten(0, -3) if A.ndim > 2 else oriented.unsqueeze(0)
    oriented = oriented.resolve_conj().resolve_neg()
    # Detached: nothing that a method computes from it is recorded.
    X, scale, largest = oriented.detach(), None, None
    host = on_host(X)
    confined = method.confines_nonfinite and not host
    if confined:
        # On a device every operation on a few numbers costs as much as a pass over a small matrix.
        largest = largest_entry(X)
        scale = reciprocal_exponent(largest)
        X = _scaled(X, scale, work)
    elif not (host and _is_moderate(X, work)):
        largest = largest_entry(X)
        finite, scale = largest.isfinite(), power_of_two_scale(largest)
        if work != torch.float16:  # whose range is too narrow to leave anything as it is
            scale = torch.where(scale.clamp(1.0 / _MODERATE, _MODERATE) == scale, 1.0, scale)
        # A look at the flags costs the host nothing and saves passes over A; elsewhere it would stop the queue.
        if host:
            largest = None if bool(finite.all()) else largest
            scale = None if bool((scale == 1).all()) else scale
        if scale is not None:
            X = _scaled(X, scale, work)
        if largest is not None:
            X = torch.where(finite, X, 0.0)
    X = X.to(work)
    if not (X.is_contiguous() or X.mT.is_contiguous()):
        X = X.contiguous()
    return _Canonical(oriented, X, scale, largest, confined, wide)


def _adjoint(A: Tensor) -> Tensor:
    """A^H; its gradient is no lazy conjugate, whose real and imaginary parts torch.vmap cannot take."""
    return (A * 1.0 if A.is_complex() and needs_gradient(A) else A).mH


def _scaled(X: Tensor, scale: Tensor, work: torch.dtype) -> Tensor:
    """X * scale; rounded to half precision in the same pass over memory on a GPU."""
    if X.is_cuda and work in HALF and X.dtype == torch.float32:
        return torch.mul(X, scale, out=torch.empty_like(X, dtype=work))
    return X * scale


def on_host(X: Tensor) -> bool:
    """Whether the host may read a number of X: at once, without waiting for a device, and in no tracing or transform.

    Where it may not, by torch.compile, fake tensors or torch.func, methods run a fixed sequence of operations.

    Example:
        >>> on_host(torch.ones(1)), on_host(torch.ones(1, device="meta"))
        (True, False)
    """
    if X.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return type(X) is Tensor and not torch._C._are_functorch_transforms_active()


def _is_moderate(X: Tensor, work: torch.dtype) -> bool:
    """Whether one pass over X (k, m, n) on the host shows that it is finite and needs no scaling, for one matrix."""
    if X.shape[0] > 1 or X.is_complex() or work == torch.float16:
        return False
    lowest, highest = torch.aminmax(X)
    return 1.0 / _MODERATE <= max(-lowest.item(), highest.item()) < _MODERATE


def _is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is going on."""
    forward_mode: bool = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch._C._are_functorch_transforms_active()


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether a function of these has to carry its derivative: in a transform, or where one requires a gradient.

    Example:
        >>> needs_gradient(torch.ones(1)), needs_gradient(torch.ones(1, requires_grad=True))
        (False, True)
    """
    return _is_transformed() or (torch.is_grad_enabled() and any(A.requires_grad for A in tensors))


def _completed(V: Tensor) -> Tensor:
    """P Q^H for V = P diag(sigma) Q^H (k, m, n), where V has no full rank; NaN stays NaN."""
    finite = V.isfinite().all(-1).all(-1)
    work = V.to(at_least_single(V.dtype))
    lacking = finite & ~is_positive_definite(_shifted(work.mH @ work, -_FULL))
    looked = on_host(V)
    if looked and not bool(lacking.any()):
        return V
    P, _, Qh = torch.linalg.svd(work[lacking] if looked else torch.where(finite[:, None, None], work, 0.0), False)
    completed = (P @ Qh).to(V.dtype)
    if looked:
        return V.index_put((lacking,), completed)
    return torch.where(lacking[:, None, None], completed, V)


def _run(A: Tensor, request: Request) -> tuple[_Canonical, IterationResult]:
    canonical = _canonical(A, request.method)
    transformed = _is_transformed()
    differentiated = transformed or (torch.is_grad_enabled() and A.requires_grad)
    if isinstance(request.norm_floor, Tensor) or request.norm_floor:
        if differentiated:
            raise ValueError("norm_floor is for factors without a gradient; call it under torch.no_grad()")
        floor = request.norm_floor
        if isinstance(floor, Tensor):  # where it is 0 there is none, and nothing is divided by it
            floor = floor.reshape(-1, 1, 1).to(at_least_single(floor.dtype)).clamp_min(2.0**-126)
        floor = floor if canonical.scale is None else floor * canonical.scale
        result = request.method.iterate_above(canonical.X, floor)
    else:
        result = (iterate_transformed if transformed else Request.iterate)(request, canonical.X)
    if result.unitary is canonical.X:  # which may be A itself
        result = result._replace(unitary=canonical.X.clone())
    if differentiated:
        result = result._replace(
            unitary=attach_gradient(canonical.A, result.unitary, request.singular_gradient, request.rotation)
        )
    return canonical, result


def _unitary(result: IterationResult, canonical: _Canonical, A: Tensor, widened: bool = True) -> Tensor:
    U = result.unitary.mH.resolve_conj() if canonical.wide else result.unitary
    # Where the dtype is the same, `to` does not copy, whatever the strides are.
    dtype = A.dtype if widened or U.dtype not in HALF else U.dtype
    U = U.to(dtype, memory_format=torch.contiguous_format).contiguous()
    if canonical.largest is not None and not canonical.confined:
        U = confine(U, canonical.largest.isfinite().flatten(), math.nan)
    return U.view(A.shape)


def polar_factor(
    A: Tensor,
    method: str | PolarMethod = "auto",
    *,
    accuracy: Accuracy | None = None,
    max_steps: int | None = None,
    completed: bool = False,
    singular_gradient: SingularGradient = "raise",
    norm_floor: float | Tensor = 0.0,
) -> Tensor:
    """The unitary polar factor U of A, where A = U H (m >= n) or A = H U (m < n).

    U = A (A^H A)^{-1/2} for a matrix of full column rank: the nearest matrix with orthonormal columns, and the
    direction of steepest descent in the spectral norm. <A, U> is the nuclear norm of A. A is not modified. Gradients
    flow through U: those of the exact factor, whatever the method, evaluated at the U that it computed. No host
    synchronization happens here; some methods make one of their own, and say so.

    Args:
        A: (*batch, m, n), real or complex, float16 to float64.
        method: a name (`polargrad.linalg.available_methods()`) or a `PolarMethod`.
        accuracy: bound on |sigma_i(U) - 1|, or "full"; `auto` chooses by it, a named method is held to it. None asks
            for the method's own class.
        max_steps: limit on the iterations of an iterative method; not together with `accuracy`.
        completed: whether the factor of a matrix without full rank, a partial isometry, is completed to orthonormal
            columns (rows), as scipy.linalg.polar has it. The completion is one of many, and not continuous in A.
        singular_gradient: what backward does at a matrix without full rank that takes part in the loss, where there is
            no derivative: "raise" a RuntimeError, or make the gradient of that matrix "zero" or "nan".
        norm_floor: a number, or one for each matrix (*batch, 1, 1): where ||A||_F is below it, U goes to zero with A. A
            fixed polynomial is applied to A / max(||A||_F, norm_floor), which is what torch.optim.Muon calls eps; other
            factors are multiplied by min(1, ||A||_F / norm_floor). Finite and at least 0 (on a device a tensor's
            values are not read), for an A without a gradient.

    Returns:
        U of A's shape and dtype. A matrix with NaN or infinity gives NaN, a zero matrix gives zero unless completed.

    Raises:
        TypeError: A is not a dense floating-point or complex tensor.
        ValueError: fewer than two dimensions, unknown method, bad max_steps, an accuracy that the method cannot reach,
            a norm_floor out of its range, of another shape, or where a gradient is to be computed.

    Example:
        >>> import torch, polargrad
        >>> U = polargrad.polar_factor(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), "svd")
        >>> U.round().tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """
    return factor(A, resolve_request(A, method, accuracy, max_steps, singular_gradient, completed, norm_floor))


def unwidened_factor(A: Tensor, method: PolarMethod, norm_floor: float | Tensor = 0.0) -> Tensor:
    """The numbers of `polar_factor`, in the half precision in which the method works, if it does; checks nothing.

    Args:
        A: (k, m, n), without a gradient.
        method: resolved for the dtype of A, and `on` its device.
        norm_floor: as in `polar_factor`.
    """
    return factor(A, Request(method, "raise", norm_floor=norm_floor, widened=False))


def factor(A: Tensor, request: Request) -> Tensor:
    """The unitary factor of a valid A that is requested."""
    if is_lowered(A.device.type):
        with stated_precision(A.device.type):
            return factor(A, request)
    if A.numel() == 0:
        return A * 1.0
    canonical, result = _run(A, request)
    return _unitary(result, canonical, A, request.widened)


def polar(
    A: Tensor,
    method: str | PolarMethod = "auto",
    *,
    hermitian: bool = True,
    side: Side | None = None,
    accuracy: Accuracy | None = None,
    max_steps: int | None = None,
    completed: bool = False,
    singular_gradient: SingularGradient = "raise",
) -> PolarResult:
    """The polar decomposition A = U H or A = H U, with a measured status for each matrix.

    Args:
        A: (*batch, m, n), real or complex, float16 to float64.
        method: a name (`polargrad.linalg.available_methods()`) or a `PolarMethod`.
        hermitian: whether to hand back H; without it the result's `hermitian` is None.
        side: "right" for A = U H with H = (U^H A + A^H U) / 2 (n, n), "left" for A = H U with
            H = (A U^H + U A^H) / 2 (m, m), as in scipy.linalg.polar; U is the same. None is the side on which H is
            smaller, "right" for m >= n: there it has full rank where A has.
        accuracy: bound on |sigma_i(U) - 1|, or "full"; `auto` chooses by it, a named method is held to it.
        max_steps: limit on the iterations of an iterative method; not together with `accuracy`.
        completed: whether the factor of a matrix without full rank, a partial isometry, is completed to orthonormal
            columns (rows), as scipy.linalg.polar has it. The completion is one of many, and not continuous in A.
        singular_gradient: what backward does at a matrix without full rank that takes part in the loss, where there is
            no derivative: "raise" a RuntimeError, or make the gradient of that matrix "zero" or "nan".

    Returns:
        PolarResult(unitary, hermitian, status, stats). Gradients flow through U and H. H overflows to infinity where
        ||A||_2 itself is beyond the range of the dtype; U does not.

    Raises:
        TypeError: A is not a dense floating-point or complex tensor.
        ValueError: fewer than two dimensions, unknown method, bad max_steps, an accuracy that the method cannot reach.

    Example:
        >>> import torch, polargrad
        >>> result = polargrad.polar(torch.tensor([[0.0, -2.0], [3.0, 0.0]]), "svd")
        >>> result.hermitian.round().tolist()
        [[3.0, 0.0], [0.0, 2.0]]
        >>> polargrad.Status(int(result.status)).name
        'CONVERGED'

    Source: Higham, Functions of Matrices (2008), chapter 8.
    """
    if side not in (None, "left", "right"):
        raise ValueError(f"side must be 'left', 'right' or None, got {side!r}")
    request = resolve_request(A, method, accuracy, max_steps, singular_gradient, completed)
    chosen, short = request.method, "right" if A.shape[-2] >= A.shape[-1] else "left"
    if is_lowered(A.device.type):
        with stated_precision(A.device.type):
            return polar(
                A,
                hermitian=hermitian,
                side=side,
                method=chosen,
                completed=completed,
                singular_gradient=singular_gradient,
            )
    batch = A.shape[:-2]
    if A.numel() == 0:
        zero = torch.zeros(batch, dtype=A.real.dtype if A.is_complex() else A.dtype, device=A.device)
        stats = {"method": chosen.name, "steps": 0, "orthogonality": zero, "backward_error": zero, "bounds": None}
        empty = (A.mH @ A if (side or short) == "right" else A @ A.mH) if hermitian else None
        return PolarResult(A * 1.0, empty, zero.to(torch.int8), stats)
    canonical, result = _run(A, request)
    certificate = _certify(canonical, result, chosen, A.dtype)
    ran = result.method or chosen
    stats = {
        "method": ran.name,
        "steps": result.steps,
        "orthogonality": certificate.orthogonality.reshape(batch),
        "backward_error": certificate.backward_error.reshape(batch),
        "bounds": ran.bounds(canonical.X.dtype),
    }
    H = None
    if hermitian:
        H = _hermitian(canonical, result, A.dtype, across=side not in (None, short))
        H = H.reshape(*batch, *H.shape[-2:])
    return PolarResult(_unitary(result, canonical, A), H, certificate.status.reshape(batch), stats)


def _hermitian(canonical: _Canonical, result: IterationResult, dtype: torch.dtype, across: bool) -> Tensor:
    """H = (V^H A + A^H V) / 2 (k, n, n) in the accuracy of the input; differentiable in A and V.

    `across`: (A V^H + V A^H) / 2 (k, m, m), the one on the long side.
    """
    work = at_least_single(dtype)
    A, scale = canonical.A.to(work), canonical.scale
    V, X, finite = result.unitary.to(work), A if scale is None else A * scale, canonical.finite
    if finite is not None:
        V, X = confine(V, finite, 0.0), confine(X, finite, 0.0)
    K = product(X, V.mH) if across else product(V.mH, X)
    H = (K + K.mH) / 2
    H = (H if scale is None else H / scale).to(dtype)
    return H if finite is None else confine(H, finite, math.nan)


class _Certificate(NamedTuple):
    status: Tensor  # int8 (k,)
    orthogonality: Tensor  # (k,)
    backward_error: Tensor  # (k,)


@torch.no_grad()
def _certify(canonical: _Canonical, result: IterationResult, method: PolarMethod, dtype: torch.dtype) -> _Certificate:
    """What was reached, measured on the factor V as it is handed back, in `dtype`.

    In float64, which tells more than the single precision that it judges (single for half), from four products of m
    rows: G = V^H V, K = V^H X, E = X - V H with H = (K + K^H) / 2, and E^H E. All bounds are on singular values, not on
    their mean, and are decided by Cholesky factorizations. With t the tolerance of the method and rounding relative to
    ||X||_2, V has converged if

    - no singular value of V is above 1 + t, and none between rounding and 1 - t: (G - d I)(G - (1 - t)^2 I) > 0;
    - K is Hermitian and positive semidefinite up to rounding; and
    - V leaves out nothing of X beyond rounding, E = 0, or, where t is coarse, has no singular value below 1 - t and
      leaves nothing of X outside of its range: E^H E = D^H G D with D = G^{-1} K - H.
    """
    work, returned = canonical.X.dtype, result.unitary.to(dtype)
    X, V = (M.to(torch.float32 if work in HALF else double_precision(work)) for M in (canonical.X, returned))
    m, n = X.shape[-2:]
    # The certificate's own products round; in 64 bits, like what they judge, by the root of the length of a column.
    long = max(0, math.isqrt(m) - n) if work == X.dtype else 0
    own, long = ((n + long) * torch.finfo(X.dtype).eps, 4 * long * torch.finfo(X.dtype).eps)
    eps = torch.finfo(dtype).eps
    handed_back = eps if eps > torch.finfo(work).eps else 0.0
    # Of few columns, roundings of the steps add up to more than those of a product of n, in complex numbers above all.
    several = max(n, 8)
    # What one operation of the method rounds; half-precision products accumulate in single, and do not grow with n.
    unit, growth = (
        (torch.finfo(work).eps, 1.0) if work in HALF else (method.rounding(work, 1) / 4, 8 * math.sqrt(several))
    )
    rounding, skewed = (method.rounding(work, columns) + long for columns in (n, several))
    tolerance = method.tolerance(work, n) + long + handed_back
    coarse = method.tolerance(work, n) > 1.5 * method.rounding(work, n) or work in HALF
    low, high = (1 - tolerance) ** 2 if tolerance < 1 else -1.0, (1 + tolerance) ** 2
    null = (rounding + handed_back) ** 2 + 8 * own

    G, K = V.mH @ V, V.mH @ X
    H, skew = (K + K.mH) / 2, K - K.mH
    E = torch.baddbmm(X, V, H, alpha=-1)
    norm, left = torch.linalg.matrix_norm(X), E.mH @ E
    # At most ||H||_2 <= ||V||_2 ||X||_2: where it is less the judgement is the stricter. 1 for the zero matrix.
    size = torch.linalg.matrix_norm(H @ H) / torch.linalg.matrix_norm(H)
    size = torch.where(norm > 0, size, 1.0)[:, None, None]
    projector = torch.baddbmm(G, G, G, beta=-(null + low))
    # Of X = V H: what singular values within t of 1 leave out of it, unless that is known.
    outside, allowed = left, (2 * tolerance + tolerance**2 + 2 * rounding + 1.5 * handed_back) ** 2
    if coarse:
        D = torch.cholesky_solve(K, torch.linalg.cholesky_ex(G)[0]) - H
        outside = left - D.mH @ G @ D
        allowed = (2 * rounding + 1.5 * handed_back) ** 2 + 8 * own * (1 / low - 1) ** 2 * high

    bounded, gap, semidefinite, hermitian, complete, full, inside = is_positive_definite(
        torch.stack(
            [
                _shifted(-G, high),
                _shifted(projector, null * low),
                _shifted(H / size, unit + 8 * own + handed_back),
                _shifted(-(skew.mH @ skew) / size**2, (4 * skewed + 1.5 * handed_back) ** 2),
                _shifted(-left / size**2, (growth * unit + 8 * own + 1.5 * handed_back) ** 2),
                _shifted(G, -low),
                _shifted(-outside / size**2, allowed),
            ]
        )
    )
    converged = bounded & gap & semidefinite & hermitian & (complete | (full & inside))
    status = torch.where(converged, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    broken = ~G.isfinite().all(-1).all(-1)
    if result.breakdown is not None:
        broken = broken | result.breakdown
    status = torch.where(broken, int(Status.BREAKDOWN), status)
    defect = torch.where((converged & ~full)[:, None, None], torch.baddbmm(G, G, G, beta=-1), _shifted(G, -1.0))
    orthogonality = torch.linalg.matrix_norm(defect) / math.sqrt(n)
    backward_error = torch.linalg.matrix_norm(E) / torch.where(norm > 0, norm, 1.0)
    if (finite := canonical.finite) is not None:
        status = torch.where(finite, status, int(Status.NON_FINITE))
        orthogonality = torch.where(finite, orthogonality, math.nan)
        backward_error = torch.where(finite, backward_error, math.nan)
    real = at_least_single(canonical.A.real.dtype)
    return _Certificate(status.to(torch.int8), orthogonality.to(real), backward_error.to(real))


def _shifted(M: Tensor, shift: float) -> Tensor:
    """M + shift I."""
    shifted = M.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift)
    return shifted
