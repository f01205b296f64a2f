"""The optimizer's share of a step of the demo's model under each recipe, and Newton-Schulz in each dtype.

    python benchmarks/demo_step.py
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/demo_step.py

Prints the machine, and for each recipe milliseconds of forward and backward, milliseconds of the optimizer, and its
share, each the median over a run's steps. Then one line for each shape: milliseconds of
`newton-schulz` as it comes, and its ratio to the fastest dtype. The second command shows a processor with AVX-512 as
one without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from polargrad.lab.recipes import spec_of
from polargrad.lab.run.build import build_objective, build_optimizer
from polargrad.lab.run.environment import environment
from polargrad.linalg import NewtonSchulz, polar_factor
from polargrad.linalg.arithmetic import arithmetic

RECIPES = ("adamw", "muon+adamw", "muon+normalized-rows", "muon+normalized-tables")
SHAPES = ((12, 192, 192), (9, 384, 192), (1, 768, 768), (1, 3072, 768), (12, 768, 768))
DTYPES = {"float32": None, "bfloat16": "bfloat16"}


def milliseconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def shares(steps: int, warmup: int) -> None:
    """Train the demo's model under one recipe after the other, and print where a step's time goes."""
    print(f"{'recipe':24} {'model, ms':>10} {'optimizer, ms':>14} {'share':>6}")
    for name in RECIPES:
        spec = spec_of(name, steps=200)
        objective, _ = build_objective(spec)
        optimizer = build_optimizer(spec, objective.module)
        times = []
        for step in range(1, warmup + steps + 1):
            optimizer.zero_grad()
            model = milliseconds(lambda objective=objective, step=step: objective.loss(step).backward())
            times.append((model, milliseconds(optimizer.step)))
        model, own = (statistics.median(part) for part in zip(*times[warmup:], strict=True))
        print(f"{name:24} {model:10.1f} {own:14.1f} {own / (model + own):6.1%}", flush=True)


def dtypes(repeats: int) -> None:
    """Print `newton-schulz` as it comes beside the same in each dtype, the fastest of interleaved repeats."""
    methods = {"as it comes": NewtonSchulz(), **{name: NewtonSchulz(dtype=dtype) for name, dtype in DTYPES.items()}}
    print(f"{'shape':>16} " + " ".join(f"{name:>12}" for name in methods) + f" {'ratio':>6}")
    for shape in SHAPES:
        A = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        fastest = dict.fromkeys(methods, float("inf"))
        for _ in range(repeats):
            for name, method in methods.items():
                fastest[name] = min(fastest[name], milliseconds(lambda A=A, method=method: polar_factor(A, method)))
        ratio = fastest["as it comes"] / min(fastest[name] for name in DTYPES)
        row = " ".join(f"{value:12.2f}" for value in fastest.values())
        print(f"{' x '.join(map(str, shape)):>16} {row} {ratio:6.2f}", flush=True)


def main() -> None:
    """Print the machine and both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="measured steps of each recipe (default 30)")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each dtype, of which the fastest counts")
    arguments = parser.parse_args()
    facts = environment()
    print(f"{facts['cpu']}, {torch.get_num_threads()} threads, torch {facts['torch']}")
    print(f"torch: {torch.backends.cpu.get_cpu_capability()}; {arithmetic('cpu')}\n")
    shares(arguments.steps, warmup=20)
    print()
    dtypes(arguments.repeats)


if __name__ == "__main__":
    main()
