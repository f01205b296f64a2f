"""Rows of directions normalized by their running mean square."""

import pytest
import torch

import polargrad
from polargrad.linalg.method import METHODS
from polargrad.optim.execution import Batch, Executor
from polargrad.optim.options import resolve
from polargrad.optim.update import GeometryLMO, normalize_rows
from tests.optim.test_trajectories import CLOSE, distance


def evened(direction, state, beta, keep=None):
    parameter = torch.nn.Parameter(torch.zeros_like(direction))
    group = polargrad.PolarGrad([parameter], normalize_rows=beta).param_groups[0]
    rule, executor = resolve(group), Executor()
    rule.add_state(parameter, state, executor)
    shape = rule.shape_of(direction.shape)
    batch = Batch([0], [parameter], [state], shape.view, masked=False, executor=executor, watched=False)
    batch.keep = keep
    (even,) = normalize_rows(batch, [direction], shape.lengths, beta)
    batch.write()
    return even


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("order", "scale"), [("momentum-first", "rms"), ("polar-first", "nuclear")])
def test_follows_the_reference(order, scale, capturable):
    ours = {"momentum_order": order, "scale": scale, "normalize_rows": 0.8}
    theirs = {"order": order, "scale": scale, "row_beta": 0.8}
    assert distance(ours, theirs, capturable=capturable) < CLOSE
    assert distance({**ours, "normalize_rows": 0.7}, theirs, capturable=capturable) > 1e-4
    assert distance({**ours, "normalize_rows": None}, theirs, capturable=capturable) > 1e-4


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e100])
def test_first_step_has_rows_as_the_average_one_of_a_polar_factor(scale):
    D = scale * torch.randn(3, 7, 4, dtype=torch.float64) * torch.logspace(-8, 0, 7, dtype=torch.float64)[:, None]
    even = evened(D, {}, 0.9)
    assert ((even.square().sum(2) / (4 / 7) - 1).abs() < 100 * torch.finfo(torch.float64).eps * 7).all()


def test_zero_rows_and_zero_matrices_stay_zero():
    D = torch.zeros(2, 3, 4)
    D[1, 0] = 1.0
    even = evened(D, {}, 0.9)
    assert torch.equal(even != 0, D != 0)
    assert (even[1, 0].square().sum() - 1).abs() < 1e-5


def test_matrices_that_do_not_step_keep_their_state():
    state: dict[str, torch.Tensor] = {}
    evened(torch.ones(2, 3, 4), state, 0.5)
    before = {key: value.clone() for key, value in state.items()}
    evened(torch.full((2, 3, 4), 2.0), state, 0.5, torch.tensor([True, False]))
    assert torch.equal(state["row_rms"][1], before["row_rms"][1])
    assert state["row_weight"][1] == before["row_weight"][1]
    assert (state["row_rms"][0] > before["row_rms"][0]).all()
    assert state["row_weight"][0] > before["row_weight"][0]


def test_rows_are_outputs_however_they_are_stored():
    G = torch.randn(6, 4, dtype=torch.float64) * torch.logspace(-3, 0, 6, dtype=torch.float64)[:, None]
    steps = []
    for layout, gradient in (("auto", G), ("transposed", G.mT.contiguous())):
        W = torch.nn.Parameter(torch.zeros_like(gradient))
        optimizer = polargrad.PolarGrad(
            [{"params": [W], "layout": layout}], lr=1.0, scale="rms", normalize_rows=0.9, method="svd"
        )
        W.grad = gradient
        optimizer.step()
        steps.append(W.detach() if layout == "auto" else W.detach().mT)
    assert (steps[0] - steps[1]).abs().max() < 100 * torch.finfo(torch.float64).eps
    lengths = steps[0].norm(dim=1)
    assert (lengths.max() - lengths.min()) < 1e-12


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range(beta):
    with pytest.raises(ValueError, match=r"normalize_rows must lie in \[0, 1\)"):
        polargrad.PolarGrad([torch.nn.Parameter(torch.zeros(2, 2))], normalize_rows=beta)


@pytest.mark.parametrize("scale", ["spectral", "nuclear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("order", ["momentum-first", "polar-first"])
def test_rows_without_a_gradient_stay_where_they_are(method, dtype, scale, order):
    """A decomposition leaves rounding errors in them, which must not become as long as the other rows."""
    torch.manual_seed(0)
    size = torch.logspace(-4, 0, 6, dtype=dtype)  # of the columns, so that errors are eps times 1e4
    W = torch.nn.Parameter(torch.randn(40, 6, dtype=dtype))
    seen = torch.arange(0, 40, 3)
    rest = torch.ones(40, dtype=torch.bool)
    rest[seen] = False
    before = W.detach().clone()
    optimizer = polargrad.PolarGrad(
        [W], lr=0.1, scale=scale, momentum=0.5, normalize_rows=0.95, method=method, momentum_order=order
    )
    for _ in range(5):
        W.grad = torch.zeros_like(W)
        W.grad[seen] = torch.randn(len(seen), 6, dtype=dtype) * size
        optimizer.step()
    assert torch.equal(W.detach()[rest], before[rest])
    assert ((W.detach() - before)[seen].abs().amax(1) > 1e-3).all()


def test_the_rounding_errors_of_a_decomposition_are_there(monkeypatch):
    made = GeometryLMO.__init__
    monkeypatch.setattr(GeometryLMO, "__init__", lambda *args, **given: made(*args, **{**given, "empty_rows": False}))
    monkeypatch.setattr("polargrad.optim.update._ROUNDING_OF_ROWS", 0)
    with pytest.raises(AssertionError):
        test_rows_without_a_gradient_stay_where_they_are("svd", torch.float32, "nuclear", "momentum-first")


@pytest.mark.parametrize("whitening", ["one-sided", "two-sided"])
def test_whitening_keeps_rows_without_a_gradient(whitening):
    torch.manual_seed(0)
    W = torch.nn.Parameter(torch.zeros(20, 30))
    optimizer = polargrad.PolarGrad([W], lr=0.1, momentum=0.5, normalize_rows=0.95, method="svd", whitening=whitening)
    for _ in range(3):
        W.grad = torch.randn(20, 30) * torch.logspace(-4, 0, 30)
        W.grad[::2] = 0.0
        optimizer.step()
    assert not W.detach()[::2].any()
    assert (W.detach()[1::2].abs().amax(1) > 1e-3).all()
