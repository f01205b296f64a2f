"""The search for learning rates, on losses that are a known function of them."""

import dataclasses
import math

import pytest

from polargrad.lab.comparison.rate_search import RateSearch, shortened
from polargrad.lab.train import Constant, Cosine, StepDecay, WarmupLinearDecay
from tests.runs import POLAR, tiny_spec


def rate_search(steps=200, **options):
    spec = tiny_spec("text.txt", "base", steps=steps)
    optimizer = {**spec.optimizer, "hidden": {**POLAR, "lr": 0.01}}
    schedule = WarmupLinearDecay(total=steps, warmup=10)
    return RateSearch(dataclasses.replace(spec, optimizer=optimizer, schedule=schedule), **options)


def searched(search, loss, most=100):
    """Ask and answer until nothing is pending; the losses, and what was known in the end."""
    losses = {}
    for _ in range(most):
        state = search.state(losses)
        if not state.pending:
            return losses, state
        for spec in state.pending:
            assert spec.name not in losses
            losses[spec.name] = loss(spec)
    raise AssertionError("the search does not end")


def bowl(hidden, tables):
    """A loss with its minimum at the given rates."""

    def loss(spec):
        rates = spec.learning_rates
        return math.log(rates["hidden"] / hidden) ** 2 + math.log(rates["head"] / tables) ** 2 + 1 / spec.loop.steps

    return loss


def test_roles_with_equal_options_move_together_and_vectors_stay():
    search = rate_search()
    assert [axis.roles for axis in search.axes] == [("hidden",), ("embedding", "head")]
    spec = search.spec((1, -1), 50)
    assert spec.learning_rates == {"hidden": 0.02, "embedding": 0.0015, "head": 0.0015, "vector": 3e-3}
    assert spec.name == "base@hidden.lr=0.02,embedding+head.lr=0.0015,steps=50"
    assert (spec.recipe, spec.loop.steps, spec.loop.eval_every, spec.probe) == ("base", 50, 0, ())
    assert spec.schedule == WarmupLinearDecay(total=50, warmup=2)


def test_halving_goes_over_a_quarter_and_half_of_the_steps():
    losses, state = searched(rate_search(), bowl(0.01, 3e-3))
    lengths = [int(name.rpartition("=")[2]) for name in losses]
    assert {steps: lengths.count(steps) for steps in (50, 100, 200)} == {50: 9, 100: 3, 200: 5}
    assert state.best.name == "base@hidden.lr=0.01,embedding+head.lr=0.003,steps=200"
    assert (state.bracketed, state.extensions) == (True, 1)


def test_short_runs_have_no_rungs():
    losses, state = searched(rate_search(steps=30), bowl(0.01, 3e-3))
    assert {name.rpartition("=")[2] for name in losses} == {"30"}
    assert state.bracketed


@pytest.mark.parametrize(("hidden", "tables"), [(0.08, 3e-3), (0.01, 1e-4), (0.16, 0.05), (1e-3, 1e-3)])
def test_the_grid_grows_until_the_best_rate_lies_inside(hidden, tables):
    losses, state = searched(rate_search(limit=20), bowl(hidden, tables))
    rates = state.best.learning_rates
    assert abs(math.log2(rates["hidden"] / hidden)) < 0.51
    assert abs(math.log2(rates["head"] / tables)) < 0.51
    assert state.bracketed
    tried = {name.rpartition(",")[0] for name in losses if name.endswith("=200")}
    best = state.best.name.rpartition(",")[0]
    assert best in tried
    assert len(tried) >= 5


def test_without_halving_every_run_has_full_length():
    losses, state = searched(rate_search(limit=20, halving=False), bowl(0.08, 1e-4))
    assert {name.rpartition("=")[2] for name in losses} == {"200"}
    _, halved = searched(rate_search(limit=20), bowl(0.08, 1e-4))
    assert state.bracketed
    assert state.best.learning_rates == halved.best.learning_rates
    assert len(losses) < 3 * len(state.best.learning_rates) * (state.extensions + 1)


def test_at_the_limit_the_best_stands_and_is_not_called_bracketed():
    _, state = searched(rate_search(limit=2), bowl(10.0, 3e-3))
    assert not state.bracketed
    assert state.extensions == 2
    assert state.best.learning_rates["hidden"] == 0.08
    _, none = searched(rate_search(limit=0), bowl(10.0, 3e-3))
    assert (none.extensions, none.bracketed) == (0, False)


def test_what_diverged_loses_and_counts_as_a_worse_neighbour():
    def loss(spec):
        return None if spec.learning_rates["hidden"] > 0.01 else bowl(0.02, 3e-3)(spec)

    _, state = searched(rate_search(), loss)
    assert state.best.learning_rates["hidden"] == 0.01
    assert state.bracketed


def test_where_all_diverge_the_search_goes_down_and_ends():
    _, state = searched(rate_search(limit=3), lambda spec: None)
    assert state.best.learning_rates["hidden"] < 0.005
    assert not state.bracketed


def test_the_search_is_a_function_of_what_has_ended():
    whole, end = searched(rate_search(), bowl(0.05, 1e-3))
    for known in range(0, len(whole), 3):
        some = dict(list(whole.items())[:known])
        state = rate_search().state(some)
        while state.pending:
            some |= {spec.name: whole[spec.name] for spec in state.pending}
            state = rate_search().state(some)
        assert state == end


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"limit": -1}])
def test_bad_settings_are_errors(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        rate_search(**options)


@pytest.mark.parametrize(
    ("schedule", "short"),
    [
        (Constant(), Constant()),
        (Cosine(total=200, warmup=20, final=0.1), Cosine(total=50, warmup=5, final=0.1)),
        (StepDecay(25, 0.5), StepDecay(6, 0.5)),
        (StepDecay(2, 0.5), StepDecay(1, 0.5)),
    ],
)
def test_schedules_are_squeezed(schedule, short):
    assert shortened(schedule, 200, 50) == short
