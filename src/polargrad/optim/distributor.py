"""Who computes which matrix: the protocol, and the single-process answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Distributor", "SingleProcess"]

Oracle = Callable[[Tensor], Tensor]


class Distributor(Protocol):
    """Applies an oracle to every matrix of a group, wherever the matrices live."""

    def directions(self, matrices: Sequence[Tensor], oracle: Oracle) -> list[Tensor]:
        """For each batch (k_i, m_i, n_i), the oracle's answer of the same shape."""
        ...


class SingleProcess:
    """Everything here: batches of one shape, dtype and device are joined and go through the oracle once."""

    def directions(self, matrices: Sequence[Tensor], oracle: Oracle) -> list[Tensor]:
        """Join, apply, take apart; the order of the answer is the order of the question."""
        buckets: dict[tuple[object, ...], list[int]] = {}
        for i, batch in enumerate(matrices):
            buckets.setdefault((batch.shape[1:], batch.dtype, batch.device), []).append(i)
        answers: list[Tensor] = list(matrices)
        for members in buckets.values():
            batches = [matrices[i] for i in members]
            joined = oracle(batches[0] if len(batches) == 1 else torch.cat(batches))
            for i, part in zip(members, joined.split([len(b) for b in batches]), strict=True):
                answers[i] = part
        return answers
