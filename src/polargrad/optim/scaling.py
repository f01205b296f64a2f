"""How long a step is along the direction of the geometry: a factor of the shape times a factor of the gradient.

With nu = <M, U> the dual norm of a matrix (nuclear, for the spectral geometry), r = ||lmo||_F^2 for its shape
(min(m, n) for the spectral geometry) and N the sum of nu over the group::

    scale             scope="matrix"                   scope="group"
    nuclear           nu^alpha                         N^alpha
    mean-singular     nu / r                           N / (sum of r over the group)
    adaptive-nuclear  base * (nu / rms(nu))^alpha      base * (N / rms(N))^alpha
    none              1                                refused: there is no norm to share
    spectral          sqrt(max(1, m/n))                refused
    rms               0.2 sqrt(mn / r)                 refused

`rms` is the running root mean square, with bias correction, so that the first adaptive step is exactly `base`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polargrad.geometry import Geometry

__all__ = ["SCALES", "SHAPE_SCALES", "adaptive_ratio", "gradient_factor", "shape_factor"]

# Each maps (rows m, columns n, r = ||lmo||_F^2) to the factor on the direction.
SHAPE_SCALES: dict[str, Callable[[int, int, float], float]] = {
    # Matrix sign descent.
    "none": lambda m, n, r: 1.0,
    # Muon (Jordan et al. 2024), torch's "original".
    "spectral": lambda m, n, r: math.sqrt(max(1.0, m / n)),
    # Root mean square of an AdamW step (Moonlight, arXiv 2502.16982), torch's "match_rms_adamw": 0.2 sqrt(max(m, n)).
    "rms": lambda m, n, r: 0.2 * math.sqrt(m * n / r),
}
SCALES = ("nuclear", "mean-singular", "adaptive-nuclear", *SHAPE_SCALES)


def shape_factor(scale: str, base: str, geometry: Geometry, m: int, n: int) -> float:
    """The factor that a matrix (m, n) has whatever its gradient is.

    Args:
        scale: one of `SCALES`.
        base: for "adaptive-nuclear", the key of `SHAPE_SCALES` that it multiplies.
        geometry: gives r.
        m: rows.
        n: columns.

    Example:
        >>> from polargrad.geometry import Spectral
        >>> shape_factor("spectral", "rms", Spectral(), 4, 1)
        2.0
    """
    name = base if scale == "adaptive-nuclear" else scale
    return SHAPE_SCALES[name](m, n, geometry.squared_length(m, n)) if name in SHAPE_SCALES else 1.0


def gradient_factor(
    group: dict[str, Any],
    dual_norms: Tensor,
    lengths: Sequence[float],
    sizes: Sequence[int],
    states: Sequence[dict[str, Any]],
    counts: Sequence[int],
    keep: Tensor | None,
) -> Tensor | None:
    """The factor that each matrix has from its gradient, (K,), or None where the scale has none.

    Args:
        group: the options `scale`, `scope`, `alpha` and `scale_beta`.
        dual_norms: nu of all K matrices that are looked at together; with scope="group", of the whole group.
        lengths: r of the matrices of each batch.
        sizes: how many matrices each batch has; they add up to K.
        states: of each parameter, where the running root mean square lives.
        counts: how many of the K matrices each parameter has.
        keep: bool (K,), matrices that count; None for all.
    """
    scale = group["scale"]
    if scale in SHAPE_SCALES:
        return None
    nu = dual_norms if keep is None else torch.where(keep, dual_norms, 0.0)
    if group["scope"] == "group":
        nu = nu.sum().expand(len(nu))
        lengths = [sum(r * k for r, k in zip(lengths, sizes, strict=True))] * len(sizes)
    if scale == "mean-singular":
        parts = [part / r for part, r in zip(nu.split(list(sizes)), lengths, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    if scale == "adaptive-nuclear":
        nu = adaptive_ratio(nu, states, counts, group["scale_beta"], keep)
    return nu if group["alpha"] == 1.0 else nu.clamp_min(0.0) ** group["alpha"]


def adaptive_ratio(
    nu: Tensor, states: Sequence[dict[str, Any]], counts: Sequence[int], beta: float, keep: Tensor | None
) -> Tensor:
    """Nu / rms(nu), where mean square v <- beta v + (1 - beta) nu^2 and rms = sqrt(v / (1 - beta^t)).

    The states keep sqrt(v) and 1 - beta^t of each matrix, so that no square can overflow and matrices that were skipped
    have their own t. A matrix whose nu was always zero has the ratio zero.
    """
    for state, k in zip(states, counts, strict=True):
        if "dual_norm_rms" not in state:
            state["dual_norm_rms"] = nu.new_zeros(k)
            state["dual_norm_weight"] = nu.new_zeros(k)
    old = [[state[key] for state in states] for key in ("dual_norm_rms", "dual_norm_weight")]
    rms, weight = (torch.cat(parts) for parts in old)
    new_rms = torch.hypot(math.sqrt(beta) * rms, math.sqrt(1 - beta) * nu)
    new_weight = beta * weight + (1 - beta)
    if keep is not None:
        new_rms, new_weight = torch.where(keep, new_rms, rms), torch.where(keep, new_weight, weight)
    for tensors, values in zip(old, (new_rms, new_weight), strict=True):
        torch._foreach_copy_(tensors, list(values.split(list(counts))))
    return torch.where(new_rms > 0, nu * new_weight.sqrt() / new_rms, 0.0)
