"""Metrics of what the optimizer's own step computed, at a chosen interval, as plain records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from polargrad.diagnostics.metrics import matrix_metrics
from polargrad.optim import PolarGrad
from polargrad.optim.execution import Batch, Directions
from polargrad.optim.options import parameter_name

__all__ = ["Recorder"]


class Recorder:
    """Records metrics of every matrix that `optimizer` steps by the polar rule, on each `every`-th step.

    With M what the direction was taken of (the momentum, or the gradient in the polar-first order) and U the direction
    that the step computed, a record holds::

        step, group, role, parameter, matrix (its number in the parameter), shape [m, n]
        nuclear_norm     nu, the dual norm of M in the group's geometry, with `whitening` that of the whitened M
        frobenius_norm   ||M||_F
        alignment        <M, U> / (||M||_F sqrt(r)), where sqrt(r) = ||U||_F, r the rank for an exact factor; below
                         zero for a whitened step that ascends along M
        update_rms       root mean square of the entries of the step, without weight decay; 0 for a skipped one
        condition_number, stable_rank    of M, only with spectrum=True

    The first four cost a pass over M and U. The spectrum costs singular values in float64, far more than the step.

    Args:
        optimizer: watched from now on; it has one observer at a time.
        every: the interval in steps; the first step is recorded.
        spectrum: whether to compute singular values too.
        write: called with each record, for example to append it to a file; without it they gather in `records`.

    Raises:
        ValueError: an interval below 1, an optimizer that is watched already, or parameters that are cut over ranks.

    Example:
        >>> import torch, polargrad
        >>> W = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = polargrad.PolarGrad([W], lr=0.1, momentum=0.0, method="svd")
        >>> recorder = Recorder(optimizer, every=10)
        >>> W.grad = torch.diag(torch.tensor([3.0, 1.0]))
        >>> optimizer.step()
        >>> round(recorder.records[0]["nuclear_norm"], 4), round(recorder.records[0]["condition_number"], 4)
        (4.0, 3.0)
    """

    def __init__(
        self,
        optimizer: PolarGrad,
        every: int = 100,
        *,
        spectrum: bool = True,
        write: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a number of steps, at least 1, got {every!r}")
        if optimizer.observer is not None:
            raise ValueError("this optimizer is watched already; close() its recorder first")
        for group in optimizer.param_groups:
            for position, p in enumerate(group["params"]):
                buffer = optimizer.state[p].get("momentum_buffer", p) if p in optimizer.state else p
                if any(placement.is_shard() for one in (p, buffer) for placement in getattr(one, "placements", ())):
                    raise ValueError(
                        f"a recorder needs whole matrices, and {parameter_name(group, position)} is cut over ranks; "
                        "record a run where every rank holds copies"
                    )
        self.records: list[dict[str, Any]] = []
        self._every = every
        self._spectrum = spectrum
        self._write = self.records.append if write is None else write
        self._step = 0
        self._optimizer = optimizer
        optimizer.observer = self

    def close(self) -> None:
        """Stop watching; the records stay."""
        if self._optimizer.observer is self:
            self._optimizer.observer = None

    def wants_step(self) -> bool:
        """Count the step; returns whether to record it."""
        self._step += 1
        return (self._step - 1) % self._every == 0

    @torch.no_grad()
    def see(self, index: int, group: Mapping[str, Any], batch: Batch, directions: Directions) -> None:
        """Record the matrices of one batch of the step."""
        assert batch.sources is not None
        assert batch.update_rms is not None
        update_rms, dual_norms = iter(batch.update_rms.tolist()), iter(directions.dual_norms.tolist())
        for position, source_whole, whole in zip(batch.positions, batch.sources, directions.local, strict=True):
            names = group.get("param_names")
            name = names[position] if names else parameter_name(group, position)
            number = 0
            for source, direction in zip(batch.view.split(source_whole), batch.view.split(whole), strict=True):
                M, U = source.to(torch.float64), direction.to(torch.float64)
                norms = [torch.linalg.matrix_norm(M), torch.linalg.matrix_norm(U), (M * U).sum((-2, -1))]
                for j, (size, length, slope) in enumerate(torch.stack(norms, dim=-1).tolist()):
                    nu = next(dual_norms)
                    record = {
                        "step": self._step,
                        "group": index,
                        "role": group.get("role", ""),
                        "parameter": name,
                        "matrix": number,
                        "shape": list(M.shape[1:]),
                        "nuclear_norm": nu,
                        "frobenius_norm": size,
                        "alignment": slope / (size * length) if size * length > 0 else float("nan"),
                        "update_rms": next(update_rms),
                    }
                    if self._spectrum:
                        spectrum = matrix_metrics(M[j])
                        record |= {key: spectrum[key] for key in ("condition_number", "stable_rank")}
                    self._write(record)
                    number += 1
