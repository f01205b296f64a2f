"""Small pure pieces of one step: weight decay and the update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["decay_", "statistics_dtype", "update_"]


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of numbers per matrix: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def decay_(
    weights: list[Tensor],
    directions: list[Tensor],
    rate: float | Tensor,
    *,
    cautious: bool,
    sign: float,
    keep: Sequence[Tensor] | None,
) -> None:
    """W <- (1 - rate) W, in place, where `keep`; cautious: only entries that the step W - D moves towards zero.

    Args:
        weights: parameters.
        directions: what is about to be subtracted, up to positive factors and `sign`.
        rate: lr * weight_decay.
        cautious: decay w only where sign * d * w >= 0.
        sign: -1 if the directions are about to be added.
        keep: boolean tensors that broadcast against the weights, or None.

    Source: Loshchilov and Hutter (2019); cautious: Chen et al., arXiv 2510.12402.
    """
    if cautious:
        aligned = [sign * D * W >= 0 for D, W in zip(directions, weights, strict=True)]
        keep = aligned if keep is None else [a & k for a, k in zip(aligned, keep, strict=True)]
    if keep is None:
        torch._foreach_mul_(weights, 1 - rate)
        return
    for W, where in zip(weights, keep, strict=True):
        one = torch.ones((), dtype=statistics_dtype(W.dtype), device=W.device)
        W.mul_(torch.where(where, one - rate, one))


def update_(weights: list[Tensor], directions: list[Tensor], length: float | list[Tensor], sign: float) -> None:
    """W <- W - sign * length * D, in place.

    Args:
        weights: parameters.
        directions: of the same shapes; a wider dtype rounds once, in the sum.
        length: one number, or a tensor per weight that broadcasts against it.
        sign: -1 to ascend.
    """
    if isinstance(length, list):
        torch._foreach_addcmul_(weights, directions, length, value=-sign)
    else:
        torch._foreach_add_(weights, directions, alpha=-sign * length)
