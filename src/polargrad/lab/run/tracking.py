"""The records of a run in other programs, beside its folder: TensorBoard, and the trackers wandb and trackio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from polargrad.lab.options import check_options

if TYPE_CHECKING:
    from polargrad.lab.run.spec import RunSpec
    from polargrad.lab.train import Record

Tracker = Literal["none", "wandb", "trackio"]
BOARD = "tensorboard"  # the folder in a run folder


@dataclass(frozen=True)
class Tracking:
    """Where the records of a run go beside its folder.

    Args:
        tensorboard: write the records for TensorBoard too, into the run folder.
        track: send the records to a tracker too, which must be installed.
    """

    tensorboard: bool = False
    track: Tracker = "none"

    def check(self) -> None:
        """See that the packages are there, before any work.

        Raises:
            ModuleNotFoundError: one is not installed.
            ValueError: an unknown tracker.
        """
        check_options(self)
        if self.tensorboard:
            import_module("torch.utils.tensorboard")
        if self.track != "none":
            _module_of(self.track)


def _module_of(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"--track {name} needs {name}: pip install {name}") from None


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics of a record under the names that trackers show; what was not finite is left out.

    Steps become `train/...`, evaluations `eval/...`, rates `lr/ROLE` and the metrics of a matrix `PARAMETER/...`.

    Example:
        >>> dict(scalars({"kind": "eval", "step": 3, "val_loss": 2.5}))
        {'eval/val_loss': 2.5}
    """
    kind = record["kind"]
    place = {"step": "train", "eval": "eval"}.get(kind, str(record.get("parameter", kind)))
    for name, value in record.items():
        if name == "lr":
            yield from ((f"lr/{role}", rate) for role, rate in value.items())
        elif name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{place}/{name}", value


@contextmanager
def watching(spec: RunSpec, path: Path, tracking: Tracking) -> Iterator[Record | None]:
    """A function that passes every record of a run on to TensorBoard and a tracker; None if neither is asked for.

    Args:
        spec: the run.
        path: its folder.
        tracking: who gets the records.
    """
    with ExitStack() as stack:
        watchers = [stack.enter_context(tensorboard(path / BOARD))] if tracking.tensorboard else []
        watchers += [stack.enter_context(tracker(tracking.track, spec))] if tracking.track != "none" else []

        def watch(record: dict[str, Any]) -> None:
            for watcher in watchers:
                watcher(record)

        yield watch if watchers else None


@contextmanager
def tracker(name: str, spec: RunSpec) -> Iterator[Record]:
    """Send every metric of a run's records to a tracker; events stay in the run folder.

    Every call carries the run's own step as "step": evaluations come after the steps they follow, and trackers refuse
    to go back in their own count. Signing in is the tracker's own affair (`wandb login`).

    Args:
        name: "wandb" or "trackio".
        spec: the run; its name and content become the tracker's.

    Raises:
        ModuleNotFoundError: the tracker is not installed.
    """
    module = _module_of(name)
    module.init(project="polargrad", name=spec.name, config=spec.to_dict())

    def send(record: Mapping[str, Any]) -> None:
        if metrics := dict(scalars(record)):
            module.log({"step": record["step"], **metrics})

    try:
        yield send
    finally:
        module.finish()


@contextmanager
def tensorboard(folder: Path) -> Iterator[Record]:
    """Write every metric of a run's records as a scalar, and events as text.

    Args:
        folder: the folder of event files; it is made with the first record, so that a run folder may still be new.

    Raises:
        ImportError: tensorboard is not installed.
    """
    from torch.utils.tensorboard import SummaryWriter

    writers: list[SummaryWriter] = []

    def write(record: Mapping[str, Any]) -> None:
        writer = writers[0] if writers else SummaryWriter(str(folder))
        writers[:] = [writer]
        if record["kind"] == "event":
            writer.add_text("events", f"{record['event']}: {record.get('message', '')}", record["step"])
        for name, value in scalars(record) if record["kind"] != "event" else ():
            writer.add_scalar(name, value, record["step"])

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
