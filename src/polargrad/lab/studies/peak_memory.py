"""Peak memory of a call, counted from the tensors that torch operations return."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every storage that a torch operation returns, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage_id(tensor) for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            key = _storage_id(tensor)
            if key not in self.known and key not in before:
                storage = tensor.untyped_storage()
                self.known.add(key)
                self.held += storage.nbytes()
                self.peak = max(self.peak, self.held)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.held -= size


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(function: Callable[[], object], device: str = "cpu") -> int:
    """The largest amount of memory that a call allocates, in bytes.

    On a CPU it is the sum of the storages that torch operations return, without their internal memory such as the
    workspace of LAPACK; on a CUDA device it is the maximum that the allocator reports.

    Args:
        function: the call.
        device: where it allocates.

    Example:
        >>> import torch
        >>> A = torch.ones(100)
        >>> peak_bytes(lambda: (A + 1).sum())
        404
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with _Allocations() as allocations:
        function()
    return allocations.peak
