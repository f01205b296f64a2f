"""Two lines of the step as one pass over memory each, by Triton on a GPU; `update.py` has their plain twins.

Momentum reads G and M and writes N, and once more M itself when the direction is known; the update reads D and W and
writes W. In torch's own operations they take fifteen and eleven passes. Tensors of one shape are found through tables
of their addresses, so that one launch serves them all; a table is kept on the device for as long as the addresses stay,
which they do while a CUDA graph is recorded.
"""

# pyright: reportOptionalMemberAccess=false, reportIndexIssue=false, reportInvalidTypeForm=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:  # as in a CPU build of torch
    triton = tl = None

__all__ = ["can_fuse", "momentum", "update"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 2048
# The most tables of addresses that are kept.
_TABLES = 4096
_tables: dict[tuple[object, ...], Tensor] = {}


if triton is not None:

    @triton.jit
    def _momentum(
        G_table, M_table, N, keep, numel, beta,
        IN_PLACE: tl.constexpr, FLUSH: tl.constexpr, HEAVY: tl.constexpr,
        NESTEROV: tl.constexpr, G_TYPE: tl.constexpr, M_TYPE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """N = beta M + (1 - beta) G, or beta M + G, with Nesterov the same of G and that; in place M <- that."""
        p = tl.program_id(1).to(tl.int64)
        G = tl.load(G_table + p).to(tl.pointer_type(G_TYPE))
        M = tl.load(M_table + p).to(tl.pointer_type(M_TYPE))
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < numel
        steps = tl.load(keep + p) != 0
        m = tl.load(M + i, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(G + i, mask=inside, other=0.0).to(tl.float32)
        g = tl.where(steps, g, 0.0)
        if HEAVY:
            new = beta * m + g
        else:
            new = m + (1.0 - beta) * (g - m)
        if FLUSH:  # `_without_stall`
            stalls = (new.to(tl.float16).to(tl.float32) == m) & (g.to(tl.float16).to(tl.float32) == 0.0)
            new = tl.where(stalls, 0.0, new)
        if NESTEROV:
            new = g + beta * new if HEAVY else new + (1.0 - beta) * (g - new)
        else:
            new = tl.where(steps, new, m)
        tl.store((M if IN_PLACE else N + p * numel) + i, new.to(M_TYPE), mask=inside)

    @triton.jit
    def _update(
        W_table, D, length, decay, numel, sign,
        CAUTIOUS: tl.constexpr, W_TYPE: tl.constexpr, D_TYPE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """W <- (1 - decay) W - sign length D, where length or decay is not zero."""
        p = tl.program_id(1).to(tl.int64)
        W = tl.load(W_table + p).to(tl.pointer_type(W_TYPE))
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < numel
        s = tl.load(length + p)
        r = tl.load(decay + p)
        steps = (s != 0.0) | (r != 0.0)
        w = tl.load(W + i, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(D + p * numel + i, mask=inside, other=0.0).to(tl.float32)
        kept = 1.0 - r
        if CAUTIOUS:
            kept = tl.where(sign * d * w >= 0.0, kept, 1.0)
        new = (kept * w).to(W_TYPE).to(tl.float32) - sign * s * d
        tl.store(W + i, tl.where(steps, new, w).to(W_TYPE), mask=inside)


def can_fuse(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels take these tensors: on a GPU with Triton, contiguous, of at most 32 bits, not traced."""
    first = tensors[0]
    if first.device.type != "cuda" or isinstance(first, FakeTensor) or torch.compiler.is_compiling():
        return False
    if torch.version.hip is not None or triton is None:
        return False
    return all(tensor.dtype in _DTYPES and tensor.is_contiguous() for tensor in tensors)


def _table(tensors: Sequence[Tensor]) -> Tensor:
    """The addresses of tensors, on their device."""
    device = tensors[0].device
    key = (device, *(tensor.data_ptr() for tensor in tensors))
    if key not in _tables:
        if len(_tables) >= _TABLES:
            _tables.clear()
        addresses = torch.tensor(key[1:], dtype=torch.int64)
        _tables[key] = addresses.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else addresses
    return _tables[key]


def _type(dtype: torch.dtype) -> Any:
    assert tl is not None
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def _grid(numel: int, count: int) -> tuple[int, int]:
    return (-(-numel // _BLOCK), count)


def momentum(
    gradients: Sequence[Tensor], buffers: Sequence[Tensor], keep: Tensor, *, beta: float, heavy: bool, nesterov: bool,
    in_place: bool = False,
) -> Tensor:  # fmt: skip
    """Step 1 for P tensors of one shape that `can_fuse`.

    Args:
        gradients: G, P of them.
        buffers: M, of the same shape.
        keep: bool (P,); where False, the new M is M, and N with Nesterov is arbitrary and finite.
        beta: the momentum.
        heavy: beta M + G instead of beta M + (1 - beta) G.
        nesterov: look ahead by one step.
        in_place: write the result into M instead.

    Returns:
        The new M, or with Nesterov N: (P, *shape), in the dtype of M; in place, the first of M.
    """
    first = buffers[0]
    N = first if in_place else torch.empty((len(buffers), *first.shape), dtype=first.dtype, device=first.device)
    with torch.cuda.device_of(first):
        _momentum[_grid(first.numel(), len(buffers))](
            _table(gradients), _table(buffers), N, keep, first.numel(), beta,
            IN_PLACE=in_place, FLUSH=first.dtype == torch.float16, HEAVY=heavy, NESTEROV=nesterov,
            G_TYPE=_type(gradients[0].dtype), M_TYPE=_type(first.dtype), BLOCK=_BLOCK,
        )  # fmt: skip
    return N


def update(weights: Sequence[Tensor], D: Tensor, length: Tensor, decay: Tensor, *, cautious: bool, sign: float) -> None:
    """Steps 5 and 6 for P weights of one shape that `can_fuse`, in place.

    Args:
        weights: W, P of them.
        D: (P, *shape), contiguous.
        length: (P,), float32; a weight with zero length and zero decay stays bit for bit, whatever D holds.
        decay: (P,), float32, lr * weight_decay.
        cautious: decay only entries that the step moves towards zero.
        sign: -1.0 to ascend.
    """
    first = weights[0]
    with torch.cuda.device_of(first):
        _update[_grid(first.numel(), len(weights))](
            _table(weights), D, length, decay, first.numel(), sign,
            CAUTIOUS=cautious, W_TYPE=_type(first.dtype), D_TYPE=_type(D.dtype), BLOCK=_BLOCK,
        )  # fmt: skip
