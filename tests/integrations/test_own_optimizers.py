"""The optimizers of examples/optimizers: each takes the steps of its formula, and a run of it goes on where it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

import polargrad
from polargrad.lab.train.optimizers import build_optimizer
from polargrad.outside import load

FOLDER = Path(polargrad.__file__).parents[2] / "examples" / "optimizers"
LR, BETA1, BETA2, DECAY = 0.1, 0.8, 0.9, 0.05


def own(reference, **options):
    return load(f"{FOLDER / reference}")[1], {"lr": LR, "betas": (BETA1, BETA2), "weight_decay": DECAY, **options}


def matrices(count, shape=(4, 3)):
    draw = np.random.default_rng(0)
    return draw.standard_normal(shape), [draw.standard_normal(shape) for _ in range(count)]


def trajectory(made, options, start, gradients):
    W = torch.nn.Parameter(torch.tensor(start))
    optimizer = made([W], **options)
    for G in gradients:
        W.grad = torch.tensor(G)
        optimizer.step()
    return W.detach().numpy()


def test_ada_momentum_is_its_formula():
    start, gradients = matrices(7)
    W, M, V, eps = start.copy(), 0.0, 0.0, 1e-3
    for t, G in enumerate(gradients, start=1):
        M = BETA1 * M + (1 - BETA1) * G
        V = BETA2 * V + (1 - BETA2) * M**2 + eps
        W = (1 - LR * DECAY) * W - LR * (M / (1 - BETA1**t)) / np.sqrt(V / (1 - BETA2**t))
    made, options = own("ada_momentum.py:AdaMomentum", eps=eps)
    np.testing.assert_allclose(trajectory(made, options, start, gradients), W, rtol=1e-13)
    assert not np.allclose(trajectory(torch.optim.AdamW, options, start, gradients), W)


@pytest.mark.parametrize("name", ["AdaDiag", "AdaDiagPlusPlus"])
def test_ada_diag_is_its_formula(name):
    start, gradients = matrices(7)
    W, M, V, eps = start.copy(), 0.0, 0.0, 1e-8
    for t, G in enumerate(gradients, start=1):
        if (t - 1) % 3 == 0:
            # torch's own, since the steps depend on the signs of the vectors, which are anybody's choice
            P, _, Qt = (factor.numpy() for factor in torch.linalg.svd(torch.tensor(G)))
            Qt = Qt if name == "AdaDiagPlusPlus" else np.eye(3)
        R = P.T @ G @ Qt.T
        M, V = BETA1 * M + (1 - BETA1) * R, BETA2 * V + (1 - BETA2) * R**2
        D = P @ (M / (1 - BETA1**t) / (np.sqrt(V / (1 - BETA2**t)) + eps)) @ Qt
        W = (1 - LR * DECAY) * W - LR * D
    made, options = own(f"ada_diag.py:{name}", every=3, eps=eps)
    np.testing.assert_allclose(trajectory(made, options, start, gradients), W, rtol=1e-6)


def test_the_first_step_of_the_two_sided_one_is_the_polar_factor():
    start, (G,) = matrices(1)
    made, options = own("ada_diag.py:AdaDiagPlusPlus", weight_decay=0.0, eps=1e-6)
    step = (start - trajectory(made, options, start, [G])) / LR
    U = polargrad.polar_factor(torch.tensor(G)).numpy()
    # Entries of the rotated gradient that are not on its diagonal are rounding errors, far below eps.
    np.testing.assert_allclose(step, U, atol=1e-5)


@pytest.mark.parametrize(
    "reference", ["ada_momentum.py:AdaMomentum", "ada_diag.py:AdaDiag", "ada_diag.py:AdaDiagPlusPlus"]
)
def test_it_takes_part(reference):
    """The trial of `build_optimizer` takes steps before and after a checkpoint."""
    W, b = torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3))
    rule = {"rule": f"{FOLDER / reference}", "lr": 0.01}
    optimizer = build_optimizer([{"params": [W], "role": "hidden", **rule}, {"params": [b], "role": "vector", **rule}])
    assert type(optimizer).__name__ == reference.partition(":")[2]
