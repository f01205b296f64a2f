"""Making many runs: one after the other in this process, or several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.options import check_integer
from polargrad.lab.run import runner
from polargrad.lab.run.environment import torch_threads
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import CheckpointPolicy, StopRequest, terminal_progress

if TYPE_CHECKING:
    from polargrad.lab.run.tracking import Tracking
    from polargrad.lab.train import Progress
    from polargrad.lab.train.parallel import Parallel

POLICY = CheckpointPolicy(keep_finished=False)


def run_all(
    pending: Callable[[], Sequence[RunSpec]],
    ended: Callable[[str], None],
    path: Path,
    *,
    jobs: int = 1,
    threads: int | None = None,
    progress: Callable[[str], Progress | None] = lambda _label: None,
    parallel: Parallel | None = None,
    tracking: Tracking | None = None,
    policy: CheckpointPolicy = POLICY,
) -> None:
    """Make runs until none is pending.

    Args:
        pending: returns the runs that can be made now; called again whenever one has ended.
        ended: called with the name of each run that has.
        path: the folder in which each run has a folder of its name.
        jobs: how many at a time.
        threads: of each; None: one if there are several jobs, else as torch has it.
        progress: returns the display of a run's progress, given its name; for one job.
        parallel: the processes that each run is spread over, for one job; this is rank 0.
        tracking: where the records of each run go beside its folder.
        policy: when checkpoints are made and which stay; by default none of a run that is finished.

    Raises:
        ValueError: fewer than one job or thread.
        Interrupted: on Ctrl-C or SIGTERM, when the runs under way are saved.
        RuntimeError: a job died.
    """
    check_integer("jobs", jobs)
    check_integer("threads", 1 if threads is None else threads)
    if jobs > 1:
        with _Pool(path, jobs, threads or 1, {"tracking": tracking, "policy": policy}) as pool:
            pool.work(pending, ended)
        return
    with torch_threads(threads or torch.get_num_threads()):
        try:
            while waiting := pending():
                spec = waiting[0]
                how: dict[str, Any] = {"progress": progress(spec.name), "policy": policy, "tracking": tracking}
                runner.run_or_resume(spec, path / spec.name, parallel=parallel, **how)
                ended(spec.name)
        except KeyboardInterrupt as interruption:
            raise runner.Interrupted(path, getattr(interruption, "signal", "SIGINT")) from None


class _Pool:
    """Processes that make one run after another, each until it is told to stop."""

    def __init__(self, path: Path, jobs: int, threads: int, how: Mapping[str, Any]) -> None:
        self._path = path
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
        self._workers = [_Worker(context, path, threads, how) for _ in range(jobs)]

    def work(self, pending: Callable[[], Sequence[RunSpec]], ended: Callable[[str], None]) -> None:
        """Keep every process busy until nothing is pending and nothing under way."""
        with StopRequest() as stop:
            while True:
                self._hand_out(pending())
                busy = [worker for worker in self._workers if worker.at is not None]
                if not busy:
                    return
                for worker in self._answering(busy, stop):
                    ended(worker.result())
                if stop.name is not None:
                    raise runner.Interrupted(self._path, stop.name)

    def _hand_out(self, waiting: Sequence[RunSpec]) -> None:
        taken = {worker.at for worker in self._workers}
        free = [worker for worker in self._workers if worker.at is None]
        for worker, spec in zip(free, [spec for spec in waiting if spec.name not in taken], strict=False):
            worker.give(spec)

    def _answering(self, busy: Sequence[_Worker], stop: StopRequest) -> list[_Worker]:
        """The workers that have an answer, when there is one or a signal has come."""
        while stop.name is None:
            if ready := wait([worker.connection for worker in busy], timeout=0.2):
                return [worker for worker in busy if worker.connection in ready]
        return []

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        """Runs that are under way are stopped after their step and saved."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join()


class _Worker:
    """A process that makes runs, as its parent sees it. It ends when the connection is closed."""

    def __init__(self, context: SpawnContext, path: Path, threads: int, how: Mapping[str, Any]) -> None:
        self._path = path
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, path, threads, how))
        self.process.start()
        theirs.close()
        self.at: str | None = None

    def give(self, spec: RunSpec) -> None:
        """Have it make a run."""
        self.at = spec.name
        self.connection.send(spec)

    def result(self) -> str:
        """The name of the run that has ended; or the error that it ended with."""
        name, self.at = self.at, None
        try:
            error = self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"the process of {name} died with exit code {self.process.exitcode}, perhaps for lack of memory; "
                f"`polargrad resume {self._path}` continues; give it fewer --jobs if memory was short"
            ) from None
        if error is not None:
            raise error
        return str(name)


def _serve(connection: Connection, path: Path, threads: int, how: Mapping[str, Any]) -> None:
    """The work of a process: take specs, make their runs, answer None or the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes on what it means
    torch.set_num_threads(threads)
    specs: queue.SimpleQueue[RunSpec | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, specs), daemon=True).start()
    while (spec := specs.get()) is not None:
        answer: Exception | None = None
        try:
            runner.run_or_resume(spec, path / spec.name, progress=terminal_progress(spec.name), **how)
        except runner.Interrupted:
            return
        except Exception as error:
            answer = error
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
        except (TypeError, AttributeError, pickle.PicklingError):  # an error that cannot travel
            connection.send(RuntimeError(f"{type(answer).__name__}: {answer}"))


def _listen(connection: Connection, specs: queue.SimpleQueue[RunSpec | None]) -> None:
    """Take specs from the parent; when it closes the connection or dies, stop the run under way as SIGTERM would."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            specs.put(connection.recv())
    specs.put(None)
    os.kill(os.getpid(), signal.SIGTERM)
