"""What an objective and a probe may do beyond their protocols: batches in parts, looks after the step."""

import torch
from torch import nn

from polargrad.lab.train import Constant, LoopConfig, train


class LeastSquares:
    """f(w) = mean (x^T w - 1)^2 over the rows of a batch, whole or in parts."""

    unit = "sample"
    units_per_step = 12

    def __init__(self):
        self.module = nn.Linear(3, 1, bias=False).double()
        nn.init.ones_(self.module.weight)

    def rows(self, step):
        return torch.randn(12, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)

    def loss(self, step):
        return (self.module(self.rows(step)) - 1.0).square().mean()

    def evaluate(self):
        return {"norm": self.module.weight.norm().item()}


class InParts(LeastSquares):
    def parts(self, step):
        for rows in self.rows(step).chunk(3):
            yield (self.module(rows) - 1.0).square().mean() / 3


def trained(objective, probe=None):
    records = []
    optimizer = torch.optim.SGD(objective.module.parameters(), lr=0.1, momentum=0.9)
    config = LoopConfig(steps=10, probe_every=4)
    train(objective, optimizer, Constant(), config, record=records.append, probe=probe)
    return [r["loss"] for r in records if r["kind"] == "step"], objective.module.weight.detach(), records


def test_a_batch_in_parts_is_the_same_step():
    losses, weight, _ = trained(LeastSquares())
    in_parts, same, _ = trained(InParts())
    torch.testing.assert_close(torch.tensor(in_parts), torch.tensor(losses), rtol=1e-12, atol=0)
    torch.testing.assert_close(same, weight, rtol=1e-12, atol=0)
    assert losses[0] != losses[-1]


class Watcher:
    """Sees a weight before and after the step."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self):
        self.before = self.weight.detach().clone()
        return [{"role": "", "parameter": "w", "norm": self.before.norm().item()}]

    def stepped(self):
        return [{"role": "", "parameter": "w", "change": (self.weight.detach() - self.before).norm().item()}]


def test_a_probe_may_look_again_after_the_step():
    objective = LeastSquares()
    watcher = Watcher(objective.module.weight)
    _, _, records = trained(objective, watcher)
    seen = [record for record in records if record["kind"] == "matrix"]
    assert [record["step"] for record in seen] == [1, 1, 4, 4, 8, 8]
    assert all("norm" in record for record in seen[::2])
    assert all(record["change"] > 0 for record in seen[1::2])
