import copy
import dataclasses
import json
import math
import pickle

import pytest

from polargrad.lab import RECIPES, LanguageModel, RunSpec, spec_of
from polargrad.lab.train import LoopConfig, WarmupLinearDecay
from tests.runs import tiny_spec


@pytest.mark.parametrize("spec", [*(spec_of(name) for name in RECIPES), tiny_spec("text.txt", polar=True)])
def test_a_spec_survives_json(spec):
    back = RunSpec.from_json(spec.to_json())
    assert back == spec
    assert back.to_json() == spec.to_json()
    assert back.content_hash == spec.content_hash
    assert hash(back) == hash(spec)


def test_a_spec_survives_copying_and_pickling():
    spec = spec_of("adamw")
    assert copy.deepcopy(spec) == spec == pickle.loads(pickle.dumps(spec))


def test_a_spec_cannot_be_changed():
    options = {"hidden": {"rule": "adamw", "lr": 1e-3}}
    spec = RunSpec("one", LanguageModel(), options)
    options["hidden"]["lr"] = 1.0
    assert spec.learning_rates == {"hidden": 1e-3}
    with pytest.raises(TypeError):
        spec.optimizer["hidden"]["lr"] = 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.seed = 1


def test_the_hash_is_of_what_runs_and_not_of_its_name():
    spec = spec_of("adamw")
    assert dataclasses.replace(spec, name="other", description="words", recipe="x").content_hash == spec.content_hash
    for changed in (
        dataclasses.replace(spec, seed=1),
        dataclasses.replace(spec, objective=LanguageModel(batch=8)),
        dataclasses.replace(spec, loop=LoopConfig(steps=10)),
        spec.with_option("hidden", "lr", 1e-2),
    ):
        assert changed.content_hash != spec.content_hash


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", ".hidden", " a", "a\nb", "x" * 121, 3, None])
def test_a_name_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="a run cannot be called"):
        RunSpec(name, LanguageModel(), {"hidden": {"lr": 1e-3}})


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf, "1e-3", None, True])
def test_a_rate_that_is_no_positive_number_is_refused(rate):
    with pytest.raises(ValueError, match="positive finite number"):
        RunSpec("one", LanguageModel(), {"hidden": {"lr": rate}})


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1: 2}, [math.nan]])
def test_what_json_cannot_carry_is_refused_by_its_place(value):
    with pytest.raises(ValueError, match=r"optimizer\.hidden\.extra"):
        RunSpec("one", LanguageModel(), {"hidden": {"lr": 1e-3, "extra": value}})


def test_other_bad_specs_are_refused():
    options = {"hidden": {"lr": 1e-3}}
    with pytest.raises(ValueError, match="at least one role"):
        RunSpec("one", LanguageModel(), {})
    with pytest.raises(ValueError, match="seed"):
        RunSpec("one", LanguageModel(), options, seed=-1)
    with pytest.raises(ValueError, match="make total larger"):
        RunSpec("one", LanguageModel(), options, schedule=WarmupLinearDecay(total=5), loop=LoopConfig(steps=6))
    with pytest.raises(ValueError, match="no role 'head'"):
        RunSpec("one", LanguageModel(), options).with_option("head", "lr", 1.0)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        LanguageModel(hidden_size=10, heads=3)
    with pytest.raises(ValueError, match="layers"):
        LanguageModel(layers=0)
    with pytest.raises(ValueError, match="kv_heads"):
        LanguageModel(heads=3, kv_heads=2)
    with pytest.raises(ValueError, match="compiled is 'yes'; give a bool"):
        LanguageModel(compiled="yes")
    with pytest.raises(ValueError, match="corpus is 3; give a str"):
        LanguageModel(corpus=3)


def _changed(**changes):
    return {**json.loads(spec_of("adamw").to_json()), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_changed(format=2), "format 2"),
        (_changed(colour="red"), "no 'colour'"),
        (_changed(objective={"kind": "cubic"}), "unknown kind of objective 'cubic'"),
        (_changed(objective={"kind": "language-model", "depth": 3}), "no 'depth'"),
        (_changed(objective=3), "objective must be an object"),
        (_changed(loop={}), "lacks steps"),
        (_changed(schedule={"name": "staircase"}), "staircase"),
        ({"format": 1, "objective": {"kind": "language-model"}}, "schedule must be"),
        ([], "must be an object"),
    ],
)
def test_a_written_spec_that_does_not_fit_says_why(data, message):
    with pytest.raises(ValueError, match=message):
        RunSpec.from_dict(data)


def test_an_unknown_recipe_names_its_neighbour():
    with pytest.raises(ValueError, match="did you mean 'muon\\+adamw'"):
        spec_of("muon-adamw")


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_recipes_fit_any_number_of_steps(steps):
    for name in RECIPES:
        assert spec_of(name, steps=steps, seed=7).loop.steps == steps
