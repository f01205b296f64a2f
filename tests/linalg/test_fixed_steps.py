"""Methods whose steps are known before the run never read a number back from the device.

A tensor on the device "meta" has a shape and no values: whatever asks for one raises.
"""

import pytest
import torch

from polargrad.linalg import GramNewtonSchulz, Newton, NewtonSchulz, PolarExpress, PreconditionedNewtonSchulz, ZoloPD


@pytest.mark.parametrize(
    "method",
    [
        NewtonSchulz(),
        NewtonSchulz.cans(),
        PolarExpress(),
        PreconditionedNewtonSchulz(),
        GramNewtonSchulz(),
        ZoloPD(),
        ZoloPD(degree=2, lower_bound=1e-20),
        Newton(),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(3, 600, 300), (1, 5, 5), (2, 4, 1)])
def test_no_value_is_read(method, dtype, shape):
    X = torch.empty(shape, dtype=method.working_dtype(dtype), device="meta")
    assert method.iterate(X).unitary.shape == shape


def test_the_check_notices_a_value_that_is_read():
    with pytest.raises(RuntimeError, match="meta"):
        bool((torch.empty(3, device="meta") > 0).all())
