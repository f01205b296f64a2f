"""What the log says of steps that went wrong, and when it gives up."""

import math

import pytest
import torch

from polargrad.lab.train import LoopConfig
from polargrad.lab.train.run_log import DeviceTimer, RunLog


class Watched:
    """A log fed with losses; `skips` counts updates left out."""

    def __init__(self, *, spike_threshold=8.0, nonfinite_limit=3):
        self.records = []
        self.skips, self.nothing = 0, False
        limits = {"nonfinite_limit": nonfinite_limit, "spike_threshold": spike_threshold}
        self.log = RunLog(
            self.records.append,
            DeviceTimer(torch.device("cpu")),
            1,
            LoopConfig(1000, divergence_factor=None, **limits),
            skipped=lambda: self.skips,
            all_skipped=lambda: self.nothing,
        )
        self.step = 0

    def feed(self, *losses, skipped=0, nothing=False, late=False):
        for loss in losses:
            self.step += 1
            self.skips += skipped
            self.nothing = nothing
            self.log.add(self.step, torch.tensor(loss), {}, (0.0, 0.0, 0.0, 0.0))
            if not late:
                self.log.flush()
        self.log.flush()
        return self

    def events(self):
        return [(record["event"], record["step"]) for record in self.records if record["kind"] == "event"]


def quiet(number, level=5.0):
    return [level + 0.1 * math.sin(k) for k in range(number)]


def test_a_spike_is_told_once_until_the_loss_is_back():
    watched = Watched().feed(*quiet(20), 9.0, 8.0, 5.0, *quiet(10), 7.0)
    assert watched.events() == [("spike", 21), ("spike", 34)]
    assert "9 stands out from 5" in next(r["message"] for r in watched.records if r["kind"] == "event")


@pytest.mark.parametrize("losses", [quiet(60), [8 - 0.05 * k for k in range(100)], [9.0, 3.0, 8.0, 4.0, 9.5]])
def test_noise_decay_and_a_beginning_are_no_spikes(losses):
    assert Watched().feed(*losses).events() == []


def test_without_a_threshold_there_are_no_spikes():
    assert Watched(spike_threshold=None).feed(*quiet(20), 50.0).events() == []


def test_a_few_steps_that_bring_nothing_are_events():
    watched = Watched().feed(5.0, math.nan, math.inf, 5.0, math.nan, 5.0)
    assert watched.events() == [("nonfinite", 2), ("nonfinite", 5)]
    assert not watched.log.diverged


@pytest.mark.parametrize("late", [False, True])
def test_many_steps_that_bring_nothing_end_the_run(late):
    watched = Watched().feed(5.0, math.nan, math.nan, math.nan, late=late)
    assert watched.events() == [("nonfinite", 2), ("diverged", 4)]
    assert watched.log.reason == "the loss is nan in the last of 3 steps in a row without effect"


def test_skipping_everything_ends_the_run_and_skipping_something_does_not():
    some = Watched().feed(*quiet(9), skipped=1)
    assert {name for name, _ in some.events()} == {"skipped"}
    nothing = Watched().feed(5.0).feed(5.1, 5.2, 5.1, skipped=4, nothing=True)
    assert ("diverged", 4) in nothing.events()
    assert "every update was skipped" in nothing.log.reason


def test_a_mixture_of_both_counts_as_one_row():
    watched = Watched().feed(math.nan).feed(5.0, skipped=4, nothing=True).feed(math.nan)
    assert watched.log.diverged


def test_without_a_limit_the_run_goes_on():
    assert not Watched(nonfinite_limit=None).feed(*[math.nan] * 50).log.diverged


def test_the_log_goes_on_where_it_was():
    whole = Watched().feed(*quiet(20), math.nan, math.nan)
    first = Watched().feed(*quiet(20), math.nan)
    second = Watched()
    second.log.load_state_dict(first.log.state_dict())
    second.step = first.step
    second.feed(math.nan)
    assert first.records + second.records == whole.records
    assert second.log.summary("finished") == whole.log.summary("finished")
    second.feed(math.nan)
    assert second.log.diverged
