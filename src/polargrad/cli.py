"""The way in from a shell: explains itself, says in one sentence what went wrong, and ends with a telling exit code.

0 done    1 failed    2 bad input    130 interrupted by Ctrl-C    143 stopped by SIGTERM
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Packages of the extra `lab`, by the names under which they are imported.
_LAB = frozenset(
    {"numpy", "transformers", "tokenizers", "tyro", "rich", "matplotlib", "tensorboard", "jinja2", "sklearn"}
)

_BAD_INPUT = (ValueError, FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError)

_INTRODUCTION = """\
polargrad: optimizing matrices by polar decomposition.

  polargrad list                          the recipes
  polargrad run NAME                      one recipe into a run folder
  polargrad compare NAME NAME ...         several recipes on the same data, and a report
  polargrad resume DIR                    go on with a run or a comparison that was stopped
  polargrad report DIR [DIR ...]          the report of run folders, as one HTML page
  polargrad bench polar                   every polar method, timed and certified
  polargrad info                          versions and machine

Begin with

  polargrad compare adamw muon+adamw muon+polargrad

and see `polargrad COMMAND --help` for the options of each. `--debug` shows the traceback of an error.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; the process's own by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 stopped by SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given:
        print(_INTRODUCTION, end="")
        return 0
    try:
        from polargrad.commands import dispatch

        dispatch(given)
        sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt as interruption:
        code = 143 if getattr(interruption, "signal", "") == "SIGTERM" else 130
        return _say(str(interruption) or "interrupted before anything was recorded", code)
    except BrokenPipeError:
        # The reader went away, as in `polargrad list | head -1`; nothing more may be written, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _say(*_explained(error))
    return 0


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one sentence with its remedy, and the exit code."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if missing in _LAB:
        return f'{missing} is not installed, which this command needs; pip install "polargrad[lab]"', 1
    if isinstance(error, _BAD_INPUT):
        return str(error), 2
    return f"{type(error).__name__}: {error}; run again with --debug for the traceback", 1


def _say(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    speaker = "polargrad" if rank == "0" else f"polargrad, rank {rank}"
    print(f"{speaker}: {message}", file=sys.stderr)
    return code
