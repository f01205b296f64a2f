"""The one-sided update M (M^T M)^{-1/2} nu^alpha as an option of a group."""

import pytest
import torch

import polargrad


def _by_hand(M, alpha):
    """M (M^T M)^{-1/2} nu^alpha from an eigendecomposition, in the letters of the paper."""
    values, V = torch.linalg.eigh(M.T @ M)
    nu = values.sqrt().sum()
    return M @ (V / values.sqrt()) @ V.T * nu**alpha


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("geometry", "shape"), [("right-polar", (30, 5)), ("left-polar", (5, 30))])
def test_a_step_is_the_formula(geometry, shape, alpha):
    W = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    W.grad = torch.randn(shape, dtype=torch.float64)
    polargrad.PolarGrad([W], lr=0.5, momentum=0.0, geometry=geometry, scale={"name": "nuclear", "alpha": alpha}).step()
    M = W.grad if geometry == "right-polar" else W.grad.T
    D = _by_hand(M, alpha)
    expected = -0.5 * (D if geometry == "right-polar" else D.T)
    torch.testing.assert_close(W.detach(), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(W.detach(), expected * 1.01)


def test_it_follows_the_spectral_geometry_through_training():
    weights = [torch.nn.Parameter(torch.ones(40, 6, dtype=torch.float64)) for _ in range(2)]
    options = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    pair = [
        polargrad.PolarGrad([weights[0]], geometry="right-polar", **options),
        polargrad.PolarGrad([weights[1]], geometry="spectral", method="svd", **options),
    ]
    for _ in range(5):
        G = torch.randn(40, 6, dtype=torch.float64)
        for W, optimizer in zip(weights, pair, strict=True):
            W.grad = G.clone()
            optimizer.step()
    torch.testing.assert_close(weights[0].detach(), weights[1].detach(), rtol=1e-10, atol=1e-10)


def test_the_wrong_side_is_refused_at_construction_and_named():
    W = torch.nn.Parameter(torch.ones(30, 5))
    with pytest.raises(ValueError, match=r"'emb'.*right-polar"):
        polargrad.PolarGrad([{"params": [("emb", W)], "geometry": "left-polar"}], lr=0.1)


def test_a_transposed_layout_turns_the_side():
    W = torch.nn.Parameter(torch.ones(5, 30))
    polargrad.PolarGrad([{"params": [W], "layout": "transposed"}], lr=0.1, geometry="right-polar")
    with pytest.raises(ValueError, match="left-polar"):
        polargrad.PolarGrad([W], lr=0.1, geometry="right-polar")
