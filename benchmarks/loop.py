"""The training loop beside a bare one: what records, rates, clocks, journal and checkpoints cost a step.

    python benchmarks/loop.py                         # the demo's model and the paper's quadratic, on torch's threads
    python benchmarks/loop.py --rounds 9 --steps 30

Prints the machine, and for each problem a bare step's milliseconds, the ratio of ours to it in every round and their
median, in wall time and in processor time, which a busy machine disturbs less. Bare is zero_grad, loss, backward, step
and nothing else. Ours writes its records into a run folder, draws nothing, and evaluates before the first and after the
last step in a function that costs nothing. Rounds alternate. Both start from the same weights, see the same batches and
end at the same weights, which is checked.

The last lines are of a problem with four numbers under SGD, where nearly all is the loop's: the difference there, in
microseconds a step, is what the loop costs any problem.
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

from polargrad.lab.matrix import MatrixQuadratic, ProblemObjective
from polargrad.lab.recipes import spec_of
from polargrad.lab.run.build import build_objective, build_optimizer
from polargrad.lab.run.folder import RunFolder
from polargrad.lab.train import CheckpointPolicy, Checkpoints, LoopConfig, train
from polargrad.optim import PolarGrad

Seconds = tuple[float, float]


class Unevaluated:
    """An objective whose evaluation costs nothing: how often one looks is not the loop's doing."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.module, self.unit, self.units_per_step = objective.module, objective.unit, objective.units_per_step
        self.loss = objective.loss

    def evaluate(self) -> dict[str, float]:
        """Nothing."""
        return {}


def stamps() -> Seconds:
    """Wall time and processor time."""
    return time.perf_counter(), time.process_time()


def since(began: Seconds) -> Seconds:
    """Both, from then until now."""
    now = stamps()
    return now[0] - began[0], now[1] - began[1]


def bare(objective: Any, optimizer: torch.optim.Optimizer, steps: int, log_every: int) -> Seconds:
    """Seconds of a loop without anything."""
    began = stamps()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        objective.loss(step).backward()
        optimizer.step()
    return since(began)


def ours(objective: Any, optimizer: torch.optim.Optimizer, steps: int, log_every: int) -> Seconds:
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
        began = stamps()
        train(
            Unevaluated(objective),
            optimizer,
            lambda step: 1.0,
            LoopConfig(steps, log_every=log_every, divergence_factor=None),
            record=folder.record,
            checkpoints=checkpoints,
        )
        return since(began)


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


class Nothing:
    """Half the squared norm of a matrix of four numbers."""

    unit, units_per_step = "iteration", 1

    def __init__(self) -> None:
        self.module = torch.nn.Linear(2, 2, bias=False)

    def loss(self, step: int) -> torch.Tensor:
        """The same at every step."""
        return 0.5 * self.module.weight.square().sum()


def nothing() -> tuple[Any, Any]:
    """What is left when the problem is taken away."""
    objective = Nothing()
    return objective, lambda: torch.optim.SGD(objective.module.parameters(), lr=1e-6)


def measure(name: str, objective: Any, optimizer_of: Any, steps: int, rounds: int, log_every: int) -> None:
    """Alternate, and print."""
    start = copy.deepcopy(objective.module.state_dict())
    seconds: dict[str, list[Seconds]] = {"bare": [], "ours": []}
    ends: dict[str, dict[str, torch.Tensor]] = {}
    for number in range(rounds + 1):  # the first round warms up
        for kind, loop in (("bare", bare), ("ours", ours))[:: 1 if number % 2 else -1]:
            objective.module.load_state_dict(start)
            taken = loop(objective, optimizer_of(), steps, log_every)
            ends[kind] = copy.deepcopy(objective.module.state_dict())
            if number:
                seconds[kind].append(taken)
        assert all(torch.equal(ends["bare"][key], ends["ours"][key]) for key in start)
    for clock, what in enumerate(("wall", "processor")):
        mine, plain = ([taken[clock] for taken in seconds[kind]] for kind in ("ours", "bare"))
        ratios = [a / b for a, b in zip(mine, plain, strict=True)]
        print(
            f"{name:15} {what:>9} time: bare {1e3 * min(plain) / steps:8.2f} ms a step   ours over bare: median "
            f"{statistics.median(ratios):.4f}, of the fastest {min(mine) / min(plain):.4f}, rounds "
            + " ".join(f"{ratio:.3f}" for ratio in ratios)
            + f"; {1e6 * (min(mine) - min(plain)) / steps:.0f} us a step"
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
    measure("language model", *language_model(), given.steps, given.rounds, log_every=1)
    measure("quadratic", *quadratic(), 20 * given.steps, given.rounds, log_every=10)
    for log_every in (1, 10):
        print(f"losses read every {log_every} steps:")
        measure("nothing", *nothing(), 80 * given.steps, given.rounds, log_every)


if __name__ == "__main__":
    main()
