import math

import pytest
import torch
from torch import nn

import polargrad
from polargrad.lab.train import MatrixProbe
from polargrad.linalg.bounds import spectral_norm


def stepped(make, gradient):
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(12, 5))
    before = weight.detach().clone()
    optimizer = make([weight])
    probe = MatrixProbe({"w": weight}, {"w": "hidden"}, optimizer=optimizer)
    for _ in range(2):
        weight.grad = gradient.clone()
        before.copy_(weight.detach())
        (raw,) = probe()
        optimizer.step()
        (after,) = probe.stepped()
    return raw, after, weight, before, optimizer


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum_buffer"),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "exp_avg"),
        (lambda p: polargrad.PolarGrad(p, lr=0.1, momentum=0.9, method="svd", max_steps=None), "momentum_buffer"),
    ],
)
def test_the_metrics_are_those_of_gradient_momentum_weight_and_step(make, key):
    gradient = torch.randn(12, 5)
    raw, after, weight, before, optimizer = stepped(make, gradient)
    s = torch.linalg.svdvals(gradient.double())
    assert raw["nuclear_norm"] == pytest.approx(s.sum().item(), rel=1e-6)
    assert raw["condition_number"] == pytest.approx((s[0] / s[-1]).item(), rel=1e-5)
    momentum = torch.linalg.svdvals(optimizer.state[weight][key].double())
    assert after["momentum_nuclear_norm"] == pytest.approx(momentum.sum().item(), rel=1e-6)
    assert after["momentum_nuclear_norm"] != pytest.approx(raw["nuclear_norm"], rel=1e-3)
    assert after["update_rms"] == pytest.approx((weight - before).square().mean().sqrt().item(), rel=1e-5)
    assert after["weight_norm"] == pytest.approx(torch.linalg.matrix_norm(weight, 2).item(), rel=1e-2)
    assert (raw["role"], after["role"], after["parameter"]) == ("hidden", "hidden", "w")


def test_a_step_without_momentum_or_gradient_has_no_metrics_of_it():
    raw, after, *_ = stepped(lambda p: torch.optim.SGD(p, lr=0.1), torch.ones(12, 5))
    assert not [key for key in after if key.startswith("momentum")]
    assert raw["stable_rank"] == pytest.approx(1.0)
    weight = nn.Parameter(torch.ones(2, 2))
    probe = MatrixProbe({"w": weight}, optimizer=torch.optim.SGD([weight]))
    assert list(probe()) == list(probe.stepped()) == []


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (1, 9), (9, 1)])
def test_the_spectral_norm_is_approached_from_below(shape):
    W = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = torch.linalg.matrix_norm(W, 2).item()
    assert 0.98 * exact <= spectral_norm(W[None], steps=30).item() <= exact * (1 + 1e-12)


def test_a_zero_matrix_has_norm_zero():
    assert spectral_norm(torch.zeros(1, 3, 4)).item() == 0.0
    assert math.isnan(spectral_norm(torch.full((1, 3, 4), torch.nan)).item())


def test_a_probe_reports_raw_gradients():
    W, unused = torch.nn.Parameter(torch.zeros(3, 3)), torch.nn.Parameter(torch.zeros(2, 2))
    W.grad = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
    (entry,) = MatrixProbe({"w": W, "unused": unused}, {"w": "head"})()
    assert (entry["role"], entry["parameter"], entry["shape"]) == ("head", "w", [3, 3])
    assert entry["condition_number"] == pytest.approx(4.0)
    assert torch.equal(W.grad, torch.diag(torch.tensor([1.0, 2.0, 4.0])))


def test_a_probe_needs_matrices():
    with pytest.raises(ValueError, match="at least one"):
        MatrixProbe({})
    with pytest.raises(ValueError, match="'bias' has the shape"):
        MatrixProbe({"bias": torch.zeros(3)})
