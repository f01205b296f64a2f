"""The precision of the engine's arithmetic: which dtype works for which, and contexts that must not lower it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

__all__ = ["HALF", "at_least_single", "double_precision", "is_lowered", "stated_precision"]

HALF = (torch.float16, torch.bfloat16)


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The dtype that computes for `dtype`: float32 for half precision, else itself.

    Example:
        >>> at_least_single(torch.bfloat16)
        torch.float32
    """
    return torch.float32 if dtype in HALF else dtype


def double_precision(dtype: torch.dtype) -> torch.dtype:
    """The 64-bit dtype that is real or complex as `dtype` is.

    Example:
        >>> double_precision(torch.complex64)
        torch.complex128
    """
    return torch.complex128 if dtype.is_complex else torch.float64


def _backend(device_type: str) -> str:
    return "mkldnn" if device_type == "cpu" else "cuda"


def is_lowered(device_type: str) -> bool:
    """Whether the surroundings make float32 products on such a device less precise than float32: autocast, TF32.

    A compiled step cannot change the process-wide setting of float32 products and has to take it as it is.
    """
    if device_type == "meta":
        return False
    if torch.is_autocast_enabled(device_type):
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._get_fp32_precision_getter(_backend(device_type), "matmul") not in ("none", "ieee")


@contextmanager
def _products_in(backend: str, precision: str) -> Iterator[None]:
    """Have float32 products of a backend in "ieee" or "tf32" within the block."""
    get, set_ = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    before = get(backend, "matmul")
    set_(backend, "matmul", precision)
    try:
        yield
    finally:
        # What was inherited from a wider setting is inherited again.
        set_(backend, "matmul", "none")
        if get(backend, "matmul") != before:
            set_(backend, "matmul", before)


def tf32_products() -> AbstractContextManager[None]:
    """Context in which float32 products on an NVIDIA GPU multiply in TF32; not those of this package."""
    return _products_in("cuda", "tf32")


@contextmanager
def stated_precision(device_type: str) -> Iterator[None]:
    """Context in which products are computed in the dtype of their operands, whatever surrounds it.

    It turns off autocast for the device, and the use of TF32 or bfloat16 in float32 products, which is a setting of the
    process: other threads see it for so long.
    """
    if not is_lowered(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        if torch.compiler.is_compiling():
            yield
            return
        with _products_in(_backend(device_type), "ieee"):
            yield
