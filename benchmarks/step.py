"""One optimizer step over the hidden matrices of GPT-2 Small, against torch.optim.Muon in the same run.

    python benchmarks/step.py                     # everything, on the threads torch has
    python benchmarks/step.py --layers 2 --repeats 3

Prints the machine, one line per contender (minimum over interleaved repeats, ratio to Muon, deviation from Muon's
weights after one step in units of the step, extra memory at its peak as the process holds it and as torch's operations
ask for it), and where the time of a step goes.
"""

from __future__ import annotations

import argparse
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

import polargrad
from polargrad.lab.studies.peak_memory import peak_bytes
from polargrad.linalg.gram_newton_schulz import GramNewtonSchulz

SHAPES = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
QUINTIC = {"lr": 0.02, "momentum": 0.95, "nesterov": True, "scale": "spectral", "weight_decay": 0.1}


def matrices(layers: int, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """The hidden weights, with gradients that are the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in SHAPES * layers:
        p = torch.nn.Parameter(torch.randn(shape, generator=generator).mul_(0.02).to(dtype))
        p.grad = torch.randn(shape, generator=generator).to(dtype)
        parameters.append(p)
    return parameters


def contenders(layers: int, dtype: torch.dtype, workspace: int) -> dict[str, tuple[list, torch.optim.Optimizer]]:
    made = {}
    gram = GramNewtonSchulz(restarts=(3,))
    # Method of the rectangular and of the square matrices: the Gram form saves nothing on a square one.
    for name, (rectangular, square) in {
        "polargrad newton-schulz": ("newton-schulz", "newton-schulz"),
        "polargrad gram (3,) + square ns": (gram, "newton-schulz"),
        "polargrad gram-newton-schulz": ("gram-newton-schulz", "gram-newton-schulz"),
    }.items():
        parameters = matrices(layers, dtype)
        groups = [
            {"params": [p for p in parameters if p.shape[0] != p.shape[1]], "method": rectangular},
            {"params": [p for p in parameters if p.shape[0] == p.shape[1]], "method": square},
        ]
        made[name] = parameters, polargrad.PolarGrad(groups, **QUINTIC, workspace=workspace)
    parameters = matrices(layers, dtype)
    made["torch.optim.Muon"] = parameters, torch.optim.Muon(parameters, lr=0.02, momentum=0.95, weight_decay=0.1)
    return made


def seconds(step: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_memory(step: Callable[[], object]) -> int:
    """Bytes of resident memory above the level before the step, sampled while it runs (Linux only)."""
    before, highest, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, _resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        step()
    finally:
        done.set()
        watcher.join()
    return highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and gradients")
    parser.add_argument("--workspace", type=int, default=2**28, help="PolarGrad's bound on its memory, in bytes")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time of one thread, which other work on the machine spares"
    )
    parser.add_argument("--profile", action="store_true", help="where the time of one step goes")
    given = parser.parse_args()
    clock = time.thread_time if given.cpu_time else time.perf_counter
    torch.set_num_threads(1 if given.cpu_time else given.threads)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{given.layers} x {SHAPES}, {given.dtype}, workspace {given.workspace / 2**20:.0f} MiB")
    made = contenders(given.layers, getattr(torch, given.dtype), given.workspace)
    start = [p.detach().clone() for p in made["torch.optim.Muon"][0]]
    for _, optimizer in made.values():  # the first step makes the state
        optimizer.step()
    theirs = made["torch.optim.Muon"][0]
    best, memory = dict.fromkeys(made, float("inf")), {}
    deviation = {}
    for name, (parameters, _) in made.items():
        apart = sum((p - q).square().sum().item() for p, q in zip(parameters, theirs, strict=True))
        moved = sum((q - s).square().sum().item() for q, s in zip(theirs, start, strict=True))
        deviation[name] = (apart / moved) ** 0.5
    for _ in range(given.repeats):
        for name, (_, optimizer) in made.items():
            best[name] = min(best[name], seconds(optimizer.step, clock))
    for name, (_, optimizer) in made.items():
        memory[name] = peak_memory(optimizer.step), peak_bytes(optimizer.step)
    largest = max(p.numel() * p.element_size() for p in theirs) * 2 * given.layers
    print(f"largest group of one shape: {largest / 2**20:.0f} MiB")
    for name, value in best.items():
        print(
            f"{name:32} {1e3 * value:8.0f} ms  {value / best['torch.optim.Muon']:5.2f} of Muon  "
            f"deviation {deviation[name]:.1e}  extra memory {memory[name][0] / 2**20:4.0f} MiB, "
            f"counted {memory[name][1] / 2**20:4.0f} MiB"
        )
    if given.profile:
        for name, (_, optimizer) in made.items():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                optimizer.step()
            print(f"\n{name}")
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=32))


if __name__ == "__main__":
    main()
