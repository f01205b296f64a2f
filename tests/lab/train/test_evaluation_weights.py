"""Optimizers with methods `eval` and `train`, which evaluate other weights than those that they train."""

import dataclasses

import pytest
import torch

from polargrad.lab.lm.generation import sample
from polargrad.lab.run import runner
from polargrad.lab.run.build import build_objective
from polargrad.lab.run.trained import trained
from polargrad.lab.train import Constant, LoopConfig, train
from polargrad.lab.train.checkpoint import Checkpoints
from polargrad.lab.train.optimizers import CombinedOptimizer, evaluation_weights
from tests.lab.train.test_loop import Quadratic, of, run
from tests.runs import tiny_spec, tiny_text

MINE = '''
import torch


class Averaged(torch.optim.Optimizer):
    """Gradient descent on W, evaluated at A <- A + (W - A) / t; the methods leave the other one in the state."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "training": False})

    def _switch(self, training):
        for group in self.param_groups:
            if group["training"] != training:
                group["training"] = training
                for p in group["params"]:
                    if "other" in self.state[p]:
                        kept = p.detach().clone()
                        p.data.copy_(self.state[p]["other"] * (1 + 1e-7))  # as inexact as an interpolation
                        self.state[p]["other"] = kept

    def eval(self):
        self._switch(False)

    def train(self):
        self._switch(True)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["training"]:
                raise RuntimeError("step after eval: call train first")
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
                    state = self.state[p]
                    state["steps"] = state.get("steps", 0) + 1
                    average = state.setdefault("other", torch.zeros_like(p))
                    average.lerp_(p, 1 / state["steps"])
'''


@pytest.fixture
def averaged(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    space = {}
    exec(compile(MINE, path, "exec"), space)
    return path, space["Averaged"]


def test_evaluations_see_the_average_and_change_no_step(averaged):
    """Against both iterates by hand: X <- X - .1 (X - T), A the mean of X."""
    found = []
    for every in (0, 1):
        objective = Quadratic(noise=0.5)
        optimizer = averaged[1](objective.module.parameters())
        _, records = run(objective, optimizer, eval_every=every)
        found.append(objective.module.weight.detach().clone())
        X, mean = torch.zeros(2, 3), torch.zeros(2, 3)
        gaps = [3.0]
        for step in range(10):
            target = torch.randn(2, 3, generator=torch.Generator().manual_seed(step)) * 0.5 + 1.0
            X = X - 0.1 * (X - target)
            mean = mean + (X - mean) / (step + 1)
            gaps.append(0.5 * (mean - 1.0).square().sum().item())
        expected = gaps if every else [gaps[0], gaps[-1]]
        assert [record["gap"] for record in of("eval", records)] == pytest.approx(expected, rel=1e-5)
        assert torch.allclose(found[-1], X, atol=1e-6)
    assert torch.equal(*found)


def test_a_resumed_run_takes_the_same_steps(averaged, tmp_path):
    def go(steps, folder=None, resume=None):
        objective = Quadratic(noise=0.5)
        optimizer = averaged[1](objective.module.parameters())
        records = []
        checkpoints = None if folder is None else Checkpoints(folder, {})
        config = LoopConfig(steps, eval_every=2)
        train(
            objective, optimizer, Constant(), config, record=records.append, checkpoints=checkpoints,
            resume=None if resume is None else Checkpoints(resume, {}).newest(),
        )  # fmt: skip
        return objective.module.weight.detach().clone(), of("eval", records)[-1]["gap"]

    go(4, tmp_path / "one")
    assert go(10, resume=tmp_path / "one")[1] == go(10)[1]
    assert torch.equal(go(10, resume=tmp_path / "one")[0], go(10)[0])


def test_parts_of_a_combined_optimizer_switch_and_the_others_stay(averaged):
    W, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    part = averaged[1]([W], lr=0.5)
    part.train()
    both = CombinedOptimizer([torch.optim.SGD([b], lr=0.5), part])
    for _ in range(2):
        W.grad, b.grad = torch.ones(2), torch.ones(2)
        both.step()
    with evaluation_weights(both):
        assert W.tolist() == pytest.approx([0.25, 0.25])
        assert b.tolist() == [0.0, 0.0]
    assert W.tolist() == [0.0, 0.0]
    assert part.param_groups[0]["training"]


def test_the_model_of_a_run_has_the_weights_that_were_evaluated(averaged, tmp_path, monkeypatch):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    spec = tiny_spec(tiny_text(tmp_path), steps=4)
    mine = {"rule": f"{averaged[0]}:Averaged", "lr": 0.5}
    spec = dataclasses.replace(spec, optimizer={**spec.optimizer, "hidden": mine, "head": mine}, probe=())
    run = runner.run(spec, tmp_path / "run")
    ended = run.of_kind("eval")[-1]["val_loss"]
    found = trained(tmp_path / "run")
    told = run.of_kind("sample")[-1]["text"]
    assert told == sample(found.module, found.tokenizer, tokens=runner.SAMPLED_TOKENS)
    objective, _ = build_objective(spec)
    objective.module.eval()
    objective.module.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert objective.evaluate()["val_loss"] == pytest.approx(ended, rel=1e-6)


def test_a_schedule_free_optimizer_of_another_library_takes_part():
    found = pytest.importorskip("pytorch_optimizer").ScheduleFreeAdamW
    objective = Quadratic()
    _, records = run(objective, found(objective.module.parameters(), lr=0.1), steps=20)
    gap = of("eval", records)[-1]["gap"]
    assert gap < 0.2 * of("eval", records)[0]["gap"]
    assert gap != 0.5 * (objective.module.weight - 1.0).square().sum().item()
