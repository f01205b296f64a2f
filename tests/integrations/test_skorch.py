"""skorch hands over parameters without their module; biases are stepped by AdamW."""

import numpy as np
import pytest
import torch
from torch import nn

from polargrad import PolarGrad
from polargrad.integrations.skorch import optimizer

OPTIONS = {"lr": 0.05, "momentum": 0.5, "scale": "rms"}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def test_matrices_and_biases_are_stepped_each_by_their_rule():
    one, other = model(), model()
    ours = optimizer(one.parameters(), vectors={"lr": 0.01, "weight_decay": 0.1}, **OPTIONS)
    matrices = [p for p in other.parameters() if p.ndim == 2]
    vectors = [p for p in other.parameters() if p.ndim < 2]
    polar = PolarGrad(matrices, **OPTIONS)
    adamw = torch.optim.AdamW(vectors, lr=0.01, weight_decay=0.1, betas=ours.param_groups[1]["betas"], eps=1e-8)
    for step in range(4):
        for part, optimizers in ((one, [ours]), (other, [polar, adamw])):
            draw = torch.Generator().manual_seed(step)
            for p in part.parameters():
                p.grad = torch.randn(p.shape, generator=draw)
            for each in optimizers:
                each.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=4 * torch.finfo(p.dtype).eps)


def test_groups_keep_their_options():
    part = model()
    named = [{"params": [part[0].weight, part[0].bias], "lr": 0.5}, {"params": part[2].weight}]
    made = optimizer(named, lr=0.1)
    assert [(g["role"], g["lr"]) for g in made.param_groups] == [("hidden", 0.5), ("vector", 0.5), ("hidden", 0.1)]
    by_name = optimizer(part.named_parameters())
    assert by_name.param_groups[1]["param_names"] == ["0.bias", "2.bias"]


def test_what_matrices_do_not_take_is_refused():
    with pytest.raises(ValueError, match="scale must be one of"):
        optimizer(model().parameters(), scale="nosuch")
    with pytest.raises(ValueError, match="used by rule='polar', not by rule='adamw'"):
        optimizer(model().parameters(), vectors={"momentum": 0.9})


@pytest.mark.filterwarnings("ignore")
def test_a_net_of_skorch_learns_and_is_saved(tmp_path):
    skorch = pytest.importorskip("skorch")
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = datasets.load_iris(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)

    def net(**options):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        how = {"criterion": nn.CrossEntropyLoss, "optimizer": optimizer, "lr": 0.02, "verbose": 0, "train_split": None}
        how |= {"batch_size": 32, "iterator_train__shuffle": True}
        return skorch.NeuralNetClassifier(module, max_epochs=20, optimizer__scale="rms", **{**how, **options})

    trained = net(optimizer__vectors={"lr": 0.01}).fit(X, y)
    assert isinstance(trained.optimizer_, PolarGrad)
    assert [group["lr"] for group in trained.optimizer_.param_groups] == [0.02, 0.01]
    assert trained.score(X, y) > 0.9
    trained.save_params(f_optimizer=tmp_path / "optimizer.pt")
    other = net(optimizer__vectors={"lr": 0.01}).initialize()
    other.load_params(f_optimizer=tmp_path / "optimizer.pt")
    momenta = [
        [s["momentum_buffer"] for s in each.optimizer_.state.values() if "momentum_buffer" in s]
        for each in (trained, other)
    ]
    assert momenta[0]
    assert all(torch.equal(p, q) for p, q in zip(*momenta, strict=True))
