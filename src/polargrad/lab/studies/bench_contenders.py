"""Who takes part in the polar benchmark: every method of ours, and what stands beside them where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor

from polargrad.linalg import available_methods, polar_factor

__all__ = ["Contender", "contenders", "textbook_qdwh"]


@dataclass(frozen=True)
class Contender:
    """A way to the unitary factor.

    Args:
        name: in tables and plots.
        run: A -> U.
        ours: a method of this library, rather than a peer or a baseline.
        allocates_in_torch: whether torch sees its memory.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    ours: bool = True
    allocates_in_torch: bool = True


def contenders() -> dict[str, Contender]:
    """All of them by name: ours first."""
    ours = [
        *(Contender(name, _method(name)) for name in available_methods()),
        *(Contender(f"auto {a:g}", lambda A, a=a: polar_factor(A, accuracy=a)) for a in (1e-1, 1e-3)),
        Contender("qdwh 2 steps", lambda A: polar_factor(A, "qdwh", max_steps=2)),
        Contender("polar-express 5 steps", lambda A: polar_factor(A, "polar-express", max_steps=5)),
    ]
    beside = [
        Contender("torch SVD, one by one", _svd_loop, ours=False),
        Contender("textbook QDWH", textbook_qdwh, ours=False),
        Contender("torch.optim Newton-Schulz", _torch_muon, ours=False),
    ]
    if util.find_spec("scipy"):
        beside.append(Contender("scipy.linalg.polar", _scipy, ours=False, allocates_in_torch=False))
    if util.find_spec("jax"):
        beside.append(Contender("jax.scipy polar", _jax, ours=False, allocates_in_torch=False))
    return {contender.name: contender for contender in (*ours, *beside)}


def _method(name: str) -> Callable[[Tensor], Tensor]:
    return lambda A: polar_factor(A, name)


def _each(A: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(A) if A.ndim == 2 else torch.stack([function(a) for a in A.flatten(0, -3)]).reshape(A.shape)


def _svd_loop(A: Tensor) -> Tensor:
    def factor(a: Tensor) -> Tensor:
        P, _, Qh = torch.linalg.svd(a, full_matrices=False)
        return P @ Qh

    return _each(A, factor)


def textbook_qdwh(A: Tensor) -> Tensor:
    """QDWH as in the paper that proposed it: a QR factorization of [sqrt(c) X; I] in every step, no reduction.

    Args:
        A: (*batch, m, n) real.

    Source: Nakatsukasa, Bai, Gygi (2010), eqs. (3.10) and (4.1).

    Example:
        >>> U = textbook_qdwh(torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
        >>> U.round().tolist()
        [[1.0, 0.0], [0.0, -1.0]]
    """
    wide = A.shape[-2] < A.shape[-1]
    X = A.mT if wide else A
    m, n = X.shape[-2:]
    X = X / torch.linalg.matrix_norm(X, keepdim=True)
    eps = torch.finfo(X.dtype).eps
    eye = torch.eye(n, dtype=X.dtype, device=X.device).expand(*X.shape[:-2], n, n)
    low = eps
    while 1.0 - low > 10 * eps:
        d = (4.0 * (1.0 - low**2) / low**4) ** (1 / 3)
        a = math.sqrt(1 + d) + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - low**2) / (low**2 * math.sqrt(1 + d)))
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        Q = torch.linalg.qr(torch.cat([math.sqrt(c) * X, eye], dim=-2)).Q
        X = (b / c) * X + (a - b / c) / math.sqrt(c) * (Q[..., :m, :] @ Q[..., m:, :].mT)
        low = min(low * (a + b * low**2) / (1 + c * low**2), 1.0)
    return X.mT if wide else X


def _torch_muon(A: Tensor) -> Tensor:
    """The iteration inside torch.optim.Muon; a private function, so it may be gone."""
    from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, _zeropower_via_newtonschulz

    return _each(A, lambda a: _zeropower_via_newtonschulz(a, (DEFAULT_A, DEFAULT_B, DEFAULT_C), 5, 1e-7)).to(A.dtype)


def _scipy(A: Tensor) -> Tensor:
    from scipy import linalg

    return _each(A, lambda a: torch.from_numpy(linalg.polar(a.cpu().numpy())[0]))


@cache
def _jax_polar() -> Any:
    jax = import_module("jax")
    return jax.jit(lambda a: import_module("jax.scipy.linalg").polar(a, method="qdwh")[0])


def _jax(A: Tensor) -> Tensor:
    as_array = import_module("jax.numpy").asarray
    return _each(A, lambda a: torch.from_numpy(_jax_polar()(as_array(a.cpu().numpy())).__array__().copy()))
