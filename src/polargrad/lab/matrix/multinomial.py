"""Multinomial regression: strongly convex by its ridge, with a matrix of weights, one column for each class."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from polargrad.lab.matrix.configurations import tuned
from polargrad.lab.matrix.problem import (
    Matrices,
    Problem,
    check_shapes,
    check_sizes,
    generator,
    normal_smoothness,
    register,
    uniform,
)
from polargrad.lab.options import check_value


@register
class MultinomialRegression(Problem):
    """f(X) = mean over i of cross-entropy(A_i X, label_i) + ridge/2 ||X||_F^2.

    grad f = A^T (softmax(A X) - onehot) / N + ridge X;  L <= sigma_max(A)^2 / (2N) + ridge;  mu >= ridge.

    Args:
        A: (N, m), one row for each observation.
        labels: (N,), int64, classes counted from 0.
        X: (m, classes), the initial point.
        ridge: above 0, so that there is one minimizer.

    Raises:
        TypeError: a matrix that is not real floating point, labels that are not int64.
        ValueError: shapes that do not fit together, NaN or infinity, a label outside the classes, no ridge.

    Example:
        >>> problem = MultinomialRegression(torch.eye(2), torch.tensor([0, 1]), torch.zeros(2, 2), ridge=1e-2)
        >>> round(float(problem.value(problem.start)), 4), problem.gap(problem.start) > 0
        (0.6931, True)

    Source: Boehning, Ann. Inst. Statist. Math. 44 (1992): the bound 1/2 on the curvature of the cross-entropy.
    """

    kind: ClassVar[str] = "multinomial"
    small: ClassVar = {"rows": 200, "features": 10, "classes": 5}
    experiment: ClassVar = tuned(
        "Multinomial regression",
        "f(X) = mean cross-entropy of softmax(A X) + ridge/2 ‖X‖²",
        500,
        {
            "polargrad": 12.0,
            "polargradm": 32.0,
            "muon-ns": 0.04,
            "muon-ns-decay": (0.2, 0.7),
            "adam": 0.08,
            "adam-decay": (0.4, 0.8),
            "gd": 9.5,
        },
    )

    def __init__(self, A: Tensor, labels: Tensor, X: Tensor, *, ridge: float = 1e-3) -> None:
        check_shapes(A=(A, "N m"), X=(X, "m classes"))
        super().__init__({"X": X})
        if labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, got {labels.dtype}; write labels.long()")
        if labels.shape != A.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, and A has {A.shape[0]} rows; give one for each row"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= X.shape[1]:
            raise ValueError(f"labels run from {low} to {high}, and X has {X.shape[1]} columns, for classes from 0 on")
        check_value("ridge", ridge, float, {"above": 0})  # at 0, adding a column to all of X changes nothing
        self.A, self.labels, self.ridge = A, labels, ridge

    @classmethod
    def draw(cls, seed: int, *, rows: int = 2000, features: int = 100, classes: int = 20, ridge: float = 1e-3) -> Self:
        """Normal features; labels drawn from the softmax of normal weights over features^(1/2)."""
        check_sizes(rows=rows, features=features, classes=classes)
        data = generator(seed)
        A = torch.randn(rows, features, generator=data)
        W = torch.randn(features, classes, generator=data) / features**0.5
        labels = torch.multinomial(torch.softmax(2.0 * A @ W, -1), 1, generator=data).squeeze(-1)
        return cls(A, labels, uniform(features, classes, draw=generator(seed)), ridge=ridge)

    @classmethod
    def expected_curvature(cls, sizes: Any) -> tuple[float, int]:
        """L = lambda_max(A^T A / N) / 2 + ridge."""
        L = 0.5 * normal_smoothness(sizes.features, sizes.rows) + sizes.ridge
        return L, min(sizes.features, sizes.classes)

    def value(self, point: Matrices) -> Tensor:
        """The mean cross-entropy in nats, and the ridge."""
        return F.cross_entropy(self.A @ point["X"], self.labels) + 0.5 * self.ridge * point["X"].square().sum()

    def residual(self, point: Matrices) -> Tensor:
        """softmax(A X) - onehot(labels), (N, classes)."""
        X = point["X"]
        return torch.softmax(self.A @ X, -1) - F.one_hot(self.labels, X.shape[1]).to(X.dtype)

    @cached_property
    def minimum(self) -> float:
        """f*, by L-BFGS in float64 until the gradient's norm g bounds the gap, g^2 / (2 ridge), by 1e-12.

        Raises:
            ValueError: a ridge so small that this is not reached.
        """
        f = self.float64
        X = torch.zeros_like(f.start["X"]).requires_grad_()
        solver = torch.optim.LBFGS(
            [X], max_iter=2000, max_eval=4000, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            solver.zero_grad()
            loss = f.value({"X": X})
            loss.backward()
            return loss

        solver.step(closure)
        if float(f.gradients({"X": X})["X"].square().sum()) > 2.0 * self.ridge * 1e-12:
            raise ValueError(f"the optimum is not reached with a ridge of {self.ridge:g}; give a larger one")
        return float(f.value({"X": X.detach()}))

    @cached_property
    def smoothness(self) -> float:
        """sigma_max(A)^2 / (2N) + ridge, an upper bound."""
        return float(torch.linalg.matrix_norm(self.A.double(), 2)) ** 2 / (2.0 * self.A.shape[0]) + self.ridge

    @cached_property
    def strong_convexity(self) -> float:
        """The ridge, a lower bound."""
        return self.ridge
