"""The operations that methods declare, against those that torch counts, and against what must hold of any count."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from polargrad.linalg import (
    QDWH,
    SVD,
    Auto,
    GramNewtonSchulz,
    Newton,
    NewtonSchulz,
    PolarExpress,
    PolarMethod,
    PreconditionedNewtonSchulz,
    ZoloPD,
    available_methods,
    operations,
    polar_factor,
    resolve_method,
)
from polargrad.linalg.double_gram import DoubleGram

PRODUCTS_ONLY = [
    NewtonSchulz(),
    NewtonSchulz.cubic(7),
    NewtonSchulz.cans(1e-3, 6, degree=3),
    PolarExpress(),
    PolarExpress(3, dtype="bfloat16"),
    PreconditionedNewtonSchulz(),
    PreconditionedNewtonSchulz(9),
    GramNewtonSchulz(),
    GramNewtonSchulz(dtype=None),
    GramNewtonSchulz(restarts=(3,)),
    GramNewtonSchulz.polar_express(max_steps=8),
]
EVERY = [*map(resolve_method, available_methods()), DoubleGram(), QDWH(max_steps=2), ZoloPD(degree=2), Newton(3)]
DTYPES = [torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def counted(A, method):
    with FlopCounterMode(display=False) as counter:
        polar_factor(A, method)
    return counter.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(40, 40), (160, 40), (40, 160), (3, 96, 64)], ids=str)
@pytest.mark.parametrize("method", PRODUCTS_ONLY, ids=str)
def test_products_are_as_many_as_torch_counts(method, shape, dtype):
    m, n = max(shape[-2:]), min(shape[-2:])
    declared = math.prod(shape[:-2]) * method.operations(m, n, dtype)
    assert declared == pytest.approx(counted(torch.randn(shape, dtype=dtype), method), rel=0.2)


def test_the_comparison_notices_a_missing_product():
    A = torch.randn(40, 40)
    assert NewtonSchulz.cubic(5).operations(40, 40) != pytest.approx(counted(A, NewtonSchulz()), rel=0.2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", EVERY, ids=str)
def test_more_rows_or_columns_are_more_operations(method, dtype):
    if isinstance(method, DoubleGram) and method.working_dtype(dtype) not in (torch.float32, torch.complex64):
        pytest.skip("DoubleGram works in single precision")
    square = method.operations(100, 100, dtype)
    assert 0 < square < method.operations(101, 101, dtype)
    assert square < method.operations(200, 100, dtype) < method.operations(210, 100, dtype)
    assert method.operations(100, 50, dtype) < square
    # Every algorithm is of third order: twice the size is eight times the work. Auto may change the algorithm.
    if not isinstance(method, Auto):
        assert method.operations(400, 200, dtype) == pytest.approx(8 * method.operations(200, 100, dtype), rel=1e-9)


def test_more_steps_or_accuracy_are_more_operations():
    chains = [
        [QDWH(max_steps=1), QDWH(max_steps=2), QDWH(max_steps=3)],
        [Newton(1), Newton(3), Newton()],
        [ZoloPD(degree=1, max_steps=1), ZoloPD(degree=2, max_steps=1), ZoloPD(degree=2, max_steps=2), ZoloPD(degree=3)],
        [PolarExpress(4), PolarExpress(5), PolarExpress(8)],
    ]
    for chain in chains:
        for m, n in [(64, 64), (512, 64)]:
            counts = [method.operations(m, n) for method in chain]
            assert counts == sorted(set(counts)), chain
    for method in (QDWH(), ZoloPD(), PreconditionedNewtonSchulz()):
        assert method.operations(64, 64, torch.float32) < method.operations(64, 64, torch.float64)


def test_auto_declares_what_it_would_run():
    assert Auto().operations(1000, 3) == SVD().operations(1000, 3)
    assert Auto().operations(500, 500) == DoubleGram().operations(500, 500)
    assert Auto().operations(500, 500, torch.bfloat16) == DoubleGram().operations(500, 500)
    assert Auto(accuracy=0.3).operations(900, 300) == Auto(accuracy=0.3).explain((900, 300)).method.operations(900, 300)


def test_a_method_that_declares_nothing_counts_as_a_singular_value_decomposition():
    class Nothing(PolarMethod):
        name = "nothing"

        def iterate(self, X):
            raise NotImplementedError

    assert Nothing().operations(30, 20) == operations.svd(30, 20) + operations.product(30, 20)
