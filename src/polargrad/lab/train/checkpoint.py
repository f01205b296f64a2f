"""The checkpoints of a run, on one process or many: a whole folder or none, checked when read, the last few kept.

    FOLDER/step-00000040/    what `polargrad.distributed.checkpoint` writes

A folder gets its name only after its bytes are on the disk, so whatever bears such a name was once whole; its checksums
say whether it still is. Nothing in it can run code. What is saved does not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import random
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from polargrad.distributed.checkpoint import PART, CheckpointDamaged, Saved, clear_part, sync_folder, write
from polargrad.lab.files import NO_ROOM, explained
from polargrad.lab.options import check_integer
from polargrad.lab.train.parallel import Parallel

FORMAT = 2
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)
_NAME = re.compile(r"step-(\d{8,})")
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
        keep_finished: whether a finished run keeps its last checkpoints, the trained weights; otherwise none.

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
    """A checkpoint whose index was read and checked.

    Args:
        saved: the checkpoint.
        step: finished steps.
        state: state of the training loop: "journal", "random" and "data".
        caller: plain data that the loop's caller added.
        passed_over: a sentence for each newer one that is damaged.
    """

    saved: Saved
    step: int
    state: Mapping[str, Any]
    caller: Mapping[str, Any]
    passed_over: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The folder of the checkpoint."""
        return self.saved.folder

    @property
    def message(self) -> str:
        """The step that the run continues from, and the checkpoints that could not be used."""
        return "; ".join((f"resumed after step {self.step} from {self.path.name}", *self.passed_over))

    @classmethod
    def open(cls, path: Path, configuration: Mapping[str, Any], passed_over: tuple[str, ...] = ()) -> Checkpoint:
        """Read the index of a checkpoint, whose data files count as verified.

        Raises:
            CheckpointDamaged: it is not what was written.
            CheckpointError: it belongs to another configuration, to another version, or is not one of a run.
        """
        try:
            saved = Saved.open(path)
        except CheckpointDamaged:
            raise
        except FileNotFoundError as error:
            raise CheckpointDamaged(str(error)) from None
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        extra = saved.extra
        if extra.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a checkpoint of a run; give the folder of one, or start a new run")
        if different := differences(extra.get("configuration"), configuration):
            raise CheckpointError(
                f"{path} is of another configuration: {'; '.join(different)}. Resume with the configuration it was "
                "made with, or start a new run in another folder"
            )
        step, state, caller = extra.get("step"), extra.get("state"), extra.get("caller")
        if type(step) is not int or not isinstance(state, Mapping) or not isinstance(caller, Mapping):
            raise CheckpointError(f"{path} does not hold the state of a run; use another checkpoint")
        return cls(saved, step, state, caller, passed_over)

    def restore(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Any, parallel: Parallel | None = None
    ) -> None:
        """Put weights, optimizer, position in the data and random generators back; rates are the base rates.

        Raises:
            ValueError: the module has other parameters, the optimizer's groups differ, or the state holds a position in
                the data and `data` cannot take one.
        """
        try:
            state = self.saved.load(module, optimizer, None if parallel is None else parallel.control)["state"]
            if state["data"] is not None:
                if not hasattr(data, "load_state_dict"):
                    raise ValueError(
                        f"the checkpoint holds a position in the data, and {type(data).__name__} cannot take it"
                    )
                data.load_state_dict(state["data"])
            _restore_generators(state["random"])
        except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"{self.path} does not hold the state of this run ({type(error).__name__}: {error}); use another "
                "checkpoint"
            ) from error


class Checkpoints:
    """The checkpoints of one run. Where several processes make it, each calls `save`; rank 0 does the rest.

    Args:
        folder: their folder, which all processes see; created with the first one.
        configuration: configuration of the run, plain data. A checkpoint of another configuration is refused.
        policy: when to save and what to keep.
        caller: called at every save; its plain data comes back in `Checkpoint.caller`.
        parallel: the processes; None: this one alone.
    """

    def __init__(
        self,
        folder: str | Path,
        configuration: Mapping[str, Any],
        policy: CheckpointPolicy | None = None,
        caller: Callable[[], Mapping[str, Any]] = dict,
        parallel: Parallel | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.policy = policy or CheckpointPolicy()
        self._configuration = configuration
        self._caller = caller
        self._parallel = parallel or Parallel()
        self._saved = time.monotonic()
        self._cost = 0.0

    def due(self, step: int) -> bool:
        """Whether to save the run after `step` finished steps."""
        if self.policy.every_steps:
            return step % self.policy.every_steps == 0
        return time.monotonic() - self._saved >= max(self.policy.every_seconds, _SAVING_SHARE * self._cost)

    def save(
        self, step: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint, then delete those that are no longer kept. Where there is no room, older ones go first.

        Args:
            step: finished steps.
            module: its weights are saved.
            optimizer: its state is saved.
            state: tensors and plain data; on several processes rank 0's count.

        Returns:
            The new folder.

        Raises:
            OSError: it could not be written; the newest of the earlier checkpoints is as it was.
        """
        began = time.monotonic()
        path = self.folder / f"step-{step:08d}"
        main = self._parallel.is_main_process
        content = {
            "format": FORMAT,
            "step": step,
            "configuration": dict(self._configuration),
            "state": dict(state),
            "caller": dict(self._caller()) if main else {},
        }
        if main and path.exists():
            _retire(path)
        try:
            try:
                write(path, module, optimizer, content, self._parallel.control)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                if main:
                    self._keep(1)
                write(path, module, optimizer, content, self._parallel.control)
        except OSError as error:
            raise OSError(error.errno, explained(error, f"{path.name} cannot be written")) from error
        finally:
            self._saved = time.monotonic()
            self._cost = self._saved - began
        if main:
            self._keep(self.policy.keep)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; None if there never was one.

        A damaged one is renamed, so that its name can be used again, and passed over.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged, or it belongs to another configuration or
                to another version.
        """
        passed_over: list[str] = []
        for path in self._paths():
            try:
                checkpoint = Checkpoint.open(path, self._configuration, tuple(passed_over))
                if not (damage := checkpoint.saved.damage()):
                    return checkpoint
            except (CheckpointDamaged, OSError) as error:
                damage = str(error)
            with contextlib.suppress(OSError):
                path.rename(_free(path.with_name(path.name + _DAMAGED)))
            passed_over.append(f"{path.name} is damaged and was passed over ({damage})")
        if earlier := sorted(self.folder.glob("step-*.pt")):
            raise CheckpointError(
                f"{earlier[-1]} is of an earlier version of polargrad; resume with the one that wrote it"
            )
        if passed_over or any(self.folder.glob(f"*{_DAMAGED}*")):
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged; start the run again in another folder, or restore them"
            )
        return None

    def last_step(self) -> int | None:
        """The step of the newest checkpoint, looked at by name alone; None if there is none."""
        return next((int(path.name.removeprefix("step-")) for path in self._paths()), None)

    def finish(self) -> None:
        """Clean up after a finished run: keep its last checkpoints, or none, as the policy says."""
        self._keep(self.policy.keep if self.policy.keep_finished else 0)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # succeeds only if nothing is left in it

    def _keep(self, number: int) -> None:
        """Delete all but the newest few, and what saves and deletions that were killed left behind."""
        for path in self._paths()[number:]:
            _retire(path)
        for part in self.folder.glob(f"step-*{PART}"):
            with contextlib.suppress(OSError):
                clear_part(part)
        with contextlib.suppress(OSError):
            sync_folder(self.folder)

    def _paths(self) -> list[Path]:
        """The checkpoints, the newest first."""
        try:
            found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _retire(path: Path) -> None:
    """Take a checkpoint's name away, which it bears for as long as it is whole, and delete it."""
    gone = path.with_name(path.name + PART)
    with contextlib.suppress(OSError):
        clear_part(gone)
        path.rename(gone)
        clear_part(gone)


def _free(path: Path) -> Path:
    """The path, or one with a number behind it where something bears the name."""
    names = (path, *(path.with_name(f"{path.name}{number}") for number in range(2, 1000)))
    return next(name for name in names if not name.exists())


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
        elif type(entry) not in _PLAIN and not isinstance(entry, torch.Tensor):
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


def capture(data: Any) -> dict[str, Any]:
    """Position in the data and random generators, as tensors and plain data.

    Args:
        data: its `state_dict()` is kept, if it has one. Data whose batch is a function of the step needs none.

    Returns:
        What `Checkpoint.restore` puts back.
    """
    return {"data": data.state_dict() if hasattr(data, "state_dict") else None, "random": _generators()}


def _generators() -> dict[str, Any]:
    """The state of every global generator; numpy's only where something imported numpy."""
    version, words, gauss = random.getstate()
    held: dict[str, Any] = {"torch": _words(torch.get_rng_state()), "python": [version, list(words), gauss]}
    if torch.cuda.is_available():
        # One of several processes has one device.
        states = [torch.cuda.get_rng_state()] if dist.is_initialized() else torch.cuda.get_rng_state_all()
        held["cuda"] = [_words(state) for state in states]
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        held["numpy"] = [name, keys.tolist(), int(position), int(has_gauss), float(cached)]
    return held


def _words(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _state(words: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(words), dtype=torch.uint8)


def _restore_generators(held: Mapping[str, Any]) -> None:
    torch.set_rng_state(_state(held["torch"]))
    version, words, gauss = held["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in held and torch.cuda.is_available():
        states = [_state(words) for words in held["cuda"]]
        if len(states) == torch.cuda.device_count() and not dist.is_initialized():
            torch.cuda.set_rng_state_all(states)
        else:
            torch.cuda.set_rng_state(states[0])
    if "numpy" in held:
        import numpy

        name, keys, position, has_gauss, cached = held["numpy"]
        words = numpy.asarray(keys, dtype=numpy.uint32)
        numpy.random.set_state((name, words, position, has_gauss, cached))  # noqa: NPY002  the global one's state
