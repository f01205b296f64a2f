"""What the commands that train understand when torchrun starts them on several processes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from polargrad.lab.train.parallel import Parallel, processes

__all__ = ["ParallelOptions"]


@dataclass(frozen=True)
class ParallelOptions:
    """Of several processes: torchrun --nproc-per-node 2 -m polargrad run NAME --parallel ddp."""

    parallel: Annotated[
        Literal["ddp", "fsdp", "hsdp", "tp"] | None,
        tyro.conf.arg(help="how a language model lives on the processes: copied, cut, both, or each matrix cut"),
    ] = None
    mesh: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="DxSxT", help="copies x shards x tensor-parallel ranks; by default all ranks along the mode's axis"
        ),
    ] = None

    def processes(self) -> AbstractContextManager[Parallel]:
        """The processes, as long as the block lasts."""
        return processes(self.parallel, self.mesh)

    def refuse(self, name: str) -> None:
        """Raise ValueError if several processes were asked for where one does the work."""
        if self.parallel is not None or self.mesh is not None:
            raise ValueError(f"{name} runs on one process; leave --parallel and --mesh out")
