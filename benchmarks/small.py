"""Small matrices, alone and in batches, beside torch's SVD: CPU time of one thread, which suffers little from others.

python benchmarks/small.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from polargrad.lab.run.environment import environment
from polargrad.linalg import SVD, Auto, GramPolynomials, polar_factor
from polargrad.linalg.double_gram import DoubleGram

# (m, n), alone and 32 of them, or the batch sizes after the two.
SIDES = (
    (3, 3, 1, 32, 100_000, 1_000_000),
    (16, 16),
    (32, 32),
    (64, 64),
    (128, 128),
    (192, 192),
    (256, 256),
    (256, 64),
    (1024, 256),
    (512, 32),
)
# Tall ones, for which the condition number decides.
TALL = ((2048, 96), (1536, 192), (2048, 192), (4096, 128))
CONDITIONS = (1e1, 1e3, 1e6)
METHODS = {"auto": Auto(), "svd": SVD(), "double-gram": DoubleGram(), "gram-polynomials": GramPolynomials()}


def milliseconds(call: Callable[[], object], budget: float = 0.3) -> float:
    """CPU time of one call, from as many as fit into the budget of seconds."""
    call()
    begin = time.process_time()
    call()
    count = max(1, min(500, int(budget / max(time.process_time() - begin, 1e-6))))
    begin = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - begin) / count * 1e3


def main() -> None:
    """Print a row for each shape: torch's SVD in milliseconds, and each method as a multiple of it; then tall ones."""
    torch.set_num_threads(1)
    print({key: value for key, value in environment().items() if key in ("cpu", "torch", "cpu_capability")})
    print(f"{'shape':>16} {'torch svd':>10} " + " ".join(f"{name:>16}" for name in METHODS))
    for m, n, *counts in SIDES:
        for k in counts or (1, 32):
            A = torch.randn(k, m, n, generator=torch.Generator().manual_seed(0))
            svd = milliseconds(lambda A=A: torch.linalg.svd(A, full_matrices=False))
            ratios = (milliseconds(lambda A=A, f=f: polar_factor(A, f)) / svd for f in METHODS.values())
            print(f"{f'{k} x {m} x {n}':>16} {svd:10.3f} " + " ".join(f"{ratio:16.2f}" for ratio in ratios), flush=True)
    print(f"{'shape':>16} {'condition':>10} {'SVD, ms':>10} {'double-gram':>12}")
    for m, n in TALL:
        for condition in CONDITIONS:
            P, _, Qh = torch.linalg.svd(torch.randn(m, n, generator=torch.Generator().manual_seed(0)), False)
            A = P * torch.logspace(0, -math.log10(condition), n) @ Qh
            svd, gram = (milliseconds(lambda A=A, f=f: polar_factor(A, f)) for f in (SVD(), DoubleGram()))
            print(f"{f'{m} x {n}':>16} {condition:10.0e} {svd:10.3f} {gram / svd:12.2f}", flush=True)


if __name__ == "__main__":
    main()
