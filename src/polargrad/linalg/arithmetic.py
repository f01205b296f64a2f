"""Which arithmetic a device does fast: the one place where hardware decides a dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from polargrad.linalg.compilation import compile_constant

__all__ = ["Arithmetic", "arithmetic"]

# Compute capabilities of NVIDIA's data-centre GPUs whose float64 products run at the rate of their float32 ones, or at
# half of it: P100, V100, A100, H100/H200, B200. All others have 1/32 or 1/64 of it.
_FULL_RATE_DOUBLE = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


@dataclass(frozen=True)
class Arithmetic:
    """What a device multiplies fast.

    Attributes:
        device: name of the device.
        half: "bfloat16" where its products are faster than those of float32, else None.
        double: whether float64 products take at most about twice the time of float32 ones.
        reason: what was looked at, in a sentence.
    """

    device: str
    half: str | None
    double: bool
    reason: str

    def __str__(self) -> str:
        fast = ["float32", *filter(None, [self.half]), *(["float64"] if self.double else [])]
        return f"fast products in {', '.join(fast)}: {self.reason}"


def _of_cpu() -> Arithmetic:
    # oneDNN answers for the instruction set that it may use; it emulates bfloat16 on AVX-512 alone.
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    x86 = torch.cpu._is_avx2_supported()
    native = not x86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if supported and native:
        return Arithmetic("cpu", "bfloat16", True, "native bfloat16" if x86 else "bfloat16 kernels of oneDNN")
    return Arithmetic("cpu", None, True, "neither AVX-512 BF16 nor AMX")


def _of_cuda(device: torch.device) -> Arithmetic:
    name = torch.cuda.get_device_name(device)
    if torch.version.hip is not None:
        instinct = "gfx9" in getattr(torch.cuda.get_device_properties(device), "gcnArchName", "")
        return Arithmetic(name, "bfloat16", instinct, "AMD Instinct" if instinct else "an AMD GPU other than Instinct")
    capability = torch.cuda.get_device_capability(device)
    half = "bfloat16" if capability >= (8, 0) else None
    reason = f"compute capability {capability[0]}.{capability[1]}"
    return Arithmetic(name, half, capability in _FULL_RATE_DOUBLE, reason)


@compile_constant
def arithmetic(device: torch.device | str = "cpu") -> Arithmetic:
    """What `device` multiplies fast; found out once for each device.

    Args:
        device: a CPU, a CUDA or ROCm device; "cuda" without a GPU is taken for one of the data centre, so that shapes
            and operation counts can be planned on a machine that has none. Other devices are taken to be fast in
            bfloat16 alone.

    Example:
        >>> arithmetic("cpu").double
        True
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _of_cpu()
    if device.type == "cuda":
        if torch.cuda.is_available():
            return _of_cuda(device)
        return Arithmetic("cuda", "bfloat16", True, "no GPU here: as one of the data centre")
    if device.type == "meta":
        return Arithmetic("meta", "bfloat16", True, "no device at all")
    return Arithmetic(device.type, "bfloat16", False, "an unknown device")
