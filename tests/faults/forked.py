"""Ranks forked from a process that has imported everything already: many short runs on several processes, quickly.

Reads a task a line (JSON, see `Ranks.run`), starts the command line on so many ranks, which find each
other as under torchrun, and answers with their exit codes; those that do not end in time are ended by SIGQUIT.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback

LIMIT = 240.0


class Ranks:
    """A process that forks ranks, as a test sees it; POLARGRAD_CACHE and the like are those of its start."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "EVERY_STEP": "1", "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def run(self, ranks, output, *arguments, faults="", folders=()):
        """The exit codes of the ranks, of which -9 is death by SIGKILL, and what they said.

        Args:
            ranks: how many.
            output: a new file for what they say.
            *arguments: of the command line.
            faults: see `injected`.
            folders: the working folder of each rank; the test's own by default.
        """
        task = {"ranks": ranks, "output": str(output), "arguments": [*map(str, arguments)], "faults": faults}
        task["folders"] = [*map(str, folders)] or [os.getcwd()] * ranks
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline()), output.read_text()

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


def serve() -> None:
    """Do the tasks that come."""

    import polargrad.lab.lm
    import polargrad.lab.run.runner  # noqa: F401
    from tests.faults.injected import faulty_main

    for line in sys.stdin:
        task = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(task["ranks"]):
            if child := os.fork():
                children.append(child)
                continue
            code = 70
            with contextlib.suppress(BaseException):
                output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                if task["ranks"] > 1:
                    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": task["ranks"]}
                    for name, value in {**where, "RANK": rank, "LOCAL_RANK": rank}.items():
                        os.environ[name] = str(value)
                os.environ["FAULTS"] = task["faults"]
                os.chdir(task["folders"][rank])
                try:
                    code = faulty_main(task["arguments"])
                except BaseException:
                    traceback.print_exc()
                    raise
                finally:
                    atexit._run_exitfuncs()
                    sys.stdout.flush()
                    sys.stderr.flush()
            os._exit(code)
        print(json.dumps(_codes(children)), flush=True)


def _codes(children: list[int]) -> list[int]:
    codes, end = {}, time.monotonic() + LIMIT
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(child, signal.SIGQUIT)
        time.sleep(0.01)
    return [codes[child] for child in children]


if __name__ == "__main__":
    serve()
