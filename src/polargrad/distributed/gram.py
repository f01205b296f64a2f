r"""Tall matrices whose rows are divided among ranks: rows stay where they are, only d x d matrices are summed.

X (m, d) = B T with orthonormal B, whose rows stay where those of X are, and a small T that every rank has. Then
U = B lmo(T), and <T, lmo(T)> and ||lmo(T)||_F are those of X, for the spectral norm with any polar method.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.distributed as dist
from torch import Tensor

from polargrad.distributed.communicator import Communicator
from polargrad.distributed.layout import Layout
from polargrad.linalg.kernels import gram, product
from polargrad.linalg.precision import at_least_single
from polargrad.linalg.scaling import power_of_two_scale
from polargrad.optim.execution import LMO, DirectionRequest, Directions, statistics_dtype

__all__ = ["directions_by_gram", "summed_gram"]

# Eigenvalues of a Gram matrix below this many roundings of its largest count as rounding.
_FLOOR = 4.0
# After the passes that lift small singular values, those below this are rounding.
_RESOLVED = 1e-3


def _local_gram(Y: Tensor) -> Tensor:
    """Y^T Y (d, d) in float64 of the local rows (rows, d); zero where there are none."""
    if len(Y) == 0:
        return torch.zeros(Y.shape[1], Y.shape[1], dtype=torch.float64, device=Y.device)
    return gram(Y[None], torch.float64)[0]


class _Rows:
    """The local rows of one X in the form X = Y R, with the factor R that was taken out of them so far."""

    def __init__(self, X: Tensor) -> None:
        self.Y = X
        self.R = torch.eye(X.shape[1], dtype=torch.float64, device=X.device)

    def take_out(self, Z: Tensor, T: Tensor) -> None:
        """Y <- Y Z and R <- T R, where Z T = I on the rows of Y, up to directions that are given up."""
        if len(self.Y):
            self.Y = product(self.Y[None], Z[None])[0]
        self.R = T @ self.R


def _lift(rows: _Rows, G: Tensor) -> None:
    """One pass that brings singular values to 1 down to about 1e-7 of the largest, and lifts the smaller ones.

    G = V L V^T, Y <- Y V D^{-1/2} with D = max(L, shift): the shift is what rounding leaves undetermined in G. It is
    the shifted Cholesky pass with eigenvectors, which cannot fail on a singular G.
    """
    values, V = torch.linalg.eigh(G)
    shift = _FLOOR * len(G) * torch.finfo(torch.float64).eps * values[-1:]
    root = torch.where(values > shift, values, torch.where(shift > 0, shift, 1.0)).sqrt()
    rows.take_out(V / root, root[:, None] * V.mT)


def _reveal(rows: _Rows, G: Tensor, cutoff: float) -> None:
    """Normalize the directions of Y with singular values above `cutoff` times the largest; the others go to 0."""
    values, V = torch.linalg.eigh(G)
    kept = values > cutoff**2 * values[-1:]
    root = torch.where(kept, values, 1.0).sqrt()
    rows.take_out(V * (kept / root), (kept * root)[:, None] * V.mT)


def _polish(rows: _Rows, G: Tensor) -> Tensor:
    """The factor Z (d, d) for which Y Z has orthonormal columns, where Y almost has; R becomes that of Y Z.

    G = S^T S with the zero columns of Y put to 1, which leaves them alone.
    """
    empty = G.diagonal() == 0
    S, _ = torch.linalg.cholesky_ex(G + torch.diag(empty.to(G.dtype)), upper=True)
    rows.R = S @ rows.R
    eye = torch.eye(len(G), dtype=G.dtype, device=G.device)
    return torch.linalg.solve_triangular(S, eye, upper=True)


def summed_gram(rows: list[_Rows], copies: int, communicator: Communicator) -> Tensor:
    """The Gram matrices (P, d, d) of all rows on all ranks: one all-reduce of P d^2 numbers in float64."""
    local = torch.stack([_local_gram(one.Y) for one in rows])
    return communicator.all_reduce(local)() / copies


def directions_by_gram(
    request: DirectionRequest, layout: Layout, lmo: LMO, communicator: Communicator
) -> Generator[None, None, Directions]:
    """The directions of matrices with rows (or, for wide ones, columns) that are divided among the ranks.

    In single precision and below, the float64 Gram matrix resolves all singular values that the input determines, so
    that two passes do: G = V L V^T gives B = X V L^{-1/2} over the eigenvalues above the cut-off 4 eps, and a Cholesky
    factor of B^T B makes B orthonormal. In double precision two passes before them lift the small singular values,
    which the first Gram matrix does not resolve, by up to 1e7 each.

    Every rank computes the same small factor from the same sums. Each pass sends one all-reduce of d^2 numbers.
    """
    tall = request.view.shape[0] >= request.view.shape[1]
    sources = [source if tall else source.mT for source in request.sources]
    dtype = sources[0].dtype
    work = at_least_single(dtype)
    largest = torch.stack([(X.abs().amax() if X.numel() else X.new_zeros(())).double() for X in sources])
    pending = communicator.all_reduce(largest, dist.ReduceOp.MAX)
    yield
    largest = pending()
    finite = largest.isfinite()
    scale = power_of_two_scale(largest)
    usable = torch.where(finite, scale, 0.0).to(work)
    rows = [_Rows(torch.nan_to_num(X.to(work)) * s) for X, s in zip(sources, usable, strict=True)]
    eps = torch.finfo(work).eps
    if work == torch.float64:
        for _ in range(2):
            for one, G in zip(rows, summed_gram(rows, layout.copies, communicator), strict=True):
                _lift(one, G)
    cutoff = _RESOLVED if work == torch.float64 else 4 * eps
    for one, G in zip(rows, summed_gram(rows, layout.copies, communicator), strict=True):
        _reveal(one, G, cutoff)
    last = [_polish(one, G) for one, G in zip(rows, summed_gram(rows, layout.copies, communicator), strict=True)]
    yield
    T = torch.stack([one.R for one in rows])
    answer = lmo(T if tall else T.mT, scale)
    answer = answer._replace(direction=answer.direction.to(T.dtype))
    small = answer.direction if tall else answer.direction.mT
    parts = [
        (product(one.Y[None], (Z @ D)[None])[0] if len(one.Y) else one.Y).to(dtype)
        for one, Z, D in zip(rows, last, small, strict=True)
    ]
    wide = statistics_dtype(dtype)
    nu = torch.where(finite, answer.dual_norm / scale, torch.nan).to(wide)
    lengths = answer.squared_length
    return Directions([part if tall else part.mT for part in parts], nu, None if lengths is None else lengths.to(wide))
