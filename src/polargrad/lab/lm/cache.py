"""Files that can be rebuilt: where they live, how they are published, and how damage is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polargrad.lab.files import explained, read_json, replace_file


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of cached files, there or not: `folder`, else `$POLARGRAD_CACHE`, else `~/.cache/polargrad`.

    Example:
        >>> cache_folder("kept/here").name
        'here'
    """
    chosen = folder or os.environ.get("POLARGRAD_CACHE") or Path.home() / ".cache" / "polargrad"
    return Path(chosen).expanduser()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(path: Path, write: Callable[[Path], object], **facts: Any) -> dict[str, Any]:
    """Write a file so that readers see either none or all of it.

    The content goes to a temporary file in the same folder and is renamed into place; the header beside it, which
    carries the checksum, follows last. A file without its header therefore does not count as written.

    Args:
        path: the file to publish.
        write: writes the content to the path it is given.
        **facts: plain data to keep in the header.

    Returns:
        The header: `facts` with `sha256` and `bytes`.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        header: dict[str, Any] = {}

        def content(part: Path) -> None:
            write(part)
            header.update(facts, sha256=sha256_of(part), bytes=part.stat().st_size)

        replace_file(path, content)
        replace_file(_header_of(path), lambda part: part.write_text(json.dumps(header, indent=1), "utf-8"))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{explained(error)}; the cache is where POLARGRAD_CACHE says: set it to a folder that can be written to",
        ) from error
    return header


def verified_header(path: Path, **expected: Any) -> dict[str, Any] | None:
    """The header of a published file if the file is intact, None if it has to be built (again).

    Args:
        path: a file that `publish` may have written.
        **expected: entries that the header must carry.

    Returns:
        The header; None if the file is missing, or damaged, with a RuntimeWarning.
    """
    try:
        header = read_json(_header_of(path))
        found = {**header, "sha256": sha256_of(path), "bytes": path.stat().st_size}
        if found == {**header, **expected}:
            return header
        reason = "its content does not match its checksum"
    except NotADirectoryError:
        return None  # writing there names the remedy
    except FileNotFoundError:
        if not _header_of(path).exists():
            return None
        reason = "it is gone"
    except (OSError, ValueError, TypeError) as error:
        reason = explained(error) if isinstance(error, OSError) else str(error)
    warnings.warn(
        f"the cache file {path} is damaged ({reason}) and is built again",
        RuntimeWarning,
        stacklevel=3,
    )
    return None


def _header_of(path: Path) -> Path:
    return path.with_name(path.name + ".header.json")
