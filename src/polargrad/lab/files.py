"""Files: written whole or not at all, and errors of disks in words that say what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polargrad.distributed.checkpoint import sync_folder

# Errors that say that something is too large for what is left: of the disk, of a quota, of a limit on files.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file would be larger than is allowed",
}
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), or write to another disk",
    errno.EROFS: "give a place on a disk that can be written to",
    errno.EACCES: "change its permissions, or give another place",
    errno.EPERM: "change its permissions, or give another place",
    errno.EIO: "the disk may be failing; give a place on another",
    errno.ENAMETOOLONG: "give a shorter name",
}


def explained(error: OSError, what: str = "") -> str:
    """An error of the system in words: what it was about, and what to do.

    Args:
        error: the error.
        what: what could not be done, such as "the records cannot be written"; the file's name by default.

    Example:
        >>> explained(OSError(errno.ENOSPC, "No space left on device", "records.jsonl"))
        'records.jsonl: the disk is full; free some space'
    """
    subject = what or ("" if error.filename is None else os.fsdecode(error.filename))
    said = error.strerror or str(error) or type(error).__name__
    if error.errno and said in (os.strerror(error.errno), errno.errorcode.get(error.errno)):
        said = _WORDS.get(error.errno, said)
    remedy = _REMEDIES.get(error.errno or 0, "")
    # One of ours, which says so already, is not said twice.
    remedy = "" if remedy and remedy in said else remedy
    return "; ".join(filter(None, (f"{subject}: {said}" if subject else said, remedy)))


@contextlib.contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Errors of the system in the block say `what` could not be done, such as "cannot write PATH", and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one of ours, which says so already
            raise
        raise type(error)(error.errno, explained(error, what)) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, replacing one of its name: readers and a power cut find the old one or the new one, whole.

    Raises:
        OSError: it cannot be written, as on a full disk; the message names it and the remedy, and nothing is left.
    """
    data = content.encode() if isinstance(content, str) else content
    replace_file(path, lambda part: part.write_bytes(data) and None)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file through `write`, which is given another name to write to; all of it or none.

    Raises:
        OSError: as `write_file`.
    """
    part: Path | None = None
    with named_errors(f"cannot write {path}"):
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent)
            part = Path(name)
            os.close(handle)
            write(part)
            part.chmod(new_file_mode())
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            if part is not None:
                with contextlib.suppress(OSError):
                    part.unlink()
            raise
        sync_folder(path.parent)


def new_file_mode(everything: int = 0o666) -> int:
    """The permissions of a new file, by the process's umask; of a new folder with 0o777."""
    mask = os.umask(0)
    os.umask(mask)
    return everything & ~mask


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it cannot be read as JSON, nested too deeply included; the message does not name it.
        OSError: it cannot be read.
    """
    return parse_json(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """JSON as plain data, its numbers finite; what cannot be read, or is nested too deeply, is a ValueError.

    Example:
        >>> parse_json('{"lr": 1e999}')
        Traceback (most recent call last):
        ...
        ValueError: it holds the number 1e999
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it holds the number {text:.40}")
    return number


def _integer(text: str) -> int:
    if len(text) > 20:  # 2^64 has as many digits
        raise ValueError(f"it holds the number {text:.40}")
    return int(text)


def json_text(data: Mapping[str, Any], indent: int | None = 2) -> str:
    """JSON with a final newline, on one line where `indent` is None; NaN and infinity are refused."""
    layout: dict[str, Any] = {"indent": indent, "allow_nan": False}
    if indent is None:
        layout["separators"] = (",", ":")
    text = json.dumps(data, ensure_ascii=False, **layout) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name that is not text
        text = json.dumps(data, **layout) + "\n"
    return text
