import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from polargrad.optim import clip_gradients


def gradients():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((4, 3), (5,), (2, 2))]


def parameters():
    made = [nn.Parameter(torch.zeros_like(g)) for g in gradients()]
    for p, g in zip(made, gradients(), strict=True):
        p.grad = g.clone()
    return made


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_plain_gradients_are_clipped_as_torch_does(limit):
    mine, theirs = parameters(), parameters()
    norm = clip_gradients([*mine, nn.Parameter(torch.zeros(3))], limit)
    expected = torch.nn.utils.clip_grad_norm_(theirs, limit)
    assert norm == pytest.approx(float(expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_plain_gradients_and_dtensors_are_clipped_together(mesh):
    expected = parameters()
    torch.nn.utils.clip_grad_norm_(expected, 0.5)
    mixed = []
    for p, cut in zip(parameters(), (True, False, True), strict=True):
        if cut:
            whole = p.grad
            p = nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)]))
            p.grad = distribute_tensor(whole, mesh, [Shard(0)])
        mixed.append(p)
    clip_gradients(mixed, 0.5)
    for one, other in zip(mixed, expected, strict=True):
        got = one.grad.full_tensor() if hasattr(one.grad, "full_tensor") else one.grad
        torch.testing.assert_close(got, other.grad)


def test_without_gradients_the_norm_is_zero():
    assert clip_gradients([nn.Parameter(torch.ones(2))], 1.0) == 0.0


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_one_gradient_that_is_not_finite_leaves_the_others(bad):
    mine, good = parameters(), parameters()[:2]
    mine[2].grad[0, 0] = bad
    norm = clip_gradients(mine, 0.5)
    expected = torch.nn.utils.clip_grad_norm_(good, 0.5)
    assert norm == pytest.approx(float(expected))
    for one, other in zip(mine, good, strict=False):
        torch.testing.assert_close(one.grad, other.grad)
    assert not mine[2].grad.isfinite().all()  # which the optimizer sees, and skips
    theirs = parameters()
    theirs[2].grad[0, 0] = torch.inf
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert not theirs[0].grad.any()  # the control


def test_the_norm_of_half_precision_does_not_overflow():
    p = nn.Parameter(torch.zeros(400, dtype=torch.float16))
    p.grad = torch.full_like(p, 60000.0)
    assert clip_gradients([p], 1.0) == pytest.approx(60000.0 * 20)
    assert p.grad.float().norm() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e15, 1e25, 0.9], ids=["squares fit", "squares overflow", "the largest number"])
def test_no_finite_gradient_is_too_large_to_be_clipped(dtype, size):
    largest = torch.finfo(dtype).max
    size = size * largest if size < 1 else size * (1e150 if dtype == torch.float64 else 1.0)
    p, q, empty = (nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (8, 4, 0))
    p.grad, q.grad = torch.full_like(p, size), torch.full_like(q, -size)
    empty.grad = torch.zeros_like(empty)
    norm = clip_gradients([p, q, empty], 3.0)
    if size < 0.1 * largest:
        assert float(norm) == pytest.approx(size * 12**0.5, rel=1e-2)
    clipped = torch.cat([p.grad, q.grad]).double()
    torch.testing.assert_close(clipped / clipped[0], torch.tensor([1.0] * 8 + [-1.0] * 4).double())
    assert clipped.norm() == pytest.approx(3.0, rel=1e-2)


@pytest.mark.parametrize("limit", [0.0, -1.0, torch.nan, torch.inf, True, "1"], ids=str)
def test_a_limit_that_is_none_is_refused(limit):
    made = parameters()
    with pytest.raises(ValueError, match="limit must be a positive, finite number, got "):
        clip_gradients(made, limit)
    assert all(torch.equal(p.grad, g) for p, g in zip(made, gradients(), strict=True))
