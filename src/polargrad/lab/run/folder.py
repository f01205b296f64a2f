"""Run folders: written once, line by line while the run goes, and read back with care.

    DIR/spec.json  environment.json  settings.json  records.jsonl  summary.json  figures/  checkpoints/  discarded.jsonl

A folder without summary.json is a run that was killed; its records still count. A run that is resumed goes on after the
records that its checkpoint knows of; those after them are moved to discarded.jsonl and made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from polargrad.distributed.checkpoint import sync_folder
from polargrad.lab.files import json_text, named_errors, new_file_mode, parse_json, read_json, write_file
from polargrad.lab.options import check_options
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.run.tracking import Tracking
from polargrad.lab.train import CheckpointPolicy

T = TypeVar("T")

SPEC, ENVIRONMENT, SETTINGS, RECORDS, SUMMARY, FIGURES, CHECKPOINTS, DISCARDED = (
    "spec.json",
    "environment.json",
    "settings.json",
    "records.jsonl",
    "summary.json",
    "figures",
    "checkpoints",
    "discarded.jsonl",
)
# What a comparison and a matrix experiment write into the folder that holds their run folders.
COMPARISON, EXPERIMENT, PROTOCOL = "comparison.json", "experiment.json", "protocol.json"
PAGE = "report.html"  # of any folder
ENDED = ("finished", "diverged")

# What each kind of record must hold for figures and tables to be drawn from it. Other kinds are kept as they are.
_NUMBER = (int, float, type(None))  # null where it was not finite
REQUIRED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "step": {"step": int, "loss": _NUMBER, "seconds": _NUMBER, "optimizer_seconds": _NUMBER},
    "eval": {"step": int, "seconds": _NUMBER},
    "matrix": {"step": int, "role": str, "parameter": str},
    "event": {"step": int, "event": str},
    "sample": {"step": int, "prompt": str, "text": str},
}


class RecordError(ValueError):
    """A file of a run folder that cannot be read as what it should be."""


@dataclass(frozen=True)
class Run:
    """The content of a run folder, read back.

    Args:
        path: the folder.
        spec: what ran.
        environment: where it ran.
        records: every record, in order.
        summary: how it ended; None for a run that was killed before it could say.
    """

    path: Path
    spec: RunSpec
    environment: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None

    @property
    def status(self) -> str:
        """How it ended: finished, diverged, interrupted, or unfinished where no summary was written."""
        return "unfinished" if self.summary is None else str(self.summary.get("status", "unfinished"))

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """The records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]


@dataclass(frozen=True)
class RunSettings:
    """How a run is saved, watched and reported, which a run that is resumed keeps; what runs is its spec.

    Args:
        policy: when checkpoints are made and which stay.
        page: whether a page about it is written at the end.
        tracking: where its records go beside its folder.
    """

    policy: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    page: bool = False
    tracking: Tracking = field(default_factory=Tracking)


class RunFolder:
    """A new run folder, open for records.

    Args:
        path: the folder; it must not exist, its parents may.
        spec: written at once.
        environment: plain data, written at once.
        options: written at once.

    Raises:
        FileExistsError: if the folder exists. Nothing in it is touched.
        OSError: it cannot be written, as on a full disk; nothing is left.
    """

    altered = False  # whether the records before a checkpoint are not those that were written

    def __init__(
        self, path: str | Path, spec: RunSpec, environment: Mapping[str, Any], options: RunSettings | None = None
    ) -> None:
        self.path = Path(path)
        refuse_existing(self.path)
        make_folder(self.path.parent)
        # Filled under another name, so that a kill leaves a whole run folder or none.
        with named_errors(f"cannot make {self.path}"):
            made = Path(tempfile.mkdtemp(prefix=".new-", dir=self.path.parent))
        try:
            made.chmod(new_file_mode(0o777))
            write_json(made / ENVIRONMENT, environment)
            write_settings(made, options or RunSettings())
            write_file(made / SPEC, spec.to_json())
            self._records, self._hash = (made / RECORDS).open("xb"), hashlib.sha256()
            try:
                self._lock()
                made.rename(self.path)
            except BaseException:
                self._records.close()
                raise
            sync_folder(self.path.parent)
        except BaseException as error:
            shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                refuse_existing(self.path)  # another start was quicker
            raise

    @classmethod
    def reopen(cls, path: str | Path, position: int, checksum: str | None = None) -> Self:
        """The folder of a run that did not come to its end, open for the records after `position`.

        Args:
            path: the run folder.
            position: what `position()` was when the checkpoint was made that the run goes on from; 0: from the start.
            checksum: what `checksum()` was; `altered` says whether it still is. None: not looked at.

        Raises:
            FileExistsError: if the run has ended, or another process is writing it.
            RecordError: if there are fewer records than the checkpoint knows of.
        """
        folder = cls.__new__(cls)
        folder.path = Path(path)
        if (ended := status_of(folder.path)) in ENDED:
            raise FileExistsError(f"{path} has {ended} and is left as it is; give another --out to run it again")
        folder._records = (folder.path / RECORDS).open("r+b")
        try:
            folder._lock()
            folder._hash = hashlib.sha256()
            folder._discard_after(position)
            folder.altered = checksum is not None and folder._hash.hexdigest() != checksum
        except BaseException:
            folder.close()
            raise
        (folder.path / SUMMARY).unlink(missing_ok=True)  # it says "interrupted"
        return folder

    def record(self, record: Mapping[str, Any]) -> None:
        """Append one record as one line and flush it, so that a killed run keeps all but the line it was writing.

        Raises:
            ValueError: a number is NaN or infinite, which JSON has no word for; the training loop writes null and an
                event in its place.
        """
        line = json_text(record, indent=None).encode()
        with named_errors(f"the records in {self.path} cannot be written"):
            self._records.write(line)
            self._records.flush()
            self._hash.update(line)

    def position(self) -> int:
        """How many bytes of records are on the disk by now."""
        self._records.flush()
        os.fsync(self._records.fileno())
        return self._records.tell()

    def checksum(self) -> str:
        """SHA-256 of the records so far, in hexadecimal."""
        return self._hash.hexdigest()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write how the run ended."""
        write_json(self.path / SUMMARY, summary)

    def close(self) -> None:
        """Close the records; the folder stays."""
        with contextlib.suppress(OSError):  # a line that did not fit is tried again here
            self._records.close()

    def _lock(self) -> None:
        """Keep other processes from writing here as long as this one lives."""
        try:
            import fcntl
        except ImportError:  # a system without such locks
            return
        try:
            fcntl.flock(self._records, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{self.path} is being written by another process; wait for it, or stop it") from None

    def _discard_after(self, position: int) -> None:
        size = self._records.seek(0, os.SEEK_END)
        if size < position:
            raise RecordError(
                f"{self.path / RECORDS} has {size} bytes, and its checkpoint knows of {position}; restore the file, or "
                "run again in another folder"
            )
        self._records.seek(0)
        left = position
        while left and (block := self._records.read(min(left, 2**20))):
            self._hash.update(block)
            left -= len(block)
        if rest := self._records.read():
            with (self.path / DISCARDED).open("ab") as file:
                file.write(rest if rest.endswith(b"\n") else rest + b"\n")
            self._records.seek(position)
            self._records.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def status_of(path: str | Path) -> str:
    """How a run ended as its folder says; "unfinished" where it does not say."""
    path = Path(path) / SUMMARY
    return str(_read_json(path).get("status", "unfinished")) if path.is_file() else "unfinished"


def create_folder(path: Path) -> None:
    """Make a folder that is new.

    Raises:
        FileExistsError: if there is one, or a file of that name.
    """
    refuse_existing(path)
    make_folder(path.parent)
    with named_errors(f"cannot make the folder {path}"):
        try:
            path.mkdir()
        except FileExistsError:
            refuse_existing(path)  # another start was quicker
            raise
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing."""
    with named_errors(f"cannot make the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)


def launch_token() -> str | None:
    """A token that one torchrun and its restarts share, and no other has; None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    # "none" is what every torchrun is called that was given no name.
    parts = (run, os.environ.get("MASTER_ADDR"), os.getppid()) if run == "none" else (run,)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def relaunched(out: Path | None, parent: Path) -> Path | None:
    """The folder that this torchrun made before it started its processes anew; None if there is none.

    Args:
        out: the folder that was asked for, if one was.
        parent: where folders go that nobody named.
    """
    token = launch_token()
    if token is None or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    places = [out] if out is not None else sorted(parent.glob("*/"), key=lambda path: path.stat().st_mtime)[::-1]
    return next((path for path in places if _read_settings(path).get("launch") == token), None)


def write_settings(path: Path, options: RunSettings | None = None) -> None:
    """Write how the run of a folder is saved, watched and reported, and which torchrun made the folder."""
    plain = asdict(options or RunSettings())
    tracking = plain.pop("tracking")
    write_json(path / SETTINGS, {**plain, **tracking, "launch": launch_token()})


def read_settings(path: Path) -> RunSettings:
    """How the run of a folder is saved, watched and reported; the defaults where the folder does not say."""
    found = _read_settings(path)
    try:
        policy = CheckpointPolicy(**found["policy"])
        tracking = Tracking(found["tensorboard"], found["track"])
        check_options(tracking)
        return RunSettings(policy, bool(found["page"]), tracking)
    except (KeyError, TypeError, ValueError):
        return RunSettings()


def _read_settings(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path / SETTINGS)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def refuse_existing(path: Path) -> None:
    """Say early, before any work, that a folder exists or could not be made.

    Raises:
        FileExistsError: if it does.
        OSError: its name is too long, or a folder above it is closed or read-only.
    """
    with named_errors(f"cannot make the folder {path}"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)
        raise FileExistsError(
            f"{path} exists and is left as it is; give another --out, or delete it if it is not wanted. If it is of a "
            f"run that was stopped, `polargrad resume {path}` goes on"
        )
    above = next((one for one in path.absolute().parents if os.path.lexists(one)), path)
    with named_errors(f"cannot make the folder {path}"):
        os.rmdir(tempfile.mkdtemp(prefix=".polargrad-", dir=above))  # permissions alone do not tell


def read_run(path: str | Path) -> Run:
    """A run folder, read back whole.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        RecordError: if a file cannot be read, with its name, the line and what to do.
    """
    path = Path(path)
    spec, where = read_spec(path), read_environment(path)
    summary = _read_json(path / SUMMARY) if (path / SUMMARY).is_file() else None
    return Run(path, spec, where, tuple(_read_records(path / RECORDS, ended=summary is not None)), summary)


def read_spec(path: Path) -> RunSpec:
    """The spec of a run folder. Raises what `read_run` raises."""
    if not (path / SPEC).is_file():
        raise FileNotFoundError(
            f"{path} is not a run folder: it has no {SPEC}; give a folder that `polargrad run` made"
        )
    try:
        return RunSpec.from_dict(_read_json(path / SPEC))
    except RecordError:
        raise
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path / SPEC} does not describe a run: {error}") from error


def read_plan(folder: Path, name: str, make: Callable[[Mapping[str, Any]], T]) -> T:
    """The plan in the file of a comparison, a protocol or a matrix experiment: what is to be run.

    Args:
        folder: the folder that holds the runs.
        name: of the file.
        make: returns the plan from what the file holds.

    Raises:
        FileNotFoundError: the folder has no such file.
        RecordError: the file cannot be read, or does not describe a plan.
    """
    path, what = folder / name, name.removesuffix(".json")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {what}: it has no {name}")
    data = _read_json(path)
    try:
        return make(data)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path} cannot be used: {error}; restore it, or run the {what} again") from error


def read_environment(path: Path) -> dict[str, Any]:
    """The environment in which a run began; empty if its folder has none that can be read."""
    try:
        return _read_json(path / ENVIRONMENT)
    except (OSError, RecordError):
        return {}


def find_runs(path: str | Path) -> list[Path]:
    """The run folders that a folder is or holds, by name; a comparison holds one for each of its runs.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if (path / SPEC).is_file():
        return [path]
    found = sorted(spec.parent for spec in path.glob(f"[!.]*/{SPEC}")) if path.is_dir() else []
    if not found:
        reason = "holds no run" if path.is_dir() else "is not a folder"
        raise FileNotFoundError(f"{path} {reason}; give a folder that `polargrad run` or `polargrad compare` made")
    return found


def _read_records(path: Path, *, ended: bool) -> list[dict[str, Any]]:
    """Every record of a file, in order; without the line that a run was writing when it was stopped and never ended.

    Raises:
        FileNotFoundError: if there is no such file.
        RecordError: for a line that is not a record, with file, line and what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; without its records a run cannot be reported, run it again")
    records, lines = [], path.read_bytes().splitlines(keepends=True)
    if not ended and lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_parse(line))
        except ValueError as error:
            raise RecordError(
                f"{path}, line {number}: {error}; the run was probably cut short or the file edited. "
                f"Delete line {number} to use the other records, or run again"
            ) from None
    return records


def _parse(line: bytes) -> dict[str, Any]:
    """The record on one line, or a ValueError that says why it is none."""
    try:
        record = parse_json(line)
    except ValueError:
        raise ValueError(f"not readable as JSON: {line[:60].decode('utf-8', 'replace')!r}") from None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise ValueError("not an object with a kind")
    for key, kind in REQUIRED.get(record["kind"], {}).items():
        if key not in record:
            raise ValueError(f"the {record['kind']} record lacks {key}")
        if isinstance(record[key], bool) or not isinstance(record[key], kind):
            raise ValueError(f"{key} of the {record['kind']} record is {record[key]!r}")
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except ValueError as error:
        raise RecordError(f"{path} is not readable as JSON ({error}); restore it, or run again") from None
    if not isinstance(data, dict):
        raise RecordError(f"{path} holds a {type(data).__name__} where an object is expected; restore it, or run again")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as JSON, the whole file or nothing."""
    write_file(path, json_text(data))
