"""The records of a run as TensorBoard shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from polargrad.lab.run.tracking import scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"

__all__ = ["FOLDER", "TensorBoard"]


class TensorBoard:
    """Writes every figure of a run's records as a scalar, beside the records and never instead of them.

    Their names are those of `scalars`; an event becomes text.

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

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
