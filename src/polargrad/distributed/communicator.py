"""The ranks of one optimizer, and the few collectives that it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Communicator"]

T = TypeVar("T")


class Communicator:
    """The ranks that share a step. Ranks are named by their position, from 0 to `size` - 1.

    Args:
        group: the process group; None makes one of `ranks` on first use.
        ranks: the global ranks in order.
    """

    def __init__(self, group: Any, ranks: Sequence[int]) -> None:
        self.ranks = tuple(ranks)
        self.size = len(self.ranks)
        self.here = self.ranks.index(dist.get_rank())
        self.steps = 0
        self._group: Any = group
        self._host: Any = None

    def _connect(self) -> None:
        """Make the process groups that are missing; every rank calls this in its first step."""
        if self._group is None:
            everyone = self.ranks == tuple(range(dist.get_world_size()))
            self._group = dist.group.WORLD if everyone else _new_group(self.ranks, None)
        if self._host is None:
            try:
                self._group._get_backend(torch.device("cpu"))
                self._host = self._group
            except RuntimeError:  # NCCL alone: what the host must know is sent by gloo
                self._host = _new_group(self.ranks, "gloo")

    def all_to_all(self, send: Tensor, sends: list[int], receives: list[int]) -> Callable[[], Tensor]:
        """Start to send the first `sends[0]` elements of `send` to rank 0, and so on; call the result to wait.

        Args:
            send: (sum of sends,).
            sends: a number of elements for each rank.
            receives: a number of elements from each rank.

        Returns:
            A function that waits and returns what was received, (sum of receives,), in the order of the ranks.
        """
        received = send.new_empty(sum(receives))
        work = self._guarded(
            lambda: dist.all_to_all_single(received, send, receives, sends, group=self._group, async_op=True)
        )

        def wait() -> Tensor:
            self._guarded(work.wait)
            return received

        return wait

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Callable[[], Tensor]:
        """Start to reduce `tensor` in place; call the result to wait for it."""
        work = self._guarded(lambda: dist.all_reduce(tensor, op, group=self._group, async_op=True))

        def wait() -> Tensor:
            self._guarded(work.wait)
            return tensor

        return wait

    def table(self, row: list[int]) -> list[list[int]]:
        """The rows of all ranks, gathered on the host."""
        self._guarded(self._connect)
        rows = [torch.empty(len(row), dtype=torch.int64) for _ in self.ranks]
        self._guarded(lambda: dist.all_gather(rows, torch.tensor(row), group=self._host))
        return [row.tolist() for row in rows]

    def objects(self, value: T) -> list[T]:
        """The values of all ranks, pickled; slow, for error messages."""
        values: list[Any] = [None] * self.size
        self._guarded(lambda: dist.all_gather_object(values, value, group=self._host))
        return values

    def _guarded(self, collective: Callable[[], Any]) -> Any:
        try:
            return collective()
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.ranks[self.here]} lost the other ranks in step {self.steps} of the optimizer: one of them "
                f"has died, raised an error, or did not come to this step within the timeout of the process group. "
                f"The weights may be half stepped: start again from a checkpoint. ({error})"
            ) from error


def _new_group(ranks: Sequence[int], backend: str | None) -> Any:
    return dist.new_group(list(ranks), backend=backend, use_local_synchronization=True)
