"""A matrix problem on the training loop: its objective, and its optimizers, some of which know the problem."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from polargrad.diagnostics.metrics import matrix_metrics
from polargrad.lab.matrix.problem import Problem
from polargrad.lab.train.optimizers import build_optimizer as make_optimizer

ROLE = "matrix"


class _Matrices(nn.Module):
    """The matrices that are optimized, as parameters of the problem's names."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        for name, value in problem.start.items():
            self.register_parameter(name, nn.Parameter(value.clone()))


class ProblemObjective:
    """Minimizes a problem from its initial point; evaluations give f - f* in float64.

    Args:
        problem: the problem to minimize.
        residual_every: evaluations between computations of the residual's singular values, which cost more than a
            step; 0: never.

    Example:
        >>> from polargrad.lab.matrix import MatrixQuadratic
        >>> objective = ProblemObjective(MatrixQuadratic.draw(0, rows=6, m=4, n=3, columns=5))
        >>> [tuple(parameter.shape) for parameter in objective.module.parameters()]
        [(4, 3)]
        >>> list(objective.evaluate())
        ['gap']
    """

    def __init__(self, problem: Problem, *, residual_every: int = 0) -> None:
        self.problem = problem
        self.module = _Matrices(problem)
        self.unit = problem.unit
        self.units_per_step = problem.units_per_step
        self._point = dict(self.module.named_parameters())
        self._residual_every = residual_every
        self._evaluations = 0

    def loss(self, step: int) -> Tensor:
        """The value that step `step`, counted from 0, differentiates."""
        return self.problem.step_value(self._point, step)

    def evaluate(self) -> dict[str, float]:
        """`gap`: f - f* in float64; now and then `residual_condition_number`."""
        metrics = {"gap": self.problem.gap(self._point), **self.problem.metrics(self._point)}
        if self._residual_every and self._evaluations % self._residual_every == 0:
            with torch.no_grad():
                residual = self.problem.residual(self._point)
            if residual is not None:
                metrics["residual_condition_number"] = matrix_metrics(residual)["condition_number"]
        self._evaluations += 1
        return metrics


class _Alternating(Optimizer):
    """Steps each matrix in turn, with the gradient at the point that the earlier ones have moved to."""

    def __init__(self, problem: Problem, parameters: Mapping[str, Parameter], lr: float) -> None:
        if not 0.0 < lr < float("inf"):
            raise ValueError(f"lr must be a positive finite number, got {lr!r}")
        if set(parameters) != set(problem.start):
            raise ValueError(f"{problem.kind} has the matrices {', '.join(problem.start)}, got {', '.join(parameters)}")
        self._problem = problem
        self._parameters = {name: parameters[name] for name in problem.start}
        super().__init__([{"params": list(self._parameters.values()), "role": ROLE}], {"lr": lr})

    @abstractmethod
    def _direction(self, name: str, G: Tensor) -> Tensor:
        """The direction of the named matrix, given its gradient."""

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
    """X <- X - lr H_X^{-1} grad_X f, then the same for Y, with H_X the block of the Hessian. With one, Newton's method.

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
        ValueError: an lr that is not positive, parameters that are not the problem's, or another problem.

    Source: Lee, Seung, NeurIPS 13 (2000), theorem 1.
    """

    def __init__(self, problem: Problem, parameters: Mapping[str, Parameter], lr: float) -> None:
        super().__init__(problem, parameters, lr)
        for name, parameter in parameters.items():  # a problem without such a direction says so at once
            problem.multiplicative_direction(name, torch.zeros_like(parameter), parameters)

    def _direction(self, name: str, G: Tensor) -> Tensor:
        return self._problem.multiplicative_direction(name, G, self._parameters)


# Rules that need the problem, besides PolarGrad's own "polar" and "adamw".
COMPARATORS: Mapping[str, type[_Alternating]] = {
    "gradient-descent": AlternatingGradientDescent,
    "multiplicative": MultiplicativeUpdates,
    "newton": AlternatingNewton,
}


def build_optimizer(options: Mapping[str, Mapping[str, Any]], objective: ProblemObjective) -> Optimizer:
    """The optimizer that a spec's options ask for, all matrices in one group of the role "matrix".

    Args:
        options: {"matrix": {"rule": "polar", "lr": ..., ...}}; the rule may also be "adamw", one of `COMPARATORS`
            or an optimizer class from outside.
        objective: the problem whose matrices are stepped.

    Raises:
        ValueError: another role, or an option that the rule does not have.
    """
    if set(options) != {ROLE}:
        raise ValueError(f"a matrix problem has the one role {ROLE!r}, got {', '.join(options)}")
    group = dict(options[ROLE])
    parameters = dict(objective.module.named_parameters())
    if group.get("rule") in COMPARATORS:
        rule = COMPARATORS[group.pop("rule")]
        if unknown := set(group) - {"lr"}:
            raise ValueError(f"{', '.join(sorted(unknown))}: a comparator has no option but lr")
        optimizer: Optimizer = rule(objective.problem, parameters, group["lr"])
    else:
        optimizer = make_optimizer([{"params": list(parameters.items()), "role": ROLE, **group}])
    if objective.problem.constrained:
        optimizer.register_step_post_hook(lambda *_: objective.problem.project(parameters))
    return optimizer
