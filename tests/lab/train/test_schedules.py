import json

import pytest
import torch

from polargrad.lab.train import Constant, Cosine, StepDecay, WarmupLinearDecay, lr_scheduler, schedule_from_dict

ALL = [
    Constant(),
    Cosine(100, 10, 0.1),
    Cosine(5),
    WarmupLinearDecay(100, 10),
    WarmupLinearDecay(10, 0, 1.0),
    WarmupLinearDecay(10, 10, 0.0),
    StepDecay(25, 0.95),
]


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_a_schedule_survives_being_plain_data(schedule):
    assert schedule_from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_every_step_moves(schedule):
    assert all(0.0 < schedule(step) <= 1.0 for step in range(getattr(schedule, "total", 100)))


def test_step_decay_is_torch_s():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, 25, 0.95)
    ours = StepDecay(25, 0.95)
    for step in range(120):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_warmup_reaches_the_base_rate_at_its_last_step():
    for schedule in (Cosine(100, 10), WarmupLinearDecay(100, 10)):
        assert [schedule(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_cosine_goes_from_one_to_final():
    schedule = Cosine(110, 10, 0.2)
    assert schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(109) == pytest.approx(0.2, abs=1e-3)
    values = [schedule(step) for step in range(10, 110)]
    assert values == sorted(values, reverse=True)


def test_linear_decay_begins_at_the_last_forty_percent_and_would_end_at_zero():
    schedule = WarmupLinearDecay(200, 10)
    assert {schedule(step) for step in range(9, 121)} == {1.0}
    falls = [schedule(step) - schedule(step + 1) for step in range(120, 199)]
    assert falls == pytest.approx([1 / 80] * 79)
    assert schedule(199) == pytest.approx(1 / 80)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(0), "total"),
        (lambda: Cosine(10.0), "total"),
        (lambda: Cosine(10, -1), "warmup"),
        (lambda: Cosine(10, 11), "does not fit: 10 steps"),
        (lambda: Cosine(10, 0, 1.5), "final"),
        (lambda: Cosine(10, 0, float("nan")), "final"),
        (lambda: WarmupLinearDecay(10, 7), "does not fit: 6 steps"),
        (lambda: WarmupLinearDecay(10, 0, -0.1), "decay_fraction"),
        (lambda: StepDecay(0, 0.5), "every"),
        (lambda: StepDecay(5, 0.0), "factor must be a finite number above 0"),
        (lambda: StepDecay(5, 1.1), "factor"),
        (lambda: Cosine(10)(10), "make total larger"),
        (lambda: WarmupLinearDecay(10)(-1), "covers steps 0 to 9"),
        (
            lambda: schedule_from_dict({"name": "cosin", "total": 3}),
            "did you mean 'cosine'\\? The allowed names are 'constant', 'cosine'",
        ),
        (lambda: schedule_from_dict({"total": 3}), "unknown schedule None"),
        (lambda: schedule_from_dict({"name": "cosine", "totl": 3}), r"takes \['total', 'warmup', 'final'\]"),
        (lambda: schedule_from_dict({"name": "cosine"}), r"takes \['total', 'warmup', 'final'\]"),
    ],
)
def test_bad_schedules_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("number", [float, torch.tensor], ids=["number", "tensor"])
def test_torch_s_scheduler_is_followed_by_groups_that_came_later_or_with_a_state(number):
    def made():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=number(1.0))
        return optimizer, lr_scheduler(optimizer, StepDecay(1, 0.5))

    def add(optimizer):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": number(2.0)})

    def step(optimizer, scheduler):
        optimizer.step()
        scheduler.step()
        return [float(group["lr"]) for group in optimizer.param_groups]

    optimizer, scheduler = made()
    assert step(optimizer, scheduler) == [0.5]
    add(optimizer)
    assert step(optimizer, scheduler) == [0.25, 0.5]

    resumed, scheduler_of_resumed = made()
    add(resumed)
    resumed.load_state_dict(optimizer.state_dict())
    scheduler_of_resumed.load_state_dict(scheduler.state_dict())
    assert step(resumed, scheduler_of_resumed) == [0.125, 0.25]
    assert step(optimizer, scheduler) == [0.125, 0.25]


def test_torch_s_scheduler_follows_groups_that_were_replaced_or_are_gone():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 4.0)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = lr_scheduler(optimizer, StepDecay(1, 0.5))
    optimizer.step()
    scheduler.step()
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 8.0})
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]
    del optimizer.param_groups[1]
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
