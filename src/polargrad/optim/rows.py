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
from polargrad.optim.distributor import Distributor
from polargrad.optim.functional import statistics_dtype
from polargrad.optim.matrix_view import MatrixView

__all__ = ["even_rows", "initial_rows"]


def initial_rows(
    view: MatrixView, parameter: Tensor, dtype: torch.dtype, distributor: Distributor
) -> dict[str, Tensor]:
    """The state before the first step, for directions of `dtype`: sqrt(v) of every row; 1 - beta^t per matrix, (K,)."""
    wide, matrices = statistics_dtype(dtype), sum(k for k, _, _ in view.batches)
    return {
        "row_rms": distributor.row_zeros(view, parameter, wide),
        "row_weight": torch.zeros(matrices, dtype=wide, device=parameter.device),
    }


def even_rows(
    view: MatrixView,
    geometry: Geometry,
    parameters: Sequence[Tensor],
    directions: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    beta: float,
    keep: Tensor | None,
    distributor: Distributor,
) -> list[Tensor]:
    """The directions with their rows evened out.

    Args:
        view: how each whole parameter is seen as matrices.
        geometry: gives r.
        parameters: as the group has them.
        directions: the parts that are here, not modified.
        states: of the parameters; `row_rms` and `row_weight` are made where they are missing.
        beta: decay of the running mean square.
        keep: bool (K,), matrices that step; the states of the others stay as they are. None: all.
        distributor: knows what is here, and the lengths of rows that are not here as a whole.
    """
    for p, D, state in zip(parameters, directions, states, strict=True):
        if "row_rms" not in state:
            state.update(initial_rows(view, p, D.dtype, distributor))
    wide = statistics_dtype(directions[0].dtype)
    lengths = [torch.linalg.vector_norm(D.to(wide), dim=view.input_dimensions, keepdim=True) for D in directions]
    lengths = distributor.row_lengths(view, parameters, lengths)
    kept = [None] * len(states) if keep is None else keep.split(len(keep) // len(states))
    found = zip(parameters, directions, states, lengths, kept, strict=True)
    return [_evened(view, geometry, *one, beta, distributor) for one in found]


def _evened(
    view: MatrixView,
    geometry: Geometry,
    parameter: Tensor,
    direction: Tensor,
    state: dict[str, Any],
    length: Tensor,
    keep: Tensor | None,
    beta: float,
    distributor: Distributor,
) -> Tensor:
    sizes = [k for k, _, _ in view.batches]
    _, _, n = view.batches[0]
    rms, weight = distributor.part(state["row_rms"]), state["row_weight"]
    # Roots rather than squares: nothing over- or underflows that the direction itself does not.
    new_rms = torch.hypot(math.sqrt(beta) * rms, math.sqrt((1 - beta) / n) * length)
    new_weight = beta * weight + (1 - beta)
    if keep is not None:
        spread = distributor.narrow(parameter, view.spread(list(keep.split(sizes))))
        new_rms = torch.where(spread, new_rms, rms)
        new_weight = torch.where(keep, new_weight, weight)
    rms.copy_(new_rms)
    weight.copy_(new_weight)
    even = [math.sqrt(geometry.squared_length(m, n) / (m * n)) for _, m, n in view.batches]
    average = [part.sqrt() * f for part, f in zip(weight.split(sizes), even, strict=True)]
    factor = torch.where(rms > 0, distributor.narrow(parameter, view.spread(average)) / rms, 0.0)
    return (direction.to(rms.dtype) * factor).to(direction.dtype)
