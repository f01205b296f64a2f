"""The optimizer's share of a training step under each recipe, and Newton-Schulz in each dtype.

    python benchmarks/shares.py
    python benchmarks/shares.py --model mini --tokens 16384 --threads 1
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/shares.py

Prints the machine, and for each recipe milliseconds of forward and backward, milliseconds of the optimizer, its share,
and the processor's time of a whole step beside that of `muon+adamw`, which other programs disturb less; each the median
over a run's steps. Then one line for each shape: milliseconds of `newton-schulz` as it comes, and its ratio to the
fastest dtype. The last command shows a processor with AVX-512 as one without.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from polargrad.lab.lm import architecture
from polargrad.lab.recipes import spec_of
from polargrad.lab.run.build import build_objective, build_optimizer
from polargrad.lab.run.environment import environment
from polargrad.lab.run.spec import LanguageModel
from polargrad.linalg import NewtonSchulz, polar_factor
from polargrad.linalg.arithmetic import arithmetic

RECIPES = ("muon+adamw", "adamw", "muon+normalized-rows", "muon+normalized-tables", "normuon+normalized-tables")
SHAPES = ((12, 192, 192), (9, 384, 192), (1, 768, 768), (1, 3072, 768), (12, 768, 768))
DTYPES = {"float32": None, "bfloat16": "bfloat16"}


def milliseconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call by a clock."""
    begin = clock()
    call()
    return (clock() - begin) * 1e3


def shares(model: str, tokens: int, steps: int, warmup: int) -> None:
    """Train a model under one recipe after the other, and print where a step's time goes."""
    sizes = architecture(model)
    print(f"{model}, {tokens:,} tokens a step")
    print(f"{'recipe':26} {'model, ms':>10} {'optimizer, ms':>14} {'share':>6} {'step':>6}")
    first = 0.0
    for name in RECIPES:
        data = LanguageModel(**vars(sizes), batch=tokens // sizes.sequence)
        spec = dataclasses.replace(spec_of(name, steps=200), objective=data, probe=())
        objective, _ = build_objective(spec)
        optimizer = build_optimizer(spec, objective.module)
        times = []

        def step(number: int, objective: Any = objective, optimizer: Any = optimizer, times: Any = times) -> None:
            optimizer.zero_grad()
            times.append((milliseconds(lambda: objective.loss(number).backward()), milliseconds(optimizer.step)))

        whole = [milliseconds(functools.partial(step, number), time.process_time) for number in range(warmup + steps)]
        model_ms, own = (statistics.median(part) for part in zip(*times[warmup:], strict=True))
        cost = statistics.median(whole[warmup:])
        first = first or cost
        print(f"{name:26} {model_ms:10.1f} {own:14.1f} {own / (model_ms + own):6.1%} {cost / first:6.2f}", flush=True)


def dtypes(repeats: int) -> None:
    """Print `newton-schulz` as it comes beside the same in each dtype, the fastest of interleaved repeats."""
    methods = {"as it comes": NewtonSchulz(), **{name: NewtonSchulz(dtype=dtype) for name, dtype in DTYPES.items()}}
    print(f"{'shape':>16} " + " ".join(f"{name:>12}" for name in methods) + f" {'ratio':>6}")
    for shape in SHAPES:
        A = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        fastest = dict.fromkeys(methods, float("inf"))
        for _ in range(repeats):
            for name, method in methods.items():
                polar_factor(A, method)  # what ran before left other things in the caches
                fastest[name] = min(fastest[name], milliseconds(lambda A=A, method=method: polar_factor(A, method)))
        ratio = fastest["as it comes"] / min(fastest[name] for name in DTYPES)
        row = " ".join(f"{value:12.2f}" for value in fastest.values())
        print(f"{' x '.join(map(str, shape)):>16} {row} {ratio:6.2f}", flush=True)


def main() -> None:
    """Print the machine and both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="of `polargrad pretrain` (default demo)")
    parser.add_argument("--tokens", type=int, default=2048, help="in a step (default 2048)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's own number by default")
    parser.add_argument("--steps", type=int, default=30, help="measured steps of each recipe (default 30)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="runs of each dtype, of which the fastest counts; 0: none"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = environment()
    print(f"{facts['cpu']}, {torch.get_num_threads()} threads, torch {facts['torch']}")
    print(f"torch: {torch.backends.cpu.get_cpu_capability()}; {arithmetic('cpu')}\n")
    shares(arguments.model, arguments.tokens, arguments.steps, warmup=10)
    if arguments.repeats:
        print()
        dtypes(arguments.repeats)


if __name__ == "__main__":
    main()
