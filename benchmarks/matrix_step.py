"""One step of PolarGrad on the paper's quadratic problem (500 x 100), against plain code of the same step.

    python benchmarks/matrix_step.py                      # on the threads torch has
    python benchmarks/matrix_step.py --rounds 5

Prints the machine, milliseconds per step (median and minimum over interleaved rounds), the ratio of each to the plain
code, and where ours go. The plain code is what one writes down first: autograd through A X B - C, QDWH's two QR steps
on the whole matrix and one cubic Newton-Schulz step, nu = <G, U>. Both end at the same gap, which is printed too.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import polargrad
from polargrad.lab.matrix import MatrixQuadratic, ProblemObjective
from polargrad.linalg.qdwh import halley_weights

LR = 4e-8
WEIGHTS = halley_weights(torch.finfo(torch.float32).eps, 1e-6)[:2]


def plain_polar_factor(G: Tensor) -> Tensor:
    """QDWH with two QR steps in float32 and a cubic Newton-Schulz step."""
    m, n = G.shape
    X = G / torch.sqrt(torch.linalg.matrix_norm(G, 1) * torch.linalg.matrix_norm(G, math.inf))
    for a, b, c in WEIGHTS:
        Q, _ = torch.linalg.qr(torch.cat([math.sqrt(c) * X, torch.eye(n)]))
        X = (b / c) * X + ((a - b / c) / math.sqrt(c)) * (Q[:m] @ Q[m:].T)
    return 1.5 * X - 0.5 * X @ (X.T @ X)


class Plain:
    """The step as one writes it down."""

    def __init__(self, problem: MatrixQuadratic) -> None:
        self.problem = problem
        self.X = problem.start["X"].clone().requires_grad_()

    def step(self) -> None:
        p = self.problem
        loss = 0.5 * torch.norm(p.A @ self.X @ p.B - p.C) ** 2
        self.X.grad = None
        loss.backward()
        with torch.no_grad():
            G = self.X.grad
            assert G is not None
            U = plain_polar_factor(G)
            self.X -= LR * torch.sum(G * U) * U

    def gap(self) -> float:
        return self.problem.gap({"X": self.X})


class Ours:
    """The objective as the training loop calls it, and `polargrad.PolarGrad`."""

    def __init__(self, problem: MatrixQuadratic) -> None:
        self.objective = ProblemObjective(problem)
        self.optimizer = polargrad.PolarGrad(
            self.objective.module.parameters(), lr=LR, momentum=0.0, method="qdwh", max_steps=2
        )
        self.steps = 0

    def gradient(self) -> None:
        self.optimizer.zero_grad()
        self.objective.loss(self.steps).backward()

    def step(self) -> None:
        self.gradient()
        self.optimizer.step()
        self.steps += 1

    def gap(self) -> float:
        return self.objective.evaluate()["gap"]


def milliseconds(step: Callable[[], object], steps: int) -> list[float]:
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description="One step of PolarGrad on the quadratic problem.")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="in a round")
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"polargrad {polargrad.__version__}"
    )
    problem = MatrixQuadratic.draw(42)
    plain, ours = Plain(problem), Ours(problem)
    G = problem.gradients(problem.start)["X"]
    parts: dict[str, Callable[[], object]] = {
        "plain code": plain.step,
        "polargrad": ours.step,
        "  loss and gradient": ours.gradient,
        "  polar factor": lambda: polargrad.polar_factor(G, "qdwh", max_steps=2),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for round_ in range(arguments.rounds + 1):
        for name, step in parts.items():
            measured = milliseconds(step, arguments.steps)
            taken[name] += measured if round_ else []  # the first round warms up
    print(f"{'':22}{'median':>9}{'minimum':>9}{'of plain':>10}")
    for name, values in taken.items():
        ratio = statistics.median(values) / statistics.median(taken["plain code"])
        print(f"{name:22}{statistics.median(values):6.2f} ms{min(values):6.2f} ms{ratio:10.2f}")
    print(f"gap after {ours.steps} steps: plain {plain.gap():.3g}, polargrad {ours.gap():.3g}")


if __name__ == "__main__":
    main()
