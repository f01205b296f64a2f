"""The state of a run, and its checkpoints: all of a file or none of it, checked when read, the last few kept.

    FOLDER/step-00000040-<16 hexadecimal digits of the SHA-256 of the file>.pt

A file gets its name only after its bytes are on the disk, so whatever bears such a name was once whole; the digits in
the name say whether it still is. Files are read with `weights_only=True`: no code out of them is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from polargrad.lab.options import check_integer

FORMAT = 1
_DIGITS = 16
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)
_NAME = re.compile(rf"step-(\d{{8,}})-([0-9a-f]{{{_DIGITS}}})\.pt")
_DAMAGED = ".damaged"
# Between two saves by the clock lie at least this many times the seconds that one took.
_SAVING_SHARE = 100.0


class CheckpointError(ValueError):
    """No checkpoint can be used, or it is of another run."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """When a run is saved and what is kept.

    Args:
        every_steps: steps between saves; 0: by the clock.
        every_seconds: seconds between saves by the clock; more where saving takes more than a hundredth of them.
        keep: number of checkpoints kept; older ones are deleted once a newer one is complete.
        keep_finished: whether a finished run keeps its last checkpoint, the trained weights; otherwise none.

    Raises:
        ValueError: a number out of range.
    """

    every_steps: int = 0
    every_seconds: float = 30.0
    keep: int = 2
    keep_finished: bool = True

    def __post_init__(self) -> None:
        check_integer("every_steps", self.every_steps, 0)
        check_integer("keep", self.keep)
        if not self.every_seconds > 0:
            raise ValueError(f"every_seconds must be positive; got {self.every_seconds!r}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and is undamaged.

    Args:
        path: the file.
        step: finished steps.
        state: state of the training loop.
        caller: plain data that the loop's caller added.
        passed_over: a sentence for each newer file that is damaged.
    """

    path: Path
    step: int
    state: Mapping[str, Any]
    caller: Mapping[str, Any]
    passed_over: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The step that the run continues from, and the files that could not be used."""
        return "; ".join((f"resumed after step {self.step} from {self.path.name}", *self.passed_over))


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: their folder; created with the first one.
        configuration: configuration of the run, plain data. A checkpoint of another configuration is refused.
        policy: when to save and what to keep.
        caller: called at every save; its plain data comes back in `Checkpoint.caller`.
    """

    def __init__(
        self,
        folder: str | Path,
        configuration: Mapping[str, Any],
        policy: CheckpointPolicy | None = None,
        caller: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.folder = Path(folder)
        self.policy = policy or CheckpointPolicy()
        self._configuration = configuration
        self._caller = caller
        self._saved = time.monotonic()
        self._cost = 0.0

    def due(self, step: int, last: bool = False) -> bool:
        """Whether to save the run after `step` finished steps; after the last one, if its checkpoint is to be kept."""
        if last:
            return self.policy.keep_finished
        if self.policy.every_steps:
            return step % self.policy.every_steps == 0
        return time.monotonic() - self._saved >= max(self.policy.every_seconds, _SAVING_SHARE * self._cost)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then delete those that are no longer kept.

        Args:
            step: finished steps.
            state: tensors and plain data.

        Returns:
            The new file.

        Raises:
            OSError: it could not be written, as on a full disk; earlier checkpoints are as they were.
        """
        began = time.monotonic()
        content = {
            "format": FORMAT,
            "step": step,
            "configuration": dict(self._configuration),
            "state": dict(state),
            "caller": dict(self._caller()),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"step-{step:08d}.part"
        try:
            with part.open("wb") as file:
                digest = _write(content, file)
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"step-{step:08d}-{digest}.pt"
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        finally:
            self._saved = time.monotonic()
            self._cost = self._saved - began
        _sync_folder(self.folder)
        older = [other for _, other in self._files() if other != path]
        for other in older[self.policy.keep - 1 :]:
            other.unlink(missing_ok=True)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; None if there never was one.

        A damaged file is renamed, so that its name can be used again, and passed over.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged, or it belongs to another configuration or
                to a later version.
        """
        passed_over = []
        for step, path in self._files():
            content = _read(path)
            if content is None:
                path.rename(path.with_name(path.name + _DAMAGED))
                passed_over.append(f"{path.name} is damaged and was passed over")
                continue
            if content.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} has format {content.get('format')!r}, this version reads {FORMAT}; use the version that "
                    "wrote it"
                )
            if different := differences(content["configuration"], self._configuration):
                raise CheckpointError(
                    f"{path} is of another configuration: {'; '.join(different)}. Resume with the configuration it was "
                    "made with, or start a new run in another folder"
                )
            return Checkpoint(path, step, content["state"], content["caller"], tuple(passed_over))
        if passed_over or any(self.folder.glob(f"*{_DAMAGED}")):
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged; start the run again in another folder, or restore them"
            )
        return None

    def finish(self) -> None:
        """Clean up after a finished run: keep the last checkpoint, or none, as the policy says."""
        files = [path for _, path in self._files()]
        for path in (*files[1 if self.policy.keep_finished else 0 :], *self.folder.glob("*.part")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # succeeds only if nothing is left in it

    def _files(self) -> list[tuple[int, Path]]:
        """Steps and files, the newest first."""
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*.pt")]
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def check_plain(value: Any, where: str) -> None:
    """Refuse what a checkpoint that runs no code cannot hold.

    Raises:
        ValueError: naming the place and the kind of thing.

    Example:
        >>> check_plain({"state": {0: {"graft": object()}}}, "the state of mine.py:Mine")
        Traceback (most recent call last):
        ...
        ValueError: the state of mine.py:Mine holds an object at state.0.graft, and a checkpoint runs no code: keep \
tensors, numbers, strings, lists and mappings of them
    """

    def look(entry: Any, at: str) -> None:
        if isinstance(entry, Mapping):
            for key, one in entry.items():
                look(key, at)
                look(one, f"{at}.{key}" if at else str(key))
        elif isinstance(entry, list | tuple):
            for number, one in enumerate(entry):
                look(one, f"{at}.{number}")
        elif type(entry) not in _PLAIN and not isinstance(entry, Tensor):
            name = type(entry).__name__
            article = "an" if name[:1].lower() in "aeiou" else "a"
            raise ValueError(
                f"{where} holds {article} {name} at {at}, and a checkpoint runs no code: keep tensors, numbers, "
                "strings, lists and mappings of them"
            )

    look(value, "")


def differences(saved: Any, asked: Any, at: str = "") -> list[str]:
    """Where two pieces of plain data differ, one sentence for each place.

    Example:
        >>> differences({"loop": {"steps": 100}}, {"loop": {"steps": 200}})
        ['loop.steps was 100 and is now 200']
    """
    if isinstance(saved, Mapping) and isinstance(asked, Mapping):
        keys = dict.fromkeys((*saved, *asked))
        inside = [differences(saved.get(key), asked.get(key), f"{at}.{key}" if at else str(key)) for key in keys]
        return [sentence for sentences in inside for sentence in sentences]
    if isinstance(saved, list | tuple) and isinstance(asked, list | tuple):
        saved, asked = list(saved), list(asked)
    return [] if saved == asked else [f"{at or 'it'} was {saved!r} and is now {asked!r}"]


def capture(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, base_rates: Sequence[float], data: Any
) -> dict[str, Any]:
    """Weights, optimizer, position in the data and random generators, as tensors and plain data.

    Args:
        module: module whose state dict is taken, tensors uncopied.
        optimizer: likewise; its learning rates are the current step's.
        base_rates: the rate of each group that a schedule multiplies; kept instead of the current ones.
        data: its `state_dict()` is kept, if it has one. Data whose batch is a function of the step needs none.

    Returns:
        The state, for `restore`.
    """
    held = optimizer.state_dict()
    for group, rate in zip(held["param_groups"], base_rates, strict=True):
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
    return {
        "module": module.state_dict(),
        "optimizer": held,
        "data": data.state_dict() if hasattr(data, "state_dict") else None,
        "random": _generators(),
    }


def restore(state: Mapping[str, Any], module: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> None:
    """Put back what `capture` took; the optimizer's groups get their base rates.

    Raises:
        ValueError: the state holds a position in the data and `data` cannot take one, or the optimizer's groups differ.
        RuntimeError: the module has other parameters.
    """
    module.load_state_dict(state["module"])
    tensors = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, rate in zip(optimizer.param_groups, tensors, strict=True):
        if isinstance(rate, Tensor):  # a compiled optimizer reads the rate from this very tensor
            group["lr"] = rate.fill_(float(group["lr"]))
    if state["data"] is not None:
        if not hasattr(data, "load_state_dict"):
            raise ValueError(f"the checkpoint holds a position in the data, and {type(data).__name__} cannot take it")
        data.load_state_dict(state["data"])
    _restore_generators(state["random"])


class _Hashing:
    """A file that hashes what is written into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digits(self) -> str:
        return self._hash.hexdigest()[:_DIGITS]


def _write(content: Mapping[str, Any], file: BinaryIO) -> str:
    hashing = _Hashing(file)
    try:
        torch.save(dict(content), hashing)  # pyright: ignore[reportArgumentType]
    except RuntimeError as error:
        # torch's writer reports a failed write as one of its own; what failed was the disk.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    return hashing.digits()


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a file, or None if its bytes are not those that were written."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
        match = _NAME.fullmatch(path.name)
        if match is None or digest != match[2]:
            return None
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _generators() -> dict[str, Any]:
    """The state of every global generator; numpy's only where something imported numpy."""
    version, words, gauss = random.getstate()
    held: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}
    if torch.cuda.is_available():
        held["cuda"] = torch.cuda.get_rng_state_all()
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        held["numpy"] = [name, keys.tolist(), int(position), int(has_gauss), float(cached)]
    return held


def _restore_generators(held: Mapping[str, Any]) -> None:
    torch.set_rng_state(held["torch"])
    version, words, gauss = held["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in held and torch.cuda.device_count() == len(held["cuda"]):
        torch.cuda.set_rng_state_all(held["cuda"])
    if "numpy" in held:
        import numpy

        name, keys, position, has_gauss, cached = held["numpy"]
        words = numpy.asarray(keys, dtype=numpy.uint32)
        numpy.random.set_state((name, words, position, has_gauss, cached))  # noqa: NPY002  the global one's state
