"""The command line with faults: signals that hit chosen ranks after chosen steps.

    FAULTS=RANK:STEP:SIGNAL:ATTEMPT,... python -m tests.faults.injected COMMAND ...

The signal is sent once so many steps were begun, in the attempt (torchrun's count of restarts) that is given. With
EVERY_STEP=1 a run is saved after every step, with WIDE=1 its model is made in float64.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from polargrad.lab.cli.main import main
from polargrad.lab.run import build
from polargrad.lab.train import CheckpointPolicy, loop


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


def save_every_step() -> None:
    """Give runs that say nothing of checkpoints one after every step."""
    CheckpointPolicy.__init__.__defaults__ = (1, *CheckpointPolicy.__init__.__defaults__[1:])


def compute_widely() -> None:
    """Have language models made in float64."""
    real = build.LanguageModel.build
    build.LanguageModel.build = lambda model, **options: real(model, **options).to(torch.float64)


if __name__ == "__main__":
    install(os.environ.get("FAULTS", ""))
    if os.environ.get("EVERY_STEP"):
        save_every_step()
    if os.environ.get("WIDE"):
        compute_widely()
    sys.exit(main())
