"""The records of a run in an experiment tracker: wandb or trackio, whose calls agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from polargrad.lab.run.spec import RunSpec

__all__ = ["TRACKERS", "Tracker", "scalars"]

TRACKERS = ("wandb", "trackio")


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of a record under the names that trackers show; what was not finite is left out.

    Steps become `train/...`, evaluations `eval/...`, rates `lr/ROLE` and the figures of a matrix `PARAMETER/...`.

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
    """Sends every figure of a run's records to a tracker, beside the records and never instead of them.

    Every call carries the run's own step as "step": evaluations come after the steps they follow, and trackers refuse
    to go back in their own count. Where the tracker is told who you are is its own affair (`wandb login`).

    Args:
        name: "wandb" or "trackio".
        spec: of the run; its name and content become the tracker's.

    Raises:
        ModuleNotFoundError: the tracker is not installed.
        ValueError: a tracker that is not known.
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
        if figures := dict(scalars(record)):
            self._module.log({"step": record["step"], **figures})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._module.finish()
