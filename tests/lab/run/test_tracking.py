import subprocess
import sys
from types import SimpleNamespace

import pytest

from polargrad.lab.comparison.comparison import Comparison, run_comparison
from polargrad.lab.matrix import PROBLEMS
from polargrad.lab.run import runner
from polargrad.lab.run.tracking import Tracking, scalars, tracker
from polargrad.lab.studies.matrix.experiments import run_experiment
from tests.runs import tiny_spec

RECORDS = [
    {"kind": "step", "step": 1, "loss": 7.5, "seconds": 0.5, "lr": {"hidden": 0.01}, "units": 64},
    {"kind": "step", "step": 2, "loss": None, "seconds": 1.0, "lr": {"hidden": 0.02}, "units": 128},
    {"kind": "event", "step": 2, "event": "nonfinite", "message": "the loss is nan"},
    {"kind": "matrix", "step": 2, "role": "head", "parameter": "lm_head.weight", "shape": [4, 2], "nuclear_norm": 3.0},
]


@pytest.fixture
def calls(monkeypatch):
    made = []
    stand_in = SimpleNamespace(
        init=lambda **options: made.append(("init", options)),
        log=lambda figures: made.append(("log", figures)),
        finish=lambda: made.append(("finish", None)),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    return made


def test_figures_go_to_the_tracker_with_the_step_of_the_run(calls):
    spec = tiny_spec("corpus.txt", "one")
    with tracker("trackio", spec) as send:
        for record in RECORDS:
            send(record)
    (_, options), *logged, (end, _) = calls
    assert (options["project"], options["name"]) == ("polargrad", "one")
    assert options["config"] == spec.to_dict()
    assert [figures for _, figures in logged] == [
        {"step": 1, "train/loss": 7.5, "train/seconds": 0.5, "lr/hidden": 0.01, "train/units": 64},
        {"step": 2, "train/seconds": 1.0, "lr/hidden": 0.02, "train/units": 128},
        {"step": 2, "lm_head.weight/nuclear_norm": 3.0},
    ]
    assert end == "finish"


def test_a_tracker_that_fails_is_closed(calls):
    with pytest.raises(KeyError), tracker("trackio", tiny_spec("corpus.txt")) as send:
        send({})
    assert calls[-1][0] == "finish"


def test_a_missing_or_unknown_tracker_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ModuleNotFoundError, match="pip install trackio"), tracker("trackio", tiny_spec("corpus.txt")):
        pass
    with pytest.raises(ModuleNotFoundError, match="pip install trackio"):
        Tracking(track="trackio").check()
    with pytest.raises(ValueError, match="allowed are 'none', 'wandb', 'trackio'"):
        Tracking(track="mlflow").check()


def test_a_missing_tracker_is_said_before_there_is_a_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    (tmp_path / "corpus.txt").write_text("ab " * 4000)
    spec, tracking = tiny_spec(tmp_path / "corpus.txt"), Tracking(track="trackio")
    with pytest.raises(ModuleNotFoundError, match="pip install trackio"):
        runner.run(spec, tmp_path / "one", tracking=tracking)
    with pytest.raises(ModuleNotFoundError, match="pip install trackio"):
        run_comparison(Comparison((spec,)), tmp_path / "two", tracking=tracking)
    with pytest.raises(ModuleNotFoundError, match="pip install trackio"):
        run_experiment(PROBLEMS["quadratic"], tmp_path / "three", tracking=tracking)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_events_have_no_figures():
    assert not dict(scalars(RECORDS[2]))


def test_trackers_are_imported_only_where_they_are_used():
    code = "import sys, polargrad.lab.run.tracking; assert not {'wandb', 'trackio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
