"""Ranks that are about to do different things all raise the same error, before any of them has done anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Layout
from polargrad.optim.options import parameter_name

__all__ = ["Agreement"]

_NOT_OPTIONS = ("params", "param_names")

# What to do where ranks differ in parameters, in options, or in which parameters have gradients.
_ADVICE = (
    "give every rank the same parameters in the same order, and copies the same values",
    "give every rank the same",
    "use it in the forward pass of every rank, or give it a gradient of zeros",
)


def _digest(value: object) -> int:
    """63 bits of a hash of plain data, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big") >> 1


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        # A number on an accelerator stays unread: reading it would stop the queue in every step.
        return value.item() if value.device.type == "cpu" else str(value.device)
    return value


def _options(groups: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"the options of group {index}, {option}": repr(_plain(value))
        for index, group in enumerate(groups)
        for option, value in sorted(group.items())
        if option not in _NOT_OPTIONS
    }


def _gradients(groups: Sequence[Mapping[str, Any]], present: Sequence[Sequence[int]]) -> dict[str, str]:
    return {
        f"the gradient of {parameter_name(group, i)} of group {index}": "one" if i in positions else "none"
        for index, (group, positions) in enumerate(zip(groups, present, strict=True))
        for i in range(len(group["params"]))
    }


class Agreement:
    """Compares what the ranks are about to do, by one all-gather of four numbers per step on the host.

    Args:
        communicator: the ranks.
        layouts: of every parameter.
        momentum_layouts: of the momentum of every parameter.
    """

    def __init__(
        self, communicator: Communicator, layouts: Mapping[Tensor, Layout], momentum_layouts: Mapping[Tensor, Layout]
    ) -> None:
        self._communicator = communicator
        self._layouts, self._momentum_layouts = layouts, momentum_layouts
        self._structure: dict[str, str] = {}

    def check(self, groups: Sequence[Mapping[str, Any]], present: Sequence[Sequence[int]], *, clean: bool) -> bool:
        """Whether `clean` is true on every rank; every rank calls this once per step.

        Raises:
            RuntimeError: ranks differ in parameters, options, or in which parameters have gradients.
        """
        if not self._structure:
            self._structure = self._describe(groups)
        row = [_digest(self._structure), _digest(_options(groups)), _digest([list(p) for p in present]), int(clean)]
        table = self._communicator.table(row)
        for kind, advice in enumerate(_ADVICE):
            if any(other[kind] != table[0][kind] for other in table):
                own = (self._structure, _options(groups), _gradients(groups, present))[kind]
                raise RuntimeError(f"the ranks disagree on {self._difference(own)}; {advice}. Nothing was stepped.")
        return all(other[3] for other in table)

    def _describe(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """A line for each parameter, with the sum of its values where ranks have copies, which must be the same."""
        lines = {"the number of parameter groups": str(len(groups))}
        for index, group in enumerate(groups):
            lines[f"the number of parameters of group {index}"] = str(len(group["params"]))
            for position, p in enumerate(group["params"]):
                layout, values = self._layouts[p], ""
                if not layout.cut and not p.is_meta and not hasattr(p, "placements"):
                    values = f", values that sum to {p.detach().to(torch.float64).sum().item()!r}"
                lines[f"parameter {position} of group {index}"] = (
                    f"{parameter_name(group, position)} of shape {layout.shape}, {p.dtype}, mesh {layout.mesh} cutting "
                    f"{layout.dims}, momentum {self._momentum_layouts[p].dims}{values}"
                )
        return lines

    def _difference(self, own: dict[str, str]) -> str:
        """The first line in which the ranks differ, with each value and the ranks that have it."""
        described = self._communicator.objects(own)
        for label in dict.fromkeys(chain.from_iterable(described)):
            ranks: dict[str, list[str]] = {}
            for rank, lines in zip(self._communicator.ranks, described, strict=True):
                ranks.setdefault(lines.get(label, "absent"), []).append(str(rank))
            if len(ranks) > 1:
                return f"{label}: " + ", ".join(f"{value} on rank {' and '.join(at)}" for value, at in ranks.items())
        raise AssertionError("digests differ, descriptions do not")
