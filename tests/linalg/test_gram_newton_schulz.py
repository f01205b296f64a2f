"""Gram Newton-Schulz: the same factor as Newton-Schulz, by way of the Gram matrix, and stable by its restarts."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polargrad.linalg import GramNewtonSchulz, NewtonSchulz, Status, polar, polar_factor
from polargrad.linalg.coefficients import CUBIC, MUON_QUINTIC
from tests.assertions import assert_close
from tests.matrices import GALLERY, make, with_singular_values


@pytest.mark.parametrize("shape", [(40, 10), (10, 40), (12, 12), (5, 1), (2, 30, 8)])
@pytest.mark.parametrize("restarts", [(), (1,), (2, 4), None])
@pytest.mark.parametrize("rows", [MUON_QUINTIC, CUBIC])
def test_in_double_precision_it_is_newton_schulz(shape, restarts, rows):
    torch.manual_seed(0)
    A = torch.randn(shape, dtype=torch.complex128)
    ours = polar_factor(A, GramNewtonSchulz(rows, 5, restarts, dtype=None))
    assert_close(ours, polar_factor(A, NewtonSchulz(rows, 5, dtype=None)), c=1e4)


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_restarts_keep_the_gallery_within_the_class(dtype):
    """Among them powers of two, on which three bfloat16 steps without a restart reach a norm of 10."""
    method = GramNewtonSchulz(dtype=dtype)
    for name in GALLERY:
        for m, n, seed in ((5, 5, 70), (5, 5, 11), (40, 8, 0), (33, 33, 0)):
            U = polar_factor(make(name, m, n, seed=seed), method).double()
            assert float(torch.linalg.matrix_norm(U, 2)) < 1.25, (name, m, n, seed)


def test_the_gallery_notices_missing_restarts():
    method = GramNewtonSchulz(restarts=(), dtype="bfloat16")
    tops = [
        torch.linalg.matrix_norm(polar_factor(make(name, 33, 33), method).double().nan_to_num(9.0)) for name in GALLERY
    ]
    assert max(tops) > 10


def test_polar_express_rows_reach_full_float32_accuracy():
    A = with_singular_values(64, 16, torch.logspace(0, -2, 16, dtype=torch.float64)).float()
    result = polar(A, GramNewtonSchulz.polar_express())
    assert result.status == Status.CONVERGED
    assert float((torch.linalg.svdvals(result.unitary) - 1).abs().max()) < 4e-6


def test_a_step_touches_the_tall_matrix_only_at_restarts():
    """Three Gram matrices and three products for 5 steps with restarts after 2 and 4; Newton-Schulz takes 5 and 5."""

    class CountTall(TorchDispatchMode):
        tall = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
                self.tall += any(isinstance(x, torch.Tensor) and 512 in x.shape for x in args)
            return func(*args, **(kwargs or {}))

    A = torch.randn(1, 512, 16)
    for method, expected in ((GramNewtonSchulz(dtype=None, restarts=(2, 4)), 6), (NewtonSchulz(dtype=None), 10)):
        with CountTall() as count:
            method.iterate(A)
        assert count.tall == expected


@pytest.mark.parametrize("restarts", [(0,), (3, 2), (2, 2), (-1,), ("a",)])
def test_restarts_are_checked(restarts):
    with pytest.raises((ValueError, TypeError), match=r"restarts|not supported"):
        GramNewtonSchulz(restarts=restarts)


def test_other_options_are_checked():
    with pytest.raises(ValueError, match="max_steps"):
        GramNewtonSchulz(max_steps=0)
    with pytest.raises(ValueError, match="dtype"):
        GramNewtonSchulz(dtype="int8")
    with pytest.raises(ValueError, match="coefficients"):
        GramNewtonSchulz(())
