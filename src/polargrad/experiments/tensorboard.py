"""The records of a run as TensorBoard shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"

__all__ = ["FOLDER", "TensorBoard"]


class TensorBoard:
    """Writes every figure of a run's records as a scalar, beside the records and never instead of them.

    Steps become `train/...`, evaluations `eval/...` and the figures of a matrix `PARAMETER/...`; an event becomes text.

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
        place = {"step": "train", "eval": "eval"}.get(kind, str(record.get("parameter", kind)))
        for name, value in record.items():
            if name == "lr":
                for role, rate in value.items():
                    self._writer.add_scalar(f"lr/{role}", rate, step)
            elif name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{place}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
