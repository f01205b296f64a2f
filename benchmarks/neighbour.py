"""What a busy neighbour costs the demo's training, by how OpenMP's threads wait for each other.

    python benchmarks/neighbour.py                            # settings in turn, minutes
    python benchmarks/neighbour.py --seconds 10 --rounds 3 --settings default "one thread"

Each setting trains in a process of its own, in turn alone and beside a process that computes without end; the fastest
of the rounds counts, since other programs only ever slow one down. Prints steps per second, and processor seconds a
step.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time

IDLE = "idle cores"  # what commands do: as many threads as find an idle core when they begin
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
SETTINGS = {
    "default": {},
    **{f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in (1000, 10000, 30000, 100000)},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    IDLE: {},
}
# Computes until whoever started it is gone.
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"


def train(seconds: float, rounds: int, recipe: str, idle: bool) -> None:
    """The demo's steps, in turn alone and beside a neighbour: a line of JSON for each round."""
    import torch

    from polargrad.lab.recipes import spec_of
    from polargrad.lab.run.build import build_objective, build_optimizer
    from polargrad.lab.run.environment import idle_threads

    spec = spec_of(recipe)
    objective, _ = build_objective(spec)
    optimizer = build_optimizer(spec, objective.module)
    numbers = itertools.count()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective.loss(next(numbers)).backward()
        optimizer.step()

    step()
    step()
    threads = torch.get_num_threads()
    for number in range(2 * rounds):
        with neighbour() if number % 2 else contextlib.nullcontext():
            torch.set_num_threads(idle_threads() if idle else threads)
            began, of_processor, steps = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < seconds:
                step()
                steps += 1
            taken, computed = time.perf_counter() - began, time.process_time() - of_processor
        print(json.dumps({"busy": number % 2, "rate": steps / taken, "processor": computed / steps}), flush=True)


@contextlib.contextmanager
def neighbour():
    """A process that computes for as long as the block lasts."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Train under each setting, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=2, help="alone and beside a neighbour, of each setting")
    parser.add_argument("--recipe", default="muon+adamw")
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.seconds, given.rounds, given.recipe, given.idle)
        return
    print(f"{os.cpu_count()} cores; steps per second (processor seconds a step)")
    for name in given.settings:
        kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        arguments = [
            "--train",
            "--seconds",
            str(given.seconds),
            "--rounds",
            str(given.rounds),
            "--recipe",
            given.recipe,
            *(["--idle"] if name == IDLE else []),
        ]
        done = subprocess.run(
            [sys.executable, __file__, *arguments],
            env=kept | SETTINGS[name],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        alone, busy = (max((x for x in lines if x["busy"] == b), key=lambda x: x["rate"]) for b in (0, 1))
        print(
            f"{name:12} alone {alone['rate']:6.2f} ({alone['processor']:.3f})   beside a neighbour {busy['rate']:6.2f} "
            f"({busy['processor']:.3f}), {alone['rate'] / busy['rate']:.2f} times slower",
            flush=True,
        )


if __name__ == "__main__":
    main()
