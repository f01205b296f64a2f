"""Every scheduler of torch, on polar and AdamW groups, turns the rates as it does torch's AdamW's."""

import inspect
import warnings

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

import polargrad

STEPS = 8
ARGUMENTS = {
    "LambdaLR": {"lr_lambda": lambda step: 1 / (step + 1)},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 4]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2, "base_momentum": 0.8, "max_momentum": 0.9},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 10, "base_momentum": 0.8, "max_momentum": 0.9},
    "ChainedScheduler": {},
    "SequentialLR": {},
}
NAMES = [
    name
    for name, cls in inspect.getmembers(schedulers, inspect.isclass)
    if issubclass(cls, schedulers.LRScheduler) and not name.startswith("_") and name != "LRScheduler"
]


def scheduler(name, optimizer):
    if name in ("ChainedScheduler", "SequentialLR"):
        parts = [schedulers.ConstantLR(optimizer, 0.5, 3), schedulers.ExponentialLR(optimizer, 0.9)]
        if name == "ChainedScheduler":
            return schedulers.ChainedScheduler(parts)
        return schedulers.SequentialLR(optimizer, parts, milestones=[3])
    return getattr(schedulers, name)(optimizer, **ARGUMENTS.get(name, {}))


def rates(name, optimizer):
    """The rates of the groups after each step."""
    plan, seen = scheduler(name, optimizer), []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        plan.step(1.0) if name == "ReduceLROnPlateau" else plan.step()
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        if step == STEPS // 2:  # a checkpoint is saved and loaded
            optimizer.load_state_dict(optimizer.state_dict())
            plan.load_state_dict(plan.state_dict())
    return seen


def parameters():
    return torch.nn.Parameter(torch.eye(4, 3)), torch.nn.Parameter(torch.ones(5))


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor([0.1])], ids=["number", "scalar", "one element"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler(name, lr):
    lr = lr.clone() if isinstance(lr, torch.Tensor) else lr
    (W, b), (V, c) = parameters(), parameters()
    ours = polargrad.PolarGrad([{"params": [W]}, {"params": [b], "rule": "adamw"}], lr=lr, method="svd")
    theirs = torch.optim.AdamW([{"params": [V]}, {"params": [c]}], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own, of epochs
        found, expected = rates(name, ours), rates(name, theirs)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-9)
    assert W.isfinite().all()
    assert b.isfinite().all()


def test_stochastic_weight_averaging():
    from torch.optim.swa_utils import SWALR

    (W, b) = parameters()
    optimizer = polargrad.PolarGrad([{"params": [W]}, {"params": [b], "rule": "adamw"}], lr=0.1)
    plan = SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    for _ in range(4):
        optimizer.step()
        plan.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_momentum_is_turned_in_both_rules(name):
    W, b = parameters()
    optimizer = polargrad.PolarGrad([{"params": [W]}, {"params": [b], "rule": "adamw"}], lr=0.1)
    plan, seen = scheduler(name, optimizer), []
    for _ in range(STEPS):
        optimizer.step()
        plan.step()
        polar, adamw = optimizer.param_groups
        seen.append((polar["momentum"], adamw["betas"][0]))
    assert min(seen) < (0.85, 0.85) < max(seen)


def test_a_rate_of_one_element_is_the_rate():
    for rule in ("polar", "adamw"):
        found = []
        for lr in (0.1, torch.tensor([0.1], dtype=torch.float64)):
            W = torch.nn.Parameter(torch.eye(4, 3, dtype=torch.float64))
            options = {"weight_decay": 0.1, "weight_decay_mode": "cautious"}
            optimizer = polargrad.PolarGrad([{"params": [W], "rule": rule}], lr=lr, **options)
            for _ in range(3):
                W.grad = torch.ones_like(W)
                optimizer.step()
            found.append(W.detach())
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
