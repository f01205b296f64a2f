"""What a rank sends: the collectives of torch.distributed, wrapped and counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch.distributed as dist


class Sent(NamedTuple):
    """One collective: its name, and what this rank sends of it to others, in elements and bytes."""

    name: str
    elements: float
    bytes: float


@dataclass
class Traffic:
    """The collectives of a stretch of code, in order."""

    sent: list[Sent] = field(default_factory=list)

    def bytes(self, *names: str) -> float:
        """The bytes sent, by collectives of these names or by all."""
        return sum(one.bytes for one in self.sent if not names or one.name in names)

    def elements(self, *names: str) -> float:
        """The elements sent, likewise."""
        return sum(one.elements for one in self.sent if not names or one.name in names)


def _all_to_all(output, input, output_split_sizes=None, input_split_sizes=None, group=None, **_):
    world, here = dist.get_world_size(group), dist.get_rank(group)
    splits = input_split_sizes or [len(input) // world] * world
    others = sum(size for rank, size in enumerate(splits) if rank != here)
    return others * (input[:1].numel() and input[0].numel()), input


def _all_reduce(tensor, op=None, group=None, **_):
    # Ring: every rank sends its share of the sums, then of the results, to its neighbour.
    world = dist.get_world_size(group)
    return 2 * (world - 1) / world * tensor.numel(), tensor


def _all_gather(output, input, group=None, **_):
    return (dist.get_world_size(group) - 1) * input.numel(), input


def _broadcast(tensor, *_, group=None, **__):
    world = dist.get_world_size(group)
    return (world - 1) / world * tensor.numel(), tensor


def _reduce_scatter(output, input, op=None, group=None, **_):
    world = dist.get_world_size(group)
    return (world - 1) / world * input.numel(), input


_COUNTED = {
    "all_to_all_single": _all_to_all,
    "all_reduce": _all_reduce,
    "all_gather_into_tensor": _all_gather,
    "all_gather": _all_gather,
    "broadcast": _broadcast,
    "reduce_scatter_tensor": _reduce_scatter,
}


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Count what code inside sends through `torch.distributed.NAME(...)`.

    Reductions and gathers count as the ring sends them: (p - 1)/p of the result, twice for all_reduce.
    """
    traffic = Traffic()
    originals = {name: getattr(dist, name) for name in _COUNTED}

    def wrap(name):
        def wrapped(*args, **kwargs):
            elements, tensor = _COUNTED[name](*args, **kwargs)
            traffic.sent.append(Sent(name, elements, elements * tensor.element_size()))
            return originals[name](*args, **kwargs)

        return wrapped

    try:
        for name in _COUNTED:
            setattr(dist, name, wrap(name))
        yield traffic
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
