"""A matrix problem as an objective of the training loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polargrad.lab.matrix.problem import Problem


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
                metrics["residual_condition_number"] = condition_number(residual)
        self._evaluations += 1
        return metrics


def condition_number(A: Tensor) -> float:
    """s_1 / s_q of a matrix (m, n), q = min(m, n), in float64; inf for a singular, nan for a zero or non-finite one.

    Example:
        >>> condition_number(torch.diag(torch.tensor([4.0, 2.0])))
        2.0
    """
    if not bool(torch.isfinite(A).all()):
        return math.nan
    s = torch.linalg.svdvals(A.detach().double())
    largest, smallest = float(s[0]), float(s[-1])
    if largest == 0.0:
        return math.nan
    return largest / smallest if smallest > 0.0 else math.inf
