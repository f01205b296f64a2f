"""How long a step is along the direction of the geometry."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

__all__ = ["SCALES", "step_scale"]

# Each maps (dual norm of shape (k,), rows m, columns n) to the factor on the direction.
SCALES: dict[str, Callable[[Tensor, int, int], Tensor | float]] = {
    # PolarGrad: the nuclear norm, so that the step vanishes with the gradient.
    "nuclear": lambda nu, m, n: nu,
    # The mean singular value: nuclear norm over the full rank.
    "mean-singular": lambda nu, m, n: nu / min(m, n),
    # Matrix sign descent.
    "none": lambda nu, m, n: 1.0,
    # Muon (Jordan et al. 2024), torch's "original".
    "spectral": lambda nu, m, n: math.sqrt(max(1.0, m / n)),
    # Root mean square of an AdamW step (Moonlight, arXiv 2502.16982), torch's "match_rms_adamw".
    "rms": lambda nu, m, n: 0.2 * math.sqrt(max(m, n)),
}


def step_scale(scale: str, dual_norm: Tensor, m: int, n: int) -> Tensor | float:
    """The factor on each direction of a batch of k matrices of m x n.

    Args:
        scale: a key of `SCALES`.
        dual_norm: (k,), <M, U> of each matrix.
        m: rows.
        n: columns.

    Returns:
        A tensor (k,) or one number for all.

    Example:
        >>> import torch
        >>> step_scale("spectral", torch.ones(1), 4, 1)
        2.0
    """
    return SCALES[scale](dual_norm, m, n)
