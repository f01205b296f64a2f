"""Entry point of the shell command `polargrad`: imports the command that is named, runs it, returns the exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

import polargrad
from polargrad.lab.exit_codes import exit_code
from polargrad.lab.files import explained
from polargrad.lab.options import unknown_name

# Each is a module of this package with a class of the same name, imported when it runs.
COMMANDS = (
    "list",
    "run",
    "compare",
    "protocol",
    "pretrain",
    "resume",
    "runs",
    "report",
    "sample",
    "export",
    "bench",
    "plan",
    "info",
    "completion",
)

# Which extra brings which package, by the names under which they are imported.
_EXTRA = {
    **dict.fromkeys(("numpy", "transformers", "tokenizers", "tyro", "rich", "matplotlib"), "lab"),
    **dict.fromkeys(("tensorboard", "jinja2", "markupsafe", "sklearn", "docstring_parser", "psutil"), "lab"),
    "optuna": "tuning",
    **dict.fromkeys(("datasets", "huggingface_hub"), "data"),
    **dict.fromkeys(("pytorch_optimizer", "scipy"), "comparators"),
    **dict.fromkeys(("accelerate", "lightning"), "integrations"),
}

_INTRODUCTION = """\
polargrad: optimizing matrices by polar decomposition.

  polargrad list                             recipes, matrix problems, studies
  polargrad run adamw --steps 50             run one of them
  polargrad compare adamw muon+polargrad     run several on the same data
  polargrad protocol muon+adamw adamw        tune some alike, and judge them
  polargrad pretrain --model laptop          train any language model on any text
  polargrad resume runs/monday               continue a run or a comparison
  polargrad runs                             list the runs below runs/
  polargrad report runs/monday runs/tuesday  write an HTML page about some runs
  polargrad sample runs/monday "def "        let a trained language model write
  polargrad export runs/monday my-model      write it as transformers reads it
  polargrad bench polar --shapes 1024x256    time and check every polar method
  polargrad plan --model demo --mesh 2x4x1   estimate an optimizer step on GPUs
  polargrad info                             versions and machine
  polargrad completion bash                  completion of commands and flags

`polargrad COMMAND --help` shows the options of a command. Begin with

  polargrad compare adamw muon+adamw muon+polargrad

Results go to a new folder under runs/, or to --out; nothing is overwritten.
Ctrl-C saves first and says how to continue. An error is one sentence; --debug
shows its traceback. --version shows the version.

Exit codes: 0 done, 1 failed, 2 bad input, 129 stopped by SIGHUP, 130
interrupted by Ctrl-C, 143 stopped by SIGTERM.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; the process's own by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 stopped by SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(_INTRODUCTION, end="")
        return 0
    if given[0] == "--version":
        from polargrad.lab.run.environment import commit

        print(f"polargrad {polargrad.__version__}" + (f" (commit {known})" if (known := commit()) else ""))
        return 0
    try:
        with _stoppable():
            dispatch(given)
            sys.stdout.flush()
    except SystemExit as end:
        return exit_code(end)
    except KeyboardInterrupt as interruption:
        return _say(str(interruption) or "interrupted", exit_code(interruption))
    except BrokenPipeError:
        # The reader went away, as in `polargrad list | head -1`; nothing more may be written, at exit either.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _say(*_explained(error))
    return 0


class _Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP at a moment when no run is under way."""

    def __init__(self, name: str) -> None:
        super().__init__(f"stopped by {name}")
        self.signal = name


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that nothing half-written stays behind.

    Of several processes each ends at once, which may be waiting where no handler runs.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(signal.Signals(number).name)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread() and os.environ.get("WORLD_SIZE", "1") == "1"
    changed = [number for number in numbers if here and signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def dispatch(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name.

    Raises:
        ValueError: if there is no such command, or its arguments cannot be read.
        SystemExit: after --help.
    """
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    command = getattr(importlib.import_module(f"polargrad.lab.cli.{name}"), name.capitalize())
    if hasattr(command, "read"):  # from a launch file and the flags that override it
        return command.read(rest)()
    if not rest and not dataclasses.fields(command):
        return command()()  # which needs no package that reads arguments
    from polargrad.lab.cli.arguments import read

    read(command, name, rest)()


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one sentence with its remedy, and the exit code."""
    absent = next((one for one in (error, error.__cause__) if isinstance(one, ImportError)), None)
    missing = "" if absent is None else (absent.name or "").partition(".")[0]
    if missing in _EXTRA:
        return f'{missing} is not installed, which this command needs; pip install "polargrad[{_EXTRA[missing]}]"', 1
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read", exit_code(error)
    if isinstance(error, OSError) and error.errno is not None:
        return explained(error), exit_code(error)
    if exit_code(error) == 2 or isinstance(error, ConnectionError):
        return str(error), exit_code(error)
    if isinstance(error, ImportError) and error.name is None:
        return str(error), 1  # ours, which say what to do
    return f"{type(error).__name__}: {error}; run again with --debug for the traceback", 1


def _say(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    speaker = "polargrad" if rank == "0" else f"polargrad, rank {rank}"
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"{speaker}: {message}", file=sys.stderr)
    return code


def _open_streams() -> None:
    """Replace streams that were closed, and let all of them print names that are not text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
