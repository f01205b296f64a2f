"""The command line with faults: signals that hit chosen ranks after chosen steps.

    FAULTS=RANK:STEP:SIGNAL:ATTEMPT,... python -m tests.faults.injected COMMAND ...

The signal is sent once so many steps were begun, in the attempt (torchrun's count of restarts) that is given.
"""

from __future__ import annotations

import os
import signal
import sys

from polargrad.lab.cli.main import main
from polargrad.lab.train import loop


def install(faults: str) -> None:
    """Have the training loop of this process hit by its share of the faults."""
    rank, attempt = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    planned = {}
    for fault in filter(None, faults.split(",")):
        whom, step, name, when = fault.split(":")
        if (whom, when) == (rank, attempt):
            planned[int(step)] = getattr(signal, name)
    real = loop.differentiate

    def differentiate(objective, step):
        if step in planned:
            os.kill(os.getpid(), planned.pop(step))
        return real(objective, step)

    loop.differentiate = differentiate


if __name__ == "__main__":
    install(os.environ.get("FAULTS", ""))
    sys.exit(main())
