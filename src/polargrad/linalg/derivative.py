"""The derivative of the polar factor, by the Sylvester equation in the eigenbasis of H."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from polargrad.linalg.method import IterationResult
from polargrad.linalg.precision import at_least_single, stated_precision
from polargrad.linalg.scaling import largest_entry, power_of_two_scale

__all__ = [
    "SingularGradient",
    "attach_gradient",
    "attach_root_gradient",
    "confine",
    "iterate_transformed",
    "opaque",
    "product",
]


class Iterating(Protocol):
    """A `PolarMethod`, or what has its iteration."""

    def iterate(self, X: Tensor) -> IterationResult:
        """Return the unitary factors of the canonical batch X (k, m, n)."""
        ...


# What the derivative is at a matrix without full rank, where there is none.
SingularGradient = Literal["raise", "zero", "nan"]


def attach_gradient(A: Tensor, U: Tensor, singular: SingularGradient = "raise", rotation: bool = False) -> Tensor:
    """U, made to carry the derivative of the polar factor at A, or of the nearest rotation.

    With A = U H, m >= n, a change dA moves the factor by

        dU = D[dA] = U Y + (dA - U U^H dA) H^{-1},   where H Y + Y H = U^H dA - dA^H U.

    U is the gradient of the nuclear norm of A, so that D is its Hessian, and self-adjoint: the cotangent of A is D of
    that of U. It is the derivative of the exact factor, evaluated at the U that was computed, however that was done.
    Derivatives of any order exist, in reverse and in forward mode and under the transforms of torch.func.

    The nearest rotation R of a square real A = R H has the same derivative, with an H whose smallest eigenvalue is
    -sigma_n where det A < 0. Y is skew, so that only sums of two eigenvalues matter: it exists unless
    sigma_(n-1) = 0, or sigma_(n-1) = sigma_n and det A < 0.

    Args:
        A: (k, m, n) with m >= n, floating point or complex.
        U: (k, m, n), its unitary factors, of the same or a wider or narrower dtype; not differentiable itself.
        singular: what to do at a matrix without full rank that receives a cotangent or a tangent other than zero:
            "raise" (a RuntimeError; NaN for that matrix alone where no number may be read: under torch.compile and on
            fake tensors), "nan" or "zero", for that matrix alone.
        rotation: whether U holds nearest rotations, of square real A; "without full rank" is then where the derivative
            does not exist.

    Returns:
        U with a gradient function.

    Example:
        >>> A = torch.tensor([[[2.0], [0.0]]], requires_grad=True)
        >>> U = attach_gradient(A, torch.tensor([[[1.0], [0.0]]]))
        >>> torch.autograd.grad(U.sum(), A)[0].flatten().tolist()
        [0.0, 0.5]

    Source: Kenney and Laub, Polar decomposition and matrix sign function condition estimates (1991), section 2, for the
    Sylvester equation.
    """
    # Dynamo traces no function that defines a forward mode.
    return (_Factor if torch.compiler.is_compiling() else _TransformableFactor).apply(A, U, singular, rotation)


def _by_vmap(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a backward or jvp: a batch of `is_grads_batched=True`, which few operations know, by torch.vmap."""

    @functools.wraps(formula)
    def wrapped(ctx: Any, *inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return formula(ctx, *inputs)
        is_batched = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]
        dims = tuple(0 if isinstance(x, Tensor) and is_batched(x) else None for x in inputs)
        if not any(dim == 0 for dim in dims):
            return formula(ctx, *inputs)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        plain = [torch._remove_batch_dim(x, level, 1, 0) if d == 0 else x for x, d in zip(inputs, dims, strict=True)]
        found: list[int] = []

        def tensors_only(*inputs: Any) -> tuple[Tensor, ...]:
            outputs = formula(ctx, *inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            found[:] = [i for i, output in enumerate(outputs) if output is not None]
            found.append(len(outputs))
            return tuple(outputs[i] for i in found[:-1])

        results = torch.vmap(tensors_only, in_dims=dims)(*plain)
        outputs: list[Any] = [None] * found.pop()
        for i, result in zip(found, results, strict=True):
            outputs[i] = torch._add_batch_dim(result, 0, level)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return wrapped


@contextmanager
def _nested_forward_mode(*tensors: Tensor | None) -> Iterator[list[Any]]:
    """The tensors without their tangents of this level, and a context in which those of outer levels are kept.

    torch turns forward mode off inside the formula for a tangent, also for the levels around this one, whose second
    derivatives would be zero then.
    """
    forward_ad = torch.autograd.forward_ad
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]

    def primal(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or functorch.is_batchedtensor(tensor):  # and so is not of this level
            return tensor
        return forward_ad.unpack_dual(tensor).primal

    with forward_ad._set_fwd_grad_enabled(True):
        yield [primal(tensor) for tensor in tensors]


def iterate_transformed(method: Iterating, X: Tensor) -> IterationResult:
    """What `method.iterate(X)` returns, where X may be a batched or dual tensor: the method sees a plain (k, m, n)."""
    results: list[IterationResult] = []

    def run(X: Tensor) -> tuple[Tensor, Tensor]:
        result = method.iterate(X)
        results.append(result)
        none = torch.zeros(X.shape[0], dtype=torch.bool, device=X.device)
        return (X.clone() if result.unitary is X else result.unitary), (
            none if result.breakdown is None else result.breakdown
        )

    unitary, breakdown = opaque(run, X)
    return results[-1]._replace(unitary=unitary, breakdown=breakdown)


def _together(function: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
    """The vmap rule of a function of batches (k, ...): the new dimension joins the batch."""
    size = info.batch_size

    def join(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)

    joined = [join(value, dim) for value, dim in zip(inputs, in_dims, strict=True)]
    k = next(value.shape[1] for value in joined if isinstance(value, Tensor))
    outputs = function(*(value.flatten(0, 1) if isinstance(value, Tensor) else value for value in joined))
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (size, k)), 0
    return tuple(output.unflatten(0, (size, k)) for output in outputs), (0,) * len(outputs)


def opaque(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """function(*inputs) of batches (k, ...), for which there is no derivative and which transforms do not look into."""
    if torch.compiler.is_compiling():
        return function(*(value.detach() for value in inputs))
    return _Opaque.apply(function, *inputs)


class _Opaque(Function):
    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)
        ctx.inputs, ctx.outputs = len(inputs), len(output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, ...]:
        return (None,) * ctx.inputs

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, ...]:
        return (None,) * ctx.outputs

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _together(_Opaque.apply, info, in_dims, *inputs)


class _Factor(Function):
    @staticmethod
    def forward(A: Tensor, U: Tensor, singular: SingularGradient, rotation: bool) -> Tensor:
        return U.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)
        ctx.options = inputs[2:]

    @staticmethod
    @_by_vmap
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None]:
        A, U = ctx.saved_tensors
        return _derivative(A, U, cotangents[0], *ctx.options).to(A.dtype), None, None, None


class _TransformableFactor(_Factor):
    @staticmethod
    @_by_vmap
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        with _nested_forward_mode(*ctx.saved_tensors, tangents[0]) as (A, U, dA):
            return _derivative(A, U, dA, *ctx.options).to(U.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _together(_TransformableFactor.apply, info, in_dims, *inputs)


def _derivative(A: Tensor, U: Tensor, G: Tensor, singular: SingularGradient, rotation: bool) -> Tensor:
    """D[G] = U Y + (G - U U^H G) H^{-1}, by differentiable operations alone; zero where G is zero."""
    work = at_least_single(A.dtype)
    U, G, X = U.to(work), G.to(work), A.to(work)
    with torch.no_grad():
        largest, moved = largest_entry(X), largest_entry(G)
        finite = largest.isfinite() & moved.isfinite()
        scale = power_of_two_scale(largest)
    U, G, X = (torch.where(finite, M, 0.0) for M in (U, G, X * scale))
    K = product(U.mH, X)
    H = (K + K.mH) / 2
    values, Q = _eigenbasis(H)
    least = values[:, 0] + values[:, 1] if rotation else values[:, 0]
    ratio = least / values[:, -1].clamp_min(torch.finfo(values.dtype).tiny)
    full_rank = ratio > 4 * torch.finfo(values.dtype).eps
    G = _guard(G, full_rank, ratio, singular)
    M = product(U.mH, G)
    square = X.shape[-2] == X.shape[-1]
    values = torch.where(full_rank[:, None], values, 1.0)
    Y, Z = _solve(H, M - M.mH, G[:, :0] if square else G - product(U, M), values, Q, rotation)
    derivative = product(U, Y) if square else product(U, Y) + Z
    return torch.where(finite | (moved == 0), derivative * scale, math.nan)


def _eigenbasis(H: Tensor) -> tuple[Tensor, Tensor]:
    """(values, Q) with H = Q diag(values) Q^H, ascending; without a derivative, which would not always exist."""

    def decompose(H: Tensor) -> tuple[Tensor, ...]:
        with stated_precision(H.device.type):
            return tuple(torch.linalg.eigh(H))

    values, Q = opaque(decompose, H)
    return values, Q


def _guard(G: Tensor, full_rank: Tensor, ratio: Tensor, singular: SingularGradient) -> Tensor:
    """G (k, m, n), and all that its derivatives are applied to, checked: zero where there is no full rank."""
    if torch.compiler.is_compiling():
        return _guarded(G, full_rank, singular)
    return _Guard.apply(G, full_rank, ratio, singular)


def _guarded(G: Tensor, full_rank: Tensor, singular: SingularGradient) -> Tensor:
    refused = ~full_rank[:, None, None] & (G != 0).any(-1, keepdim=True).any(-2, keepdim=True)
    return torch.where(refused, 0.0 if singular == "zero" else math.nan, G)


class _InverseRoot(_Factor):
    """X = A^(-1/2) of Hermitian positive definite A, which was computed, with its derivative."""

    @staticmethod
    @_by_vmap
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None]:
        A, X = ctx.saved_tensors
        return _root_derivative(A, X, cotangents[0]), None, None, None


class _TransformableInverseRoot(_InverseRoot):
    @staticmethod
    @_by_vmap
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        with _nested_forward_mode(*ctx.saved_tensors, tangents[0]) as (A, X, dA):
            return _root_derivative(A, X, dA)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _together(_TransformableInverseRoot.apply, info, in_dims, *inputs)


def attach_root_gradient(A: Tensor, X: Tensor) -> Tensor:
    """X = A^(-1/2) (k, n, n), made to carry its derivative at the Hermitian positive definite A.

    X A X = I gives dX = -Y with H Y + Y H = X dA X and H = A X, which is self-adjoint since X and H commute.

    Example:
        >>> A = torch.tensor([[[4.0]]], requires_grad=True)
        >>> torch.autograd.grad(attach_root_gradient(A, torch.tensor([[[0.5]]])), A)[0].item()
        -0.0625

    Source: Higham, Functions of Matrices (2008), section 6.1, for the derivative of the square root.
    """
    root = _InverseRoot if torch.compiler.is_compiling() else _TransformableInverseRoot
    return root.apply(A, X, "raise", False)


def _root_derivative(A: Tensor, X: Tensor, G: Tensor) -> Tensor:
    finite = X.detach().isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    A, X = (torch.where(finite, M, torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)) for M in (A, X))
    K = product(A, X)
    H = (K + K.mH) / 2
    values, Q = _eigenbasis(H)
    derivative, _ = _solve(H, product(product(X, (G + G.mH) / 2), X), G[:, :0], values, Q, False)
    return torch.where(finite, -derivative, torch.where(G == 0, G, math.nan))


class _Guard(Function):
    @staticmethod
    def forward(G: Tensor, full_rank: Tensor, ratio: Tensor, singular: SingularGradient) -> Tensor:
        if singular == "raise" and type(G) is Tensor and G.device.type != "meta":
            refused = ~full_rank & (G != 0).any(-1).any(-1)
            if bool(refused.any()):
                eps = torch.finfo(ratio.dtype).eps
                raise RuntimeError(
                    f"the polar factor is not differentiable at a matrix without full rank: {int(refused.sum())} of "
                    f"{refused.numel()} matrices have sigma_min / sigma_max (of a rotation: the sum of the two "
                    f"smallest, the last one with the sign of the determinant) below {4 * eps:.1e} (smallest "
                    f"{float(ratio.min()):.1e}); leave them out of the loss, add a small full-rank perturbation, or "
                    "ask for singular_gradient='zero'"
                )
        return _guarded(G, full_rank, singular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, full_rank, ratio, ctx.singular = inputs
        ctx.save_for_backward(full_rank, ratio)
        ctx.save_for_forward(full_rank, ratio)

    @staticmethod
    @_by_vmap
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None]:
        full_rank, ratio = ctx.saved_tensors
        return _guard(cotangents[0], full_rank, ratio, ctx.singular), None, None, None

    @staticmethod
    @_by_vmap
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        with _nested_forward_mode(tangents[0], *ctx.saved_tensors) as (dG, full_rank, ratio):
            return _guard(dG, full_rank, ratio, ctx.singular)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _together(_Guard.apply, info, in_dims, *inputs)


def _solve(H: Tensor, S: Tensor, R: Tensor, values: Tensor, Q: Tensor, skew: bool) -> tuple[Tensor, Tensor]:
    """(Y, Z) with H Y + Y H = S and Z H = R, for Hermitian positive definite H = Q diag(values) Q^H (k, n, n).

    `skew`: S is real and skew, so that H may have one eigenvalue that is not positive.
    """
    return (_Solve if torch.compiler.is_compiling() else _TransformableSolve).apply(H, S, R, values, Q, skew)


class _Solve(Function):
    """Both operators are self-adjoint, so that their own derivatives are further solves and never eigenvectors'."""

    @staticmethod
    def forward(H: Tensor, S: Tensor, R: Tensor, values: Tensor, Q: Tensor, skew: bool) -> tuple[Tensor, Tensor]:
        sums = values.unsqueeze(-1) + values.unsqueeze(-2)
        if skew:  # nothing of it is on the diagonal
            sums.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
        with stated_precision(H.device.type):
            return Q @ ((Q.mH @ S @ Q) / sums) @ Q.mH, ((R @ Q) / values.unsqueeze(-2)) @ Q.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        H, _, _, values, Q, ctx.skew = inputs
        ctx.save_for_backward(H, *output, values, Q)
        ctx.save_for_forward(H, *output, values, Q)

    @staticmethod
    @_by_vmap
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        H, Y, Z, values, Q = ctx.saved_tensors
        T, V = _solve(H, cotangents[0], cotangents[1], values, Q, ctx.skew)
        return -(product(T, Y.mH) + product(Y.mH, T) + product(Z.mH, V)), T, V, None, None, None


class _TransformableSolve(_Solve):
    @staticmethod
    @_by_vmap
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        with _nested_forward_mode(*ctx.saved_tensors, *tangents[:3]) as (H, Y, Z, values, Q, dH, dS, dR):
            S = torch.zeros_like(Y) if dS is None else dS
            R = torch.zeros_like(Z) if dR is None else dR
            if dH is not None:
                S, R = S - product(dH, Y) - product(Y, dH), R - product(Z, dH)
            return _solve(H, S, R, values, Q, ctx.skew)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _together(_TransformableSolve.apply, info, in_dims, *inputs)


def product(A: Tensor, B: Tensor) -> Tensor:
    """A B (k, ...), differentiable, in the precision of its operands whatever surrounds it or its derivatives."""
    return A @ B if torch.compiler.is_compiling() else _Product.apply(A, B)


class _Product(Function):
    @staticmethod
    def forward(A: Tensor, B: Tensor) -> Tensor:
        with stated_precision(A.device.type):
            return A @ B

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @_by_vmap
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        A, B = ctx.saved_tensors
        return product(cotangents[0], B.mH), product(A.mH, cotangents[0])

    @staticmethod
    @_by_vmap
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        with _nested_forward_mode(*ctx.saved_tensors, *tangents) as (A, B, dA, dB):
            if dA is None or dB is None:
                return product(A, dB) if dA is None else product(dA, B)  # pyright: ignore[reportArgumentType]
            return product(dA, B) + product(A, dB)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _together(_Product.apply, info, in_dims, *inputs)


def confine(M: Tensor, finite: Tensor, fill: float) -> Tensor:
    """M (k, ...) with `fill` for the matrices that are not `finite` (k,), differentiable.

    What is zero in the cotangent of such a matrix stays zero, so that it touches nothing from outside of a loss; the
    rest becomes NaN.
    """
    if not torch.compiler.is_compiling():
        return _TransformableConfine.apply(M, finite, fill)
    # A trace of a function instantiates it, which torch deprecates: not where no gradient is asked.
    recorded = M.requires_grad and torch.is_grad_enabled()
    return _Confine.apply(M, finite, fill) if recorded else torch.where(finite[:, None, None], M, fill)


class _Confine(Function):
    @staticmethod
    def forward(M: Tensor, finite: Tensor, fill: float) -> Tensor:
        return torch.where(finite[:, None, None], M, fill)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    @_by_vmap
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return _confined_derivative(cotangents[0], *ctx.saved_tensors), None, None


class _TransformableConfine(_Confine):
    @staticmethod
    @_by_vmap
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        with _nested_forward_mode(tangents[0], *ctx.saved_tensors) as (dM, finite):
            return _confined_derivative(dM, finite)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _together(_TransformableConfine.apply, info, in_dims, *inputs)


def _confined_derivative(G: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite[:, None, None], G, torch.where(G == 0, G, math.nan))
