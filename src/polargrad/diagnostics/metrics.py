"""The anisotropy of a matrix, from its singular values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polargrad.linalg.precision import double_precision

__all__ = ["goes_by_gram", "matrix_metrics", "singular_values_by_gram"]


def matrix_metrics(G: Tensor) -> dict[str, float]:
    """The anisotropy of a matrix, from its singular values s_1 >= ... >= s_q in double precision.

    `condition_number = s_1 / s_q`, `nuclear_norm = sum s_i`, `stable_rank = sum s_i^2 / s_1^2`, and
    `alignment = sum s_i / (||G||_F sqrt(r))`, the cosine of the angle between G and its polar factor, with r the
    numerical rank: the number of `s_i > max(m, n) eps s_1`, eps of G's dtype.

    Off the CPU the singular values of a G in single or half precision are the square roots of the eigenvalues of its
    Gram matrix, since an SVD of a table of a vocabulary takes seconds there. What is below sqrt(max(m, n) eps) s_1, eps
    that of double precision, counts as 0 then, so that condition numbers beyond 2e6 (768 x 768) or 3e5 (50304 x 768)
    are inf.

    Args:
        G: (m, n), real or complex.

    Returns:
        The four metrics. Of a zero matrix the norm is 0 and the others are nan; of a singular one the condition number
        is inf; of one with a non-finite entry all are nan.

    Raises:
        ValueError: G is not a matrix.

    Example:
        >>> matrix_metrics(2.0 * torch.eye(3))
        {'condition_number': 1.0, 'nuclear_norm': 6.0, 'stable_rank': 3.0, 'alignment': 1.0}

    Source: arXiv 2505.21799 (gradient condition number and nuclear norm).
    """
    if G.ndim != 2 or 0 in G.shape:
        raise ValueError(f"matrix_metrics takes a matrix (m, n) with entries; got the shape {tuple(G.shape)}")
    if not bool(torch.isfinite(G).all()):
        return dict.fromkeys(("condition_number", "nuclear_norm", "stable_rank", "alignment"), math.nan)
    eps = torch.finfo(G.dtype).eps
    singular_values = singular_values_by_gram if goes_by_gram(G) else torch.linalg.svdvals
    s = singular_values(G.detach().to(double_precision(G.dtype))).cpu()
    largest, smallest = float(s[0]), float(s[-1])
    if largest == 0.0:
        return {"condition_number": math.nan, "nuclear_norm": 0.0, "stable_rank": math.nan, "alignment": math.nan}
    # Relative to s_1, so that neither tiny nor huge gradients under- or overflow when squared.
    t = s / largest
    rank = int((t > max(G.shape) * eps).sum())
    squares = float((t * t).sum())
    return {
        "condition_number": largest / smallest if smallest > 0.0 else math.inf,
        "nuclear_norm": float(s.sum()),
        "stable_rank": squares,
        "alignment": float(t.sum()) / math.sqrt(squares * rank),
    }


def goes_by_gram(G: Tensor) -> bool:
    """Whether the singular values of G come from its Gram matrix in double precision."""
    return G.device.type != "cpu" and torch.finfo(G.dtype).bits < 64


def singular_values_by_gram(G: Tensor) -> Tensor:
    """The singular values (q,) of G (m, n) in double precision, falling, from products and eigenvalues alone.

    Values below sqrt(max(m, n) eps) s_1, which rounding of the Gram matrix can hide, are 0. Squares of the entries must
    be in range, as they are for every finite matrix that was in single precision.

    Example:
        >>> singular_values_by_gram(torch.diag(torch.tensor([3.0, 1e-9, 4.0], dtype=torch.float64))).tolist()
        [4.0, 3.0, 0.0]
    """
    X = G if G.shape[0] >= G.shape[1] else G.mH
    squares = torch.linalg.eigvalsh(X.mH @ X).flip(0)
    return torch.where(squares > len(X) * torch.finfo(squares.dtype).eps * squares[0], squares, 0.0).sqrt()
