"""What the tests of the shared path are run over."""

import math

import torch

from polargrad.linalg import (
    QDWH,
    Newton,
    NewtonSchulz,
    PolarExpress,
    PreconditionedNewtonSchulz,
    ZoloPD,
    available_methods,
    resolve_method,
)

METHODS = available_methods()
FULL = ["svd", "auto", "qdwh"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
REAL = [torch.float32, torch.float64]

# Methods that stop after a few steps, some of them far from a polar factor.
LIMITED = [
    *(QDWH(max_steps=k) for k in (1, 2, 3)),
    *(ZoloPD(max_steps=k) for k in (1, 2)),
    ZoloPD(degree=1, max_steps=1),
    *(Newton(max_steps=k) for k in (1, 2, 4, 9)),
    *(NewtonSchulz(max_steps=k, dtype=None) for k in (1, 3, 10)),
    NewtonSchulz.cubic(4),
    *(PolarExpress(max_steps=k) for k in (1, 2, 4)),
    *(PreconditionedNewtonSchulz(max_steps=k) for k in (1, 5, 15)),
]


def well_conditioned(*shape, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    A = torch.randn(shape, dtype=dtype)
    k = min(shape[-2:])
    return A + 2 * math.sqrt(k) * torch.eye(*shape[-2:], dtype=dtype)


def same_to(method):
    """c of assert_close for one matrix computed in two orders of summation: coarse methods work in half precision."""
    return 1e3 if resolve_method(method).tolerance(torch.float64, 1) < 1e-6 else 1e14
