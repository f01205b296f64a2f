"""The records of a run in other programs: TensorBoard, and the experiment trackers wandb and trackio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from polargrad.lab.run.spec import RunSpec

__all__ = ["BOARD", "TRACKERS", "TensorBoard", "Tracker", "scalars"]

TRACKERS = ("wandb", "trackio")
BOARD = "tensorboard"  # the folder in a run folder


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


class Tracker:
    """Sends every metric of a run's records to a tracker, beside the records and never instead of them.

    Every call carries the run's own step as "step": evaluations come after the steps they follow, and trackers refuse
    to go back in their own count. Signing in is the tracker's own affair (`wandb login`).

    Args:
        name: "wandb" or "trackio".
        spec: of the run; its name and content become the tracker's.

    Raises:
        ModuleNotFoundError: the tracker is not installed.
        ValueError: an unknown tracker.
    """

    def __init__(self, name: str, spec: RunSpec) -> None:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
        try:
            self._module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ModuleNotFoundError(f"--track {name} needs {name}: pip install {name}", name=name) from None
        self._module.init(project="polargrad", name=spec.name, config=spec.to_dict())

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Send one record; events stay in the run folder."""
        if metrics := dict(scalars(record)):
            self._module.log({"step": record["step"], **metrics})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._module.finish()


class TensorBoard:
    """Writes every metric of a run's records as a scalar, and events as text, beside the records.

    Args:
        folder: where to write; it is made with the first record.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        import tensorboard  # noqa: F401  so that it is missed now and not at the first record

        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        kind, step = record["kind"], record["step"]
        if kind == "event":
            self._writer.add_text("events", f"{record['event']}: {record.get('message', '')}", step)
            return
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
