import json
import math

import pytest
import torch
from torch import nn

import polargrad
from polargrad.lab.train import Constant, LoopConfig, MatrixProbe, StepDecay, WarmupLinearDecay, train
from polargrad.lab.train.optimizers import CombinedOptimizer


class Quadratic:
    """f(X) = 1/2 ||X - T_k||_F^2 with a target drawn from (seed, step)."""

    unit = "sample"
    units_per_step = 4

    def __init__(self, noise=0.0):
        self.module = nn.Linear(3, 2, bias=False)
        nn.init.zeros_(self.module.weight)
        self.noise = noise
        self.modes = []

    def loss(self, step):
        assert self.module.training
        target = torch.randn(2, 3, generator=torch.Generator().manual_seed(step)) * self.noise + 1.0
        return 0.5 * (self.module.weight - target).square().sum()

    def evaluate(self):
        assert not self.module.training
        assert not torch.is_grad_enabled()
        return {"gap": 0.5 * (self.module.weight - 1.0).square().sum().item(), "norm": self.module.weight.norm().item()}


def sgd(objective, lr=0.1, **options):
    return torch.optim.SGD(objective.module.parameters(), lr=lr, **options)


def run(objective, optimizer=None, schedule=None, *, steps=10, probe=None, progress=None, **options):
    records = []
    summary = train(
        objective,
        optimizer or sgd(objective),
        schedule or Constant(),
        LoopConfig(steps, **options),
        record=records.append,
        probe=probe,
        progress=progress,
    )
    json.dumps(records, allow_nan=False)
    return summary, records


def of(kind, records):
    return [record for record in records if record["kind"] == kind]


def test_the_loop_is_gradient_descent():
    objective = Quadratic(noise=0.5)
    by_hand = torch.zeros(2, 3)
    losses = []
    for step in range(10):
        target = torch.randn(2, 3, generator=torch.Generator().manual_seed(step)) * 0.5 + 1.0
        losses.append(0.5 * (by_hand - target).square().sum().item())
        by_hand -= 0.1 * 0.9 ** (step // 3) * (by_hand - target)
    _, records = run(objective, schedule=StepDecay(3, 0.9))
    assert torch.allclose(objective.module.weight.detach(), by_hand, atol=1e-6)
    assert [record["loss"] for record in of("step", records)] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("combined", [False, True])
def test_step_rules_know_the_loss(combined):
    """G has rank 1 and f = nu^2 / 2, so that Polyak's step, f / nu along the factor, halves the distance."""
    objective = Quadratic()
    rule = {"name": "polyak", "minimum": 0.0}
    optimizer = polargrad.PolarGrad(objective.module.parameters(), lr=1.0, momentum=0.0, step_rule=rule, method="svd")
    if combined:
        objective.module.other = nn.Parameter(torch.ones(2))
        optimizer = CombinedOptimizer([torch.optim.SGD([objective.module.other], lr=0.1), optimizer])
    _, records = run(objective, optimizer, steps=3, eval_every=1)
    assert [record["gap"] for record in of("eval", records)] == pytest.approx([3 / 4**k for k in range(4)], rel=1e-4)


def test_records_of_steps():
    summary, records = run(Quadratic(), schedule=WarmupLinearDecay(10, 2))
    steps = of("step", records)
    assert [record["step"] for record in steps] == list(range(1, 11))
    assert [record["units"] for record in steps] == [4 * n for n in range(1, 11)]
    schedule = WarmupLinearDecay(10, 2)
    assert [record["lr"]["group0"] for record in steps] == pytest.approx([0.1 * schedule(k) for k in range(10)])
    seconds = [record["seconds"] for record in steps]
    assert seconds == sorted(seconds)
    assert all(0 < record["optimizer_seconds"] < record["seconds"] for record in steps)
    assert (summary.steps, summary.units, summary.status) == (10, 40, "finished")
    assert (summary.seconds, summary.optimizer_seconds) == (seconds[-1], steps[-1]["optimizer_seconds"])


@pytest.mark.parametrize(
    ("every", "steps", "expected"), [(0, 10, [0, 10]), (4, 10, [0, 4, 8, 10]), (5, 10, [0, 5, 10]), (20, 3, [0, 3])]
)
def test_evaluations_come_at_their_interval_and_at_both_ends(every, steps, expected):
    objective = Quadratic()
    summary, records = run(objective, steps=steps, eval_every=every)
    found = of("eval", records)
    assert [record["step"] for record in found] == expected
    assert found[0]["gap"] == 3.0
    assert found[0]["seconds"] == 0.0
    assert summary.final == {
        "loss": of("step", records)[-1]["loss"],
        "gap": found[-1]["gap"],
        "norm": found[-1]["norm"],
    }
    assert found[-1]["gap"] == pytest.approx(objective.module.weight.sub(1).square().sum().item() / 2)


def test_best_is_the_evaluation_with_the_lowest_leading_metric():
    objective = Quadratic()
    optimizer = sgd(objective, lr=0.5, momentum=0.95)  # overshoots
    summary, records = run(objective, optimizer, steps=8, eval_every=1)
    lowest = min(of("eval", records), key=lambda record: record["gap"])
    assert lowest["step"] not in (0, 8)
    assert summary.best == {key: value for key, value in lowest.items() if key != "kind"}


@pytest.mark.parametrize("log_every", [3, 7, 100])
def test_reading_losses_late_changes_nothing(log_every):
    def untimed(records):
        drop = {"seconds", "optimizer_seconds"}
        return [{key: value for key, value in record.items() if key not in drop} for record in records]

    _, often = run(Quadratic(noise=1.0), eval_every=4)
    _, late = run(Quadratic(noise=1.0), eval_every=4, log_every=log_every)
    assert untimed(often) == untimed(late)


def test_losses_wait_as_tensors_between_logs(monkeypatch):
    read = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: read.append(len(tensors)) or stack(tensors))
    run(Quadratic(), steps=10, log_every=4)
    assert read == [4, 4, 2]


def test_learning_rates_go_by_role_and_are_put_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    objective = Quadratic()
    objective.module = model
    objective.loss = lambda step: sum(parameter.square().sum() for parameter in model.parameters()) + 1.0
    objective.evaluate = dict
    tensor_rate = torch.tensor(0.2)
    groups = [
        {"params": [model[0].weight], "lr": 0.1, "role": "hidden"},
        {"params": [model[1].weight], "lr": tensor_rate, "role": "hidden"},
        {"params": [model[0].bias], "lr": 0.3, "role": "vector"},
        {"params": [model[1].bias], "lr": 0.4},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    summary, records = run(objective, optimizer, StepDecay(1, 0.5), steps=2)
    rates = of("step", records)[1]["lr"]
    assert rates == pytest.approx({"hidden.0": 0.05, "hidden.1": 0.1, "vector": 0.15, "group3": 0.2})
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert optimizer.param_groups[1]["lr"] is tensor_rate
    assert summary.best == {}
    assert not of("eval", records)


def test_probes_see_the_raw_gradient_before_clipping():
    objective = Quadratic()
    probe = MatrixProbe({"w": objective.module.weight}, {"w": "hidden"})
    optimizer = sgd(objective, lr=1.0)
    _, records = run(objective, optimizer, steps=7, probe=probe, probe_every=3, clip_grad_norm=0.5)
    found = of("matrix", records)
    assert [record["step"] for record in found] == [1, 3, 6]
    assert found[0]["nuclear_norm"] == pytest.approx(6**0.5)  # of minus the matrix of ones
    assert objective.module.weight.norm().item() == pytest.approx(6**0.5)
    clipped = Quadratic()
    run(clipped, sgd(clipped, lr=1.0), steps=1, clip_grad_norm=0.5)
    assert clipped.module.weight.norm().item() == pytest.approx(0.5)


def test_a_metric_that_is_not_finite_is_none_with_one_event():
    objective = Quadratic()
    probe = MatrixProbe({"w": objective.module.weight})  # of rank one: in exact arithmetic singular
    probe_infinite = lambda: [{**entry, "condition_number": math.inf} for entry in probe()]  # noqa: E731
    _, records = run(objective, steps=3, probe=probe_infinite, probe_every=1)
    assert [record["condition_number"] for record in of("matrix", records)] == [None] * 3
    (event,) = of("event", records)
    assert (event["event"], event["step"]) == ("nonfinite", 1)
    assert "condition_number of w is inf" in event["message"]


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_run_that_grows_past_the_factor_ends_early(log_every):
    objective = Quadratic()
    summary, records = run(objective, sgd(objective, lr=3.0), steps=100, log_every=log_every)
    (event,) = of("event", records)
    # The distance doubles at every step, so the loss passes ten times the first at the third step: 1, 4, 16.
    assert (event["event"], event["step"]) == ("diverged", 3)
    assert summary.status == "diverged"
    assert summary.steps == of("step", records)[-1]["step"] == (3 if log_every == 1 else 4)
    assert of("eval", records)[-1]["step"] == summary.steps
    tolerant, _ = run(objective, sgd(objective, lr=1.0), steps=5, divergence_factor=None)
    assert tolerant.status == "finished"


def test_a_loss_that_is_not_finite_ends_the_run_or_is_an_event():
    class Broken(Quadratic):
        def loss(self, step):
            return super().loss(step) * (math.nan if step in (4, 5) else 1.0)

    objective = Broken()
    summary, records = run(objective, nonfinite_limit=1)
    assert (summary.status, summary.steps) == ("diverged", 5)
    assert summary.reason == "the loss is nan"
    assert of("step", records)[-1]["loss"] is None
    assert summary.final == {"loss": None, "gap": None, "norm": None}
    assert summary.best["step"] == 0
    assert [event["event"] for event in of("event", records)] == ["nonfinite", "diverged", "nonfinite", "nonfinite"]

    class Nothing(torch.optim.SGD):
        def step(self):
            pass

    objective = Broken()
    summary, records = run(objective, Nothing(objective.module.parameters(), lr=0.1))
    assert (summary.status, summary.steps) == ("finished", 10)
    assert [record["loss"] is None for record in of("step", records)] == [n in (5, 6) for n in range(1, 11)]
    assert [(event["event"], event["step"]) for event in of("event", records)] == [("nonfinite", 5)]


def test_a_first_loss_that_is_not_positive_sets_no_limit():
    objective = Quadratic()
    objective.loss = lambda step: (objective.module.weight - 1.0).sum() + step * 100.0
    summary, _ = run(objective)
    assert summary.status == "finished"


@pytest.mark.parametrize("log_every", [1, 100])
def test_ctrl_c_keeps_the_finished_steps(log_every):
    class Impatient(Quadratic):
        def loss(self, step):
            if step == 6:
                raise KeyboardInterrupt
            return super().loss(step)

    objective = Impatient()
    optimizer = sgd(objective)
    summary, records = run(objective, optimizer, StepDecay(1, 0.5), log_every=log_every)
    assert (summary.status, summary.steps, summary.units) == ("interrupted", 6, 24)
    assert len(of("step", records)) == 6
    assert records[-1] == {
        "kind": "event",
        "step": 6,
        "event": "interrupted",
        "message": "interrupted after 6 of 10 steps",
    }
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_time_spent_looking_does_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("polargrad.lab.train.run_log.time.perf_counter", lambda: clock[0])

    def spend(seconds, result=None):
        clock[0] += seconds
        return result

    class Slow(Quadratic):
        def loss(self, step):
            spend(3.0)
            return super().loss(step)

        def evaluate(self):
            return spend(100.0, {"gap": 1.0})

    class Step(torch.optim.SGD):
        def step(self):
            spend(2.0)

    objective = Slow()
    records = []
    summary = train(
        objective,
        Step(objective.module.parameters(), lr=0.1),
        Constant(),
        LoopConfig(4, eval_every=1, probe_every=1),
        record=lambda record: spend(1000.0, records.append(record)),
        probe=lambda: spend(10.0, [{"parameter": "w"}]),
    )
    assert (summary.seconds, summary.optimizer_seconds) == (20.0, 8.0)
    assert [record["seconds"] for record in of("eval", records)] == [0.0, 5.0, 10.0, 15.0, 20.0]


def test_two_runs_are_identical():
    def trajectory():
        torch.manual_seed(0)
        objective = Quadratic(noise=1.0)
        optimizer = torch.optim.AdamW(objective.module.parameters(), lr=0.1)
        return [record["loss"] for record in of("step", run(objective, optimizer, eval_every=2)[1])]

    assert trajectory() == trajectory()


def test_polargrad_s_skipped_updates_are_events():
    objective = Quadratic()
    optimizer = polargrad.PolarGrad(polargrad.parameter_groups(objective.module, hidden={"lr": 0.1}))

    def poison(*_):
        if poison.calls == 3:
            objective.module.weight.grad[0, 0] = math.nan
        poison.calls += 1

    poison.calls = 0
    optimizer.register_step_pre_hook(poison)
    with pytest.warns(UserWarning, match="skipped"):
        summary, records = run(objective, optimizer)
    (event,) = of("event", records)
    assert (event["event"], event["step"]) == ("skipped", 4)
    assert summary.status == "finished"
    assert list(of("step", records)[0]["lr"]) == ["hidden"]


def test_the_module_s_mode_is_put_back():
    objective = Quadratic()
    objective.module.eval()
    run(objective)
    assert not objective.module.training


def test_foreign_parameters_and_empty_modules_are_errors():
    objective = Quadratic()
    with pytest.raises(ValueError, match="1 parameters that are not"):
        run(objective, sgd(Quadratic()))
    objective.module = nn.Identity()
    with pytest.raises(ValueError, match="nothing to train"):
        run(objective, sgd(Quadratic()))


def test_a_schedule_that_is_too_short_is_refused_before_the_first_step():
    objective = Quadratic()
    with pytest.raises(ValueError, match="make total larger"):
        run(objective, schedule=WarmupLinearDecay(9))
    assert not objective.module.weight.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.0}, "steps"),
        ({"steps": 1, "eval_every": -1}, "eval_every"),
        ({"steps": 1, "log_every": 0}, "log_every"),
        ({"steps": 1, "probe_every": -1}, "probe_every"),
        ({"steps": 1, "clip_grad_norm": 0.0}, "clip_grad_norm"),
        ({"steps": 1, "clip_grad_norm": math.nan}, "clip_grad_norm"),
        ({"steps": 1, "divergence_factor": 1.0}, "divergence_factor"),
    ],
)
def test_bad_settings_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**options)
