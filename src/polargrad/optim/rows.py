"""Rows of a direction evened out: each divided by the root of its running mean square.

The polar factor has equal singular values, but rows of very different lengths: in a table of tokens, those of rare
tokens are short. With D the direction of a matrix (m, n), r = ||lmo||_F^2 for its shape, beta = `row_beta`::

    v_i <- beta v_i + (1 - beta) mean_j D_ij^2;   D_i <- sqrt(r / (mn)) D_i / sqrt(v_i / (1 - beta^t))

so that each row moves as the average row of D would have; a row that was always zero stays so.

Source: the neuron-wise normalization of NorMuon, Li et al., arXiv 2510.05491, which restores ||D||_F instead of r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polargrad.geometry import Geometry
from polargrad.optim.functional import statistics_dtype
from polargrad.optim.matrix_view import MatrixView

__all__ = ["even_rows", "initial_rows"]


def initial_rows(view: MatrixView, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The state before the first step: sqrt(v) of every row, to broadcast; 1 - beta^t of every matrix, (K,)."""
    inputs, wide = set(view.input_dimensions), statistics_dtype(dtype)
    sizes = [1 if d in inputs else size for d, size in enumerate(view.shape)]
    matrices = sum(k for k, _, _ in view.batches)
    return {
        "row_rms": torch.zeros(sizes, dtype=wide, device=device),
        "row_weight": torch.zeros(matrices, dtype=wide, device=device),
    }


def even_rows(
    view: MatrixView,
    geometry: Geometry,
    directions: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    beta: float,
    keep: Tensor | None,
) -> list[Tensor]:
    """The directions with their rows evened out.

    Args:
        view: how each parameter is seen as matrices.
        geometry: gives r.
        directions: of whole parameters, not modified.
        states: of the parameters; `row_rms` and `row_weight` are made where they are missing.
        beta: decay of the running mean square.
        keep: bool (K,), matrices that step; the states of the others stay as they are. None: all.
    """
    kept = [None] * len(states) if keep is None else keep.split(len(keep) // len(states))
    found = zip(directions, states, kept, strict=True)
    return [_evened(view, geometry, D, state, beta, wanted) for D, state, wanted in found]


def _evened(
    view: MatrixView, geometry: Geometry, direction: Tensor, state: dict[str, Any], beta: float, keep: Tensor | None
) -> Tensor:
    if "row_rms" not in state:
        state.update(initial_rows(view, direction.dtype, direction.device))
    rms, weight = state["row_rms"], state["row_weight"]
    wide = direction.to(rms.dtype)
    # Roots rather than squares: nothing over- or underflows that the direction itself does not.
    row = torch.linalg.vector_norm(wide, dim=view.input_dimensions, keepdim=True)
    new_rms = torch.hypot(math.sqrt(beta) * rms, math.sqrt((1 - beta) * row.numel() / wide.numel()) * row)
    new_weight = beta * weight + (1 - beta)
    if keep is not None:
        new_rms = torch.where(_spread(view, keep), new_rms, rms)
        new_weight = torch.where(keep, new_weight, weight)
    rms.copy_(new_rms)
    weight.copy_(new_weight)
    even = [math.sqrt(geometry.squared_length(m, n) / (m * n)) for _, m, n in view.batches]
    length = [part.sqrt() * f for part, f in zip(weight.split([k for k, _, _ in view.batches]), even, strict=True)]
    factor = torch.where(rms > 0, view.spread(length) / rms, 0.0)
    return (wide * factor).to(direction.dtype)


def _spread(view: MatrixView, values: Tensor) -> Tensor:
    """Numbers (K,) of matrices, to broadcast against the parameter."""
    return view.spread(list(values.split([k for k, _, _ in view.batches])))
