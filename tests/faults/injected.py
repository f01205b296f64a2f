"""The command line with faults: signals and errors that hit chosen ranks at chosen moments.

    FAULTS=RANK:MOMENT:FAULT:ATTEMPT,... python -m tests.faults.injected COMMAND ...

A moment is the number of steps that the process has begun, such as 5; 5.37 is as much later as 0.37 of the time from
one such beginning to the next, the save between them included; 5w is when this rank has written its part of a
checkpoint and not yet synced it. A fault is a signal, an error of the system such as ENOSPC, or the class of another
error; SIGSTOP lasts a second. The attempt is torchrun's count of restarts. With EVERY_STEP=1 a run is saved after every
step.
"""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
import threading
import time

from polargrad.distributed import checkpoint
from polargrad.lab.cli.main import main
from polargrad.lab.train import CheckpointPolicy, loop


def hit(name: str, delay: float = 0.0) -> None:
    """Have a fault happen to this process."""
    time.sleep(delay)
    if hasattr(errno, name):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    if not name.startswith("SIG"):
        raise getattr(builtins, name)("injected")
    if name == "SIGSTOP" and not os.fork():
        time.sleep(1.0)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), getattr(signal, name))


def install(faults: str) -> None:
    """Have the training loop of this process hit by its share of the faults."""
    rank, attempt = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    planned, in_writing, begun = {}, [], []
    for fault in filter(None, faults.split(",")):
        whom, moment, name, when = fault.split(":")
        if (whom, when) == (rank, attempt):
            step, part = int(float(moment.rstrip("w"))), float(moment.rstrip("w")) % 1
            planned[step] = (name, part, moment.endswith("w"))
    differentiate, fsync = loop.differentiate, os.fsync

    def differentiate_or_die(objective, step):
        name, part, writing = planned.pop(len(begun), (None, 0.0, False))
        begun.append(time.monotonic())
        if writing:
            in_writing.append(name)
        elif part:
            threading.Thread(target=hit, args=(name, part * (begun[-1] - begun[-2])), daemon=True).start()
        elif name:
            hit(name)
        return differentiate(objective, step)

    class Os:
        """The module `os` as the writing of checkpoints sees it."""

        def __getattr__(self, name):
            return getattr(os, name)

        def fsync(self, handle):
            if in_writing:
                hit(in_writing.pop())
            fsync(handle)

    loop.differentiate = differentiate_or_die
    checkpoint.os = Os()


def save_every_step() -> None:
    """Give runs that say nothing of checkpoints one after every step."""
    CheckpointPolicy.__init__.__defaults__ = (1, *CheckpointPolicy.__init__.__defaults__[1:])


def faulty_main(arguments: list[str]) -> int:
    """The command line, with the faults of the environment."""
    install(os.environ.get("FAULTS", ""))
    if os.environ.get("EVERY_STEP"):
        save_every_step()
    return main(arguments)


if __name__ == "__main__":
    sys.exit(faulty_main(sys.argv[1:]))
