"""The result of a polar decomposition: factors, a status for each matrix, and metrics of the iteration."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["PolarResult", "Status"]


class Status(IntEnum):
    """How the computation of one matrix of the batch ended; `advice` says what to do about it."""

    CONVERGED = 0
    STEP_LIMIT = 1
    NON_FINITE = 2
    BREAKDOWN = 3

    @property
    def advice(self) -> str:
        """What to do about it, in a sentence for the user."""
        return {
            Status.CONVERGED: "The unitary factor reached the accuracy of its method.",
            Status.STEP_LIMIT: "The steps ended before U^H U was a projector to the method's tolerance: the matrix is "
            "singular or more ill-conditioned than the method reaches, or max_steps is small. Raise max_steps, or use "
            "method='auto' with accuracy='full'; stats holds 'orthogonality' as measured and 'bounds' as known.",
            Status.NON_FINITE: "The matrix holds NaN or infinity: its factors are NaN. Correct the input.",
            Status.BREAKDOWN: "The iteration met a singular system: use method='qdwh' or 'svd'.",
        }[self]


class PolarResult(NamedTuple):
    """The polar decomposition A = U H or A = H U of a batch of matrices.

    Attributes:
        unitary: U, of A's shape (*batch, m, n) and dtype: orthonormal columns (m >= n) or rows (m < n).
        hermitian: H, Hermitian positive semidefinite (*batch, k, k) with k = n for A = U H and k = m for A = H U, or
            None where the caller asked for `hermitian=False`.
        status: int8 tensor of shape batch holding `Status` values (on A's device: reading it synchronizes).
        stats: "method" (the name of what ran), "steps", "bounds" (the interval that the singular values of U are known
            to lie in before anything is measured, for those of A above the method's `sigma_floor`; None if unknown),
            and two tensors of shape batch: "orthogonality", ||G - I||_F / sqrt(k) with G = U^H U, or
            ||G^2 - G||_F / sqrt(k) where U is the partial isometry of a rank-deficient A; and "backward_error",
            ||A - U H||_F / ||A||_F.
    """

    unitary: Tensor
    hermitian: Tensor | None
    status: Tensor
    stats: dict[str, Any]
