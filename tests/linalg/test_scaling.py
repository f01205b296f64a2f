import math

import pytest
import torch

from polargrad.linalg.scaling import largest_entry, power_of_two_scale, reciprocal_exponent


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_scale_is_a_power_of_two_that_brings_every_normal_number_near_one(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([info.tiny, 0.75, 1.0, 3.0, info.max / 4], dtype=dtype)
    scale = power_of_two_scale(x)
    assert (torch.frexp(scale).mantissa == 0.5).all()
    assert ((x.double() * scale.double() >= 0.5) & (x.double() * scale.double() < 1.0)).all()


def test_what_has_no_scale_keeps_one():
    assert power_of_two_scale(torch.tensor([0.0, math.nan, math.inf, -math.inf])).tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_a_scale_nor_its_reciprocal_leaves_the_range(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([info.tiny * info.eps, info.max], dtype=dtype)
    scale = power_of_two_scale(x)
    assert scale.isfinite().all()
    assert (1 / scale).isfinite().all()
    assert x[0] * scale[0] >= 2.0**-24 if dtype == torch.float32 else x[0] * scale[0] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_bits_of_a_number_give_the_same_scale(dtype):
    info = torch.finfo(dtype)
    numbers = torch.tensor([info.tiny, 1.0, info.max / 4, -3.0], dtype=torch.float64)
    x = torch.cat([numbers, torch.logspace(-4, 4, 99, dtype=torch.float64)]).to(dtype)
    assert torch.equal(reciprocal_exponent(x), torch.ldexp(torch.ones_like(power_of_two_scale(x)), -torch.frexp(x)[1]))
    ends = torch.tensor([0.0, info.tiny * info.eps, info.max], dtype=dtype)
    scale = reciprocal_exponent(ends)
    assert (scale.isfinite() & (1 / scale).isfinite() & (torch.frexp(scale).mantissa == 0.5)).all()
    assert 0.0 < ends[1].to(scale.dtype) * scale[1] < 1.0
    assert 0.5 <= ends[2].to(scale.dtype) * scale[2] < 4.0
    assert (torch.tensor([math.inf, math.nan], dtype=dtype) * scale[0]).isfinite().logical_not().all()


def test_the_largest_entry_of_a_complex_matrix_does_not_overflow():
    A = torch.full((2, 3, 2), complex(3e38, -3.2e38), dtype=torch.complex64)
    assert largest_entry(A).shape == (2, 1, 1)
    assert largest_entry(A).flatten().tolist() == [torch.tensor(3.2e38).item()] * 2
    A[0, 1, 1] = complex(0.0, math.nan)
    assert largest_entry(A).isnan().flatten().tolist() == [True, False]
