"""Scaling by powers of two: it brings entries near 1, where their squares are in range, and does not round."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["attenuation", "largest_entry", "power_of_two_scale", "reciprocal_exponent"]


def largest_entry(A: Tensor) -> Tensor:
    """The largest |a_ij| of each matrix (*batch, m, n), (*batch, 1, 1); of real and imaginary parts where complex.

    NaN and infinity carry over. Unlike the modulus of a complex number, a part of it does not overflow.

    Example:
        >>> largest_entry(torch.tensor([[3.0 - 4.0j]])).item()
        4.0
    """
    entries = torch.view_as_real(A.resolve_conj()).flatten(-2) if A.is_complex() else A
    if A.device.type != "cpu":  # one pass over memory; on a CPU two passes are faster
        return torch.linalg.vector_norm(entries, math.inf, dim=(-2, -1), keepdim=True)
    return torch.maximum(entries.amax((-2, -1), keepdim=True), -entries.amin((-2, -1), keepdim=True))


def power_of_two_scale(largest: Tensor) -> Tensor:
    """The power of two that brings each of `largest` into [1/2, 1), in float32 or float64; 1 for 0, NaN and infinity.

    It and its reciprocal are normal numbers: subnormal numbers stay below 1/2, and those from 2^126 on (2^1022 in
    float64) below 4.

    Example:
        >>> power_of_two_scale(torch.tensor([3.0, 0.25, 0.0])).tolist()
        [0.25, 2.0, 1.0]
    """
    return torch.where(largest.isfinite() & (largest != 0), reciprocal_exponent(largest), 1.0)


def reciprocal_exponent(largest: Tensor) -> Tensor:
    """`power_of_two_scale` in three operations on the bits of the numbers, for where NaN and infinity may stay.

    Of 0 and subnormal numbers it is 2^126 (2^1022 in float64), with which zero stays zero; of what is not finite, some
    power of two. Numbers from 2^126 on keep a part of their size, below 4.

    Example:
        >>> reciprocal_exponent(torch.tensor([3.0, 0.25])).tolist()
        [0.25, 2.0]
    """
    wide = largest.to(torch.float64 if largest.dtype == torch.float64 else torch.float32)
    bits, mantissa, bias = (torch.int64, 52, 1023) if wide.dtype == torch.float64 else (torch.int32, 23, 127)
    # The exponent field E means 2^(E - bias), and numbers in [1/2, 1) have bias - 1.
    exponent = (wide.view(bits) & (2 * bias + 1) << mantissa).clamp_max(2 * (bias - 1) << mantissa)
    return ((2 * bias - 1 << mantissa) - exponent).view(wide.dtype)


def attenuation(A: Tensor, floor: float | Tensor) -> Tensor:
    """min(1, ||A||_F / floor) of each matrix (*batch, m, n), (*batch, 1, 1), in float32 or float64.

    Exactly 1 from `floor` on, by which a direction is multiplied without a change; NaN carries over.

    Example:
        >>> attenuation(torch.tensor([[3.0, 4.0]]), 10.0).item()
        0.5
    """
    wide = torch.promote_types(A.dtype, torch.float32)
    return (torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True, dtype=wide) / floor).clamp_max(1.0)
