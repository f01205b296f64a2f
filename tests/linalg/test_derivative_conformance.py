"""Derivatives of every method and every function built on it, on the shapes of the conformance table, in every mode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from polargrad.linalg import (
    available_methods,
    derivative,
    inverse_sqrt,
    lowdin,
    nearest_rotation,
    orthogonal_procrustes,
    polar,
    polar_factor,
    resolve_method,
)
from tests.linalg.test_conformance import SHAPES as MATRICES
from tests.matrices import with_singular_values

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at first use

SHAPES = [*MATRICES, (2, 4, 3), (2, 1, 3, 5), (3, 2, 2)]
EMPTY = [(0, 3), (3, 0), (2, 0, 3), (0, 3, 3)]
DTYPES = [torch.float64, torch.complex128]
# Methods other than `auto` meet the transforms here: the derivative is the same whoever computed the factor.
TRANSFORMED = [(2, 2), (1, 7), (6, 4), (4, 6), (2, 4, 3)]
SAMPLE = 29  # every so many cases; prime, so that it meets every function and shape
SMALL = 18  # real numbers up to which whole Jacobians are compared, and not products with them alone


def _tolerance(method: str) -> float:
    return resolve_method(method).tolerance(resolve_method(method).working_dtype(torch.float64), 1)


EXACT = [method for method in available_methods() if _tolerance(method) < 1e-12]


class Differentiable(NamedTuple):
    """A function of A (*batch, m, n) with one or several values, and the shapes that it takes."""

    call: Callable[[Tensor], Tensor | tuple[Tensor, ...]]
    takes: Callable[[int, int], bool] = lambda m, n: True
    real: bool = False


def _metric(A: Tensor) -> Tensor:
    R = regular((A.shape[-2], A.shape[-2]), A.dtype)
    return R.mH @ R


def _target(A: Tensor) -> Tensor:
    """Points whose product with the A of these tests is regular: the same, moved a little."""
    return 1.5 * regular(tuple(A.shape), A.dtype) + 0.1 * torch.linspace(-1, 1, A.shape[-1], dtype=A.real.dtype)


FUNCTIONS: dict[str, Differentiable] = {
    **{
        method: Differentiable(
            lambda A, method=method: tuple(polar(A, method)[:2]),
            (lambda m, n: m == n) if method == "newton" else (lambda m, n: True),
        )
        for method in EXACT
    },
    "on the long side": Differentiable(lambda A: polar(A, side="left" if A.shape[-2] >= A.shape[-1] else "right")[:2]),
    "completed": Differentiable(lambda A: polar_factor(A, completed=True)),
    "nearest_rotation": Differentiable(nearest_rotation, lambda m, n: m == n, real=True),
    "procrustes": Differentiable(lambda A: orthogonal_procrustes(A, _target(A)), lambda m, n: m >= n),
    "procrustes, rotation": Differentiable(
        lambda A: orthogonal_procrustes(A, _target(A), rotation=True), lambda m, n: m >= n, real=True
    ),
    "inverse_sqrt": Differentiable(lambda A: inverse_sqrt(A.mH @ A), lambda m, n: m >= n),
    "lowdin": Differentiable(lambda A: lowdin(A, _metric(A)), lambda m, n: m >= n),
    "lowdin, metric": Differentiable(
        lambda A: lowdin(_target(A)[..., : max(1, A.shape[-1] // 2)], A.mH @ A), lambda m, n: m == n
    ),
}


class Case(NamedTuple):
    function: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.function} {'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')}"


def _cases() -> Iterator[Case]:
    for name, function in FUNCTIONS.items():
        for shape in SHAPES:
            for dtype in DTYPES:
                if function.takes(*shape[-2:]) and not (function.real and dtype.is_complex):
                    yield Case(name, shape, dtype)


ALL = list(_cases())


@functools.lru_cache(maxsize=8)  # made outside of the transforms, which allow no random numbers
def regular(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Of full rank, with singular values from 0.6 to 1.4 so that finite differences can tell."""
    (m, n), k = shape[-2:], min(shape[-2:])
    sigma = torch.linspace(1.4, 0.6, k, dtype=torch.float64)
    count = torch.Size(shape[:-2]).numel()
    matrices = [with_singular_values(m, n, sigma, dtype, seed + 2 * i) for i in range(count)]
    return torch.stack(matrices).reshape(shape) if matrices else torch.zeros(shape, dtype=dtype)


def check_by_differences(call: Callable[[Tensor], Tensor | tuple[Tensor, ...]], A: Tensor) -> None:
    """First and second derivatives, in reverse and forward mode, against finite differences."""
    A = A.clone().requires_grad_()
    assert gradcheck(call, A, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(call, A, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)


def check_transforms(call: Callable[[Tensor], Tensor | tuple[Tensor, ...]], A: Tensor) -> None:
    """The transforms of torch.func and their compositions agree with backward, which is held to differences above."""
    func = torch.func
    p, v, w = (_as_real(regular(tuple(A.shape), A.dtype, seed)) for seed in (0, 100, 200))

    def values(p: Tensor) -> Tensor:
        """All values as one real vector; torch.func takes no complex Jacobians."""
        found = call(torch.complex(p[0], p[1]) if A.is_complex() else p[0])
        found = (found,) if isinstance(found, Tensor) else found
        return torch.cat([part.reshape(-1) for value in found for part in _as_real(value)])

    def loss(p: Tensor) -> Tensor:
        return values(p).sin().sum()

    slope = func.grad(loss)
    q = p.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(q), q, create_graph=True)
    (second,) = torch.autograd.grad((first * v).sum(), q, allow_unused=True)
    second = torch.zeros_like(p) if second is None else second
    G = torch.ones_like(values(p))
    (backward,) = torch.autograd.grad(values(q), q, G)
    _, forward = func.jvp(values, (p,), (v,))
    _same(slope(p), first.detach())
    _same(func.vjp(values, p)[1](G)[0], backward)
    _same((G * forward).sum(), (backward * v).sum())
    _same(func.jvp(slope, (p,), (v,))[1], second)
    _same(func.vjp(slope, p)[1](v)[0], second)
    _same(func.jvp(lambda p: func.jvp(loss, (p,), (v,))[1], (p,), (v,))[1], (second * v).sum())
    _same(func.grad(lambda p: func.jvp(loss, (p,), (v,))[1])(p), second)
    both, directions = torch.stack([p, w]), torch.stack([v, p])
    _same(torch.vmap(values)(both), torch.stack([values(p), values(w)]))
    _same(torch.vmap(slope, in_dims=-1, out_dims=-1)(both.movedim(0, -1))[..., 0], slope(p))
    product = lambda p, v: func.jvp(slope, (p,), (v,))[1]  # noqa: E731
    _same(torch.vmap(product)(both, directions), torch.stack([product(p, v), product(w, p)]))
    _same(torch.vmap(lambda v: product(p, v))(directions), torch.stack([product(p, v), product(p, p)]))
    if p.numel() <= SMALL:
        jacobian = torch.autograd.functional.jacobian(values, p)
        hessian = torch.autograd.functional.hessian(loss, p)
        for jac in (func.jacrev, func.jacfwd):
            _same(jac(values)(p), jacobian)
            _same(torch.vmap(jac(values))(both)[0], jacobian)
        for outer, inner in ((func.jacrev, func.jacrev), (func.jacrev, func.jacfwd), (func.jacfwd, func.jacfwd)):
            _same(outer(inner(loss))(p), hessian)
        _same(torch.vmap(func.hessian(loss))(both)[0], hessian)


def _as_real(A: Tensor) -> Tensor:
    return torch.stack([A.real, A.imag]) if A.is_complex() else A[None]


def _same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= 1e-11 * (1 + float(expected.norm()))


def check(case: Case) -> None:
    A = regular(case.shape, case.dtype)
    call = FUNCTIONS[case.function].call
    check_by_differences(call, A)
    if case.function not in EXACT or case.function == "auto" or case.shape in TRANSFORMED:
        check_transforms(call, A)


@pytest.mark.parametrize("case", ALL[::SAMPLE], ids=str)
def test_a_sample_of_the_cases(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_case(function: str) -> None:
    failures = []
    for case in ALL:
        if case.function == function:
            try:
                check(case)
            except Exception as error:
                failures.append(f"{case}: {type(error).__name__}: {str(error).splitlines()[0]}")
    assert not failures, f"{len(failures)} misses:\n" + "\n".join(failures)


@pytest.mark.parametrize(
    ("call", "shape"),
    [(lambda A: polar(A)[:2], shape) for shape in EMPTY] + [(nearest_rotation, EMPTY[-1]), (inverse_sqrt, EMPTY[-1])],
)
def test_nothing_has_derivatives_of_the_right_shape(
    call: Callable[[Tensor], Tensor | tuple[Tensor, ...]], shape: tuple[int, ...]
) -> None:
    A = torch.zeros(shape, dtype=torch.float64)

    def loss(A: Tensor) -> Tensor:
        found = call(A)
        return torch.stack([value.sum() for value in ((found,) if isinstance(found, Tensor) else found)]).sum()

    assert torch.func.grad(loss)(A).shape == shape
    assert torch.func.jvp(torch.func.grad(loss), (A,), (A,))[1].shape == shape
    assert torch.func.hessian(loss)(A).shape == shape + shape
    assert torch.vmap(torch.func.grad(loss))(torch.stack([A, A])).shape == (2, *shape)


@pytest.mark.parametrize("call", [polar_factor, nearest_rotation, inverse_sqrt, lambda A: lowdin(A, torch.eye(3))])
def test_an_empty_batch_of_a_transform(call: Callable[[Tensor], Tensor]) -> None:
    A = torch.zeros(0, 3, 3)
    assert torch.vmap(call)(A).shape == A.shape
    assert torch.vmap(torch.func.hessian(lambda A: call(A).sum()))(A).shape == (0, 3, 3, 3, 3)


# The checks notice what is wrong.


def test_a_wrong_first_derivative_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = derivative._solve
    monkeypatch.setattr(derivative, "_solve", lambda *inputs: tuple(1.01 * part for part in solve(*inputs)))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check(Case("svd", (4, 6), torch.float64))


@pytest.mark.parametrize("shape", [(6, 4), (2, 2)], ids=str)
def test_a_wrong_second_derivative_alone_is_noticed(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """H taken for a constant: the first derivative stays right."""
    solve = derivative._solve
    monkeypatch.setattr(derivative, "_solve", lambda H, *inputs: solve(H.detach(), *inputs))
    A = regular(shape, torch.float64).clone().requires_grad_()
    assert gradcheck(lambda A: polar_factor(A, "svd"), A)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check(Case("svd", shape, torch.float64))


def test_a_wrong_forward_mode_alone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = derivative._TransformableSolve.jvp
    wrong = staticmethod(lambda *inputs: tuple(1.01 * part for part in right(*inputs)))
    monkeypatch.setattr(derivative._TransformableSolve, "jvp", wrong)
    with pytest.raises(AssertionError):
        check_transforms(lambda A: polar_factor(A, "svd"), regular((4, 3), torch.float64))
