"""How long the threads of OpenMP, which torch divides its work among, spin while they wait for each other.

The library in torch's Linux wheels is GNU's. It has waiting threads spin 300,000 times, milliseconds, on cores that
another program may need: beside one that computes, a training step takes four times as long and twice the processor
time. Threads that sleep at once cost a step half of its speed where it is alone, since waking up takes long. `SPINS`
lies between the two (`benchmarks/neighbour.py`).
"""

from __future__ import annotations

import os

__all__ = ["SPINS", "yield_cores"]

SPINS = 30_000
# By each of these the user has chosen.
_CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def yield_cores() -> None:
    """Have OpenMP's threads sleep after `SPINS` turns: in new processes, and in this one before torch is imported.

    An environment with `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` stays as it is.

    Source: libgomp's manual, GOMP_SPINCOUNT.
    """
    if not any(name in os.environ for name in _CHOSEN):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
