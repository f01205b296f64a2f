"""The exit codes of the command line.

0 done    1 failed    2 bad input    129 stopped by SIGHUP    130 interrupted by Ctrl-C    143 stopped by SIGTERM
"""

from __future__ import annotations

import signal

_BAD_INPUT = (ValueError, FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError, RecursionError)


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends the process with.

    2 for bad input, 128 and the number of the signal for an interruption (130 Ctrl-C, 143 SIGTERM), 1 for all else.

    Example:
        >>> exit_code(ValueError()), exit_code(KeyboardInterrupt()), exit_code(OSError())
        (2, 130, 1)
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + int(getattr(signal, getattr(error, "signal", "SIGINT")))
    return 2 if isinstance(error, _BAD_INPUT) else 1
