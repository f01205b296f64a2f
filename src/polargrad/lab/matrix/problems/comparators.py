"""Optimizers that know the problem, one matrix after another: gradient descent, Newton, multiplicative updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from polargrad.lab.matrix.problems.base import Problem
from polargrad.lab.matrix.problems.nonnegative import NonnegativeFactorization


class _Alternating(Optimizer):
    """Steps each matrix in turn, with the gradient at the point that the earlier ones have moved to."""

    def __init__(self, problem: Problem, parameters: Mapping[str, Parameter], lr: float) -> None:
        if not 0.0 < lr < float("inf"):
            raise ValueError(f"lr must be a positive finite number, got {lr!r}")
        if set(parameters) != set(problem.start):
            raise ValueError(f"{problem.name} has the matrices {', '.join(problem.start)}, got {', '.join(parameters)}")
        self._problem = problem
        self._parameters = {name: parameters[name] for name in problem.start}
        super().__init__([{"params": list(self._parameters.values()), "role": "matrix"}], {"lr": lr})

    @abstractmethod
    def _direction(self, name: str, G: Tensor) -> Tensor:
        """Where the named matrix goes, given its gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every matrix; gradients are expected for the first, the others' are computed anew.

        Raises:
            RuntimeError: the first matrix has no gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lr = self.param_groups[0]["lr"]
        for position, (name, parameter) in enumerate(self._parameters.items()):
            G = self._problem.gradients(self._parameters)[name] if position else parameter.grad
            if G is None:
                raise RuntimeError(f"{name} has no gradient; call backward() before step()")
            parameter.sub_(lr * self._direction(name, G))
        return loss


class AlternatingGradientDescent(_Alternating):
    """X <- X - lr grad_X f(X, Y), then Y <- Y - lr grad_Y f(X, Y) at the new X. With one matrix, gradient descent.

    Args:
        problem: whose gradients are taken.
        parameters: its matrices, by name.
        lr: the step size.

    Raises:
        ValueError: an lr that is not positive, parameters that are not the problem's.
    """

    def _direction(self, name: str, G: Tensor) -> Tensor:
        return G


class AlternatingNewton(_Alternating):
    """The same with the inverse of each matrix's block of the Hessian before its gradient. With one, Newton's method.

    Args:
        problem: whose `newton_direction` is taken.
        parameters: its matrices, by name.
        lr: the step size; 1 minimizes over a matrix in which f is quadratic.

    Raises:
        ValueError: an lr that is not positive, parameters that are not the problem's.
    """

    def _direction(self, name: str, G: Tensor) -> Tensor:
        return self._problem.newton_direction(name, G, self._parameters)


class MultiplicativeUpdates(_Alternating):
    """X <- X * (M Y) / (X Y^T Y), then the same for Y: factors that are positive stay so, and f never rises.

    With G = P - N the gradient as a difference of nonnegative parts this is X - lr (X / P) * G at lr = 1.

    Args:
        problem: a nonnegative factorization, whose `multiplicative_direction` is taken.
        parameters: its matrices, by name.
        lr: the step size; 1 is the classical method.

    Raises:
        ValueError: an lr that is not positive, parameters that are not the problem's, another problem.

    Source: Lee, Seung, NeurIPS 13 (2000), theorem 1.
    """

    def __init__(self, problem: Problem, parameters: Mapping[str, Parameter], lr: float) -> None:
        if not isinstance(problem, NonnegativeFactorization) or not problem.constrained:
            raise ValueError(f"multiplicative updates are for projected nonnegative factorization, not {problem.name}")
        super().__init__(problem, parameters, lr)
        self._factorization = problem

    def _direction(self, name: str, G: Tensor) -> Tensor:
        return self._factorization.multiplicative_direction(name, G, self._parameters)
