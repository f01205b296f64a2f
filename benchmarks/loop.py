"""The training loop beside a bare one: what records, rates, clocks, journal and checkpoints cost a step.

    python benchmarks/loop.py                         # the demo's model and the paper's quadratic, on torch's threads
    python benchmarks/loop.py --rounds 9 --steps 30

Prints the machine, and for each problem the seconds of the bare loop, the ratio of ours to it in every round and their
median. Bare is zero_grad, loss, backward, step and nothing else. Ours writes its records into a run folder, draws
nothing, and evaluates before the first and after the last step in a function that costs nothing. Rounds alternate, and
both start from the same weights with the same batches; both end at the same weights, which is checked.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from polargrad.experiments.objectives import build_objective
from polargrad.experiments.recipes import spec_of
from polargrad.experiments.runner import build_optimizer
from polargrad.experiments.store import RunFolder
from polargrad.optim import PolarGrad
from polargrad.problems import MatrixQuadratic, ProblemObjective
from polargrad.train import CheckpointPolicy, Checkpoints, LoopConfig, train


class Unevaluated:
    """An objective whose evaluation costs nothing: how often one looks is not the loop's doing."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.module, self.unit, self.units_per_step = objective.module, objective.unit, objective.units_per_step
        self.loss = objective.loss

    def evaluate(self) -> dict[str, float]:
        """Nothing."""
        return {}


def bare(objective: Any, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Seconds of a loop without anything."""
    began = time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        objective.loss(step).backward()
        optimizer.step()
    return time.perf_counter() - began


def ours(objective: Any, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Seconds of `train` with records on disk and checkpoints by the clock."""
    spec = spec_of("adamw", steps=steps)
    with (
        tempfile.TemporaryDirectory() as scratch,
        RunFolder(Path(scratch) / "run", spec, {}) as folder,
    ):
        checkpoints = Checkpoints(
            Path(scratch) / "checkpoints",
            {},
            CheckpointPolicy(keep_finished=False),
            caller=lambda: {"records": folder.position()},
        )
        began = time.perf_counter()
        train(
            Unevaluated(objective),
            optimizer,
            lambda step: 1.0,
            LoopConfig(steps, divergence_factor=None),
            record=folder.record,
            checkpoints=checkpoints,
        )
        return time.perf_counter() - began


def language_model() -> tuple[Any, Any]:
    """The demo's model under Muon and PolarGrad."""
    spec = spec_of("muon+polargrad")
    objective, _ = build_objective(spec)
    return objective, lambda: build_optimizer(spec, objective.module)


def quadratic() -> tuple[Any, Any]:
    """The paper's quadratic, whose steps take a millisecond or two."""
    objective = ProblemObjective(MatrixQuadratic.draw(42))
    options: dict[str, Any] = {"lr": 4e-8, "momentum": 0.0, "method": "qdwh", "max_steps": 2}
    return objective, lambda: PolarGrad(objective.module.parameters(), **options)


def measure(name: str, objective: Any, optimizer_of: Any, steps: int, rounds: int) -> None:
    """Alternate, and print."""
    start = copy.deepcopy(objective.module.state_dict())
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    ends: dict[str, dict[str, torch.Tensor]] = {}
    for number in range(rounds + 1):  # the first round warms up
        for kind, loop in (("bare", bare), ("ours", ours))[:: 1 if number % 2 else -1]:
            objective.module.load_state_dict(start)
            taken = loop(objective, optimizer_of(), steps)
            ends[kind] = copy.deepcopy(objective.module.state_dict())
            if number:
                seconds[kind].append(taken)
        assert all(torch.equal(ends["bare"][key], ends["ours"][key]) for key in start)
    ratios = [mine / plain for mine, plain in zip(seconds["ours"], seconds["bare"], strict=True)]
    each = 1e3 * min(seconds["bare"]) / steps
    print(
        f"{name:15} bare {each:8.2f} ms a step   ours over bare: median {statistics.median(ratios):.4f}, "
        f"of the fastest {min(seconds['ours']) / min(seconds['bare']):.4f}, rounds "
        + " ".join(f"{ratio:.3f}" for ratio in ratios)
    )


def main() -> None:
    """Measure both problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=25, help="of the language model; the quadratic takes 20 times as many"
    )
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    measure("language model", *language_model(), given.steps, given.rounds)
    measure("quadratic", *quadratic(), 20 * given.steps, given.rounds)


if __name__ == "__main__":
    main()
