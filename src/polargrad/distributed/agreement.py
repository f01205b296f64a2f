"""Ranks that are about to do different things say so, all of them, before any has done it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Layout
from polargrad.optim.options import parameter_name

__all__ = ["Agreement"]

_NOT_OPTIONS = ("params", "param_names")


def _digest(value: object) -> int:
    """63 bits of a hash of plain data, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big") >> 1


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        # A number on an accelerator stays unread: reading it would stop the queue in every step.
        return value.item() if value.device.type == "cpu" else str(value.device)
    return value


def _options(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{k: repr(_plain(v)) for k, v in sorted(group.items()) if k not in _NOT_OPTIONS} for group in groups]


class Agreement:
    """Compares what the ranks are about to do, by one all-gather of four numbers per step on the host.

    Args:
        communicator: the ranks.
        layouts: of every parameter.
        kept: of the momentum of every parameter.
    """

    def __init__(
        self, communicator: Communicator, layouts: Mapping[Tensor, Layout], kept: Mapping[Tensor, Layout]
    ) -> None:
        self._communicator = communicator
        self._layouts, self._kept = layouts, kept
        self._structure: list[list[str]] | None = None

    def check(self, groups: Sequence[Mapping[str, Any]], present: Sequence[Sequence[int]], *, clean: bool) -> bool:
        """Whether `clean` is true on every rank; every rank calls this once per step.

        Raises:
            RuntimeError: ranks differ in parameters, options, or in which parameters have gradients.
        """
        if self._structure is None:
            self._structure = self._describe(groups)
        row = [_digest(self._structure), _digest(_options(groups)), _digest([list(p) for p in present]), int(clean)]
        table = self._communicator.table(row)
        if all(other[:3] == table[0][:3] for other in table):
            return all(other[3] for other in table)
        kinds = [any(other[kind] != table[0][kind] for other in table) for kind in range(3)]
        if kinds[0]:
            problem = self._different_structures(self._structure)
        elif kinds[1]:
            problem = self._different_options(_options(groups))
        else:
            problem = self._different_gradients(groups, present)
        raise RuntimeError(f"{problem}. Nothing was stepped.")

    def _describe(self, groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """A line for each parameter of each group; of a plain one, which ranks must share, with a sum of its values."""
        lines = []
        for group in groups:
            lines.append([])
            for position, p in enumerate(group["params"]):
                layout = self._layouts[p]
                values = ""
                if not layout.cut and not p.is_meta and not hasattr(p, "placements"):
                    values = f", values that sum to {p.detach().to(torch.float64).sum().item()!r}"
                lines[-1].append(
                    f"{parameter_name(group, position)} of shape {layout.shape}, {p.dtype}, mesh {layout.mesh} cutting "
                    f"{layout.dims}, momentum {self._kept[p].dims}{values}"
                )
        return lines

    def _different_structures(self, own: list[list[str]]) -> str:
        described = self._communicator.objects(own)
        if any(len(groups) != len(described[0]) for groups in described):
            return f"the ranks have {self._each([len(groups) for groups in described])} parameter groups"
        for index in range(len(described[0])):
            groups = [groups[index] for groups in described]
            if any(len(group) != len(groups[0]) for group in groups):
                return f"group {index} has {self._each([len(group) for group in groups])} parameters"
            for position in range(len(groups[0])):
                lines = [group[position] for group in groups]
                if any(line != lines[0] for line in lines):
                    return (
                        f"the ranks disagree on parameter {position} of group {index}, which is {self._each(lines)}; "
                        "give every rank the same parameters in the same order, and copies the same values"
                    )
        raise AssertionError("digests differ, descriptions do not")

    def _different_options(self, own: list[dict[str, str]]) -> str:
        described = self._communicator.objects(own)
        for index in range(len(own)):
            for option in sorted(set().union(*(groups[index] for groups in described))):
                values = [groups[index].get(option, "absent") for groups in described]
                if any(value != values[0] for value in values):
                    return (
                        f"the ranks disagree on the options of group {index}: {option} is {self._each(values)}; give "
                        "every rank the same"
                    )
        raise AssertionError("digests differ, descriptions do not")

    def _different_gradients(self, groups: Sequence[Mapping[str, Any]], present: Sequence[Sequence[int]]) -> str:
        having = self._communicator.objects([list(positions) for positions in present])
        for index, group in enumerate(groups):
            for position in range(len(group["params"])):
                has = [position in positions[index] for positions in having]
                if any(has) and not all(has):
                    without = [rank for rank, h in zip(self._communicator.ranks, has, strict=True) if not h]
                    name = parameter_name(group, position)
                    return (
                        f"the ranks disagree on which parameters have gradients: {name} of group {index} has "
                        f"none on rank {', '.join(map(str, without))}, but one on others; use it in the "
                        "forward pass of every rank, or give it a gradient of zeros"
                    )
        raise AssertionError("digests differ, descriptions do not")

    def _each(self, values: Sequence[object]) -> str:
        """Each value with the ranks that have it."""
        ranks: dict[str, list[int]] = {}
        for rank, value in zip(self._communicator.ranks, values, strict=True):
            ranks.setdefault(str(value), []).append(rank)
        return ", ".join(f"{value} on rank {' and '.join(map(str, where))}" for value, where in ranks.items())
