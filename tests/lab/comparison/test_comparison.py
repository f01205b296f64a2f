"""Comparisons: what they consist of, that they can be stopped, and that several processes make the same."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polargrad.lab.comparison.comparison import Comparison, resume_comparison, run_comparison
from polargrad.lab.comparison.page import Findings
from polargrad.lab.run import runner, workers
from polargrad.lab.run.folder import COMPARISON, SPEC, SUMMARY, find_runs, read_run, status_of
from tests.runs import StopsAt, tiny_spec, tiny_text

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus with a cache of its own."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLARGRAD_CACHE", str(folder / "cache"))
        yield tiny_text(folder)


def asked(text, *, steps=3, **options):
    recipes = (tiny_spec(text, "adamw", steps=steps), tiny_spec(text, "polar", steps=steps, polar=True))
    return Comparison(recipes, **options)


def losses(folder):
    return {path.name: [record["loss"] for record in read_run(path).of_kind("step")] for path in find_runs(folder)}


def answered(whole, answer):
    """The names of the runs that a comparison asks for, in the order in which one job makes them."""
    known, order = {}, []
    while pending := whole.pending(known):
        order.append(pending[0].name)
        known[pending[0].name] = answer(pending[0])
    return order


def test_seeds_are_paired_over_recipes():
    whole = asked("text.txt", seeds=(1, 2))
    assert answered(whole, lambda spec: 1.0) == ["adamw@seed=1", "adamw@seed=2", "polar@seed=1", "polar@seed=2"]
    first, *_, last = whole.pending({})
    assert (first.seed, first.recipe, last.seed) == (1, "adamw", 2)


def test_a_grid_takes_the_place_of_every_recipe():
    whole = asked("text.txt", seeds=(1, 2), sweep=("rates=1,2",))
    names = ["adamw@rates=1", "adamw@rates=2", "polar@rates=1", "polar@rates=2"]
    assert answered(whole, lambda spec: 1.0) == [f"{name}@seed={seed}" for name in names for seed in (1, 2)]
    assert list(whole.places) == [f"{name}@seed={seed}" for name in names for seed in (1, 2)]
    assert {spec.recipe for spec in whole.pending({})} == {"adamw", "polar"}
    place = whole.places["polar@rates=2@seed=1"]
    assert [(axis.label, value) for axis, value in place.settings] == [("rates", 2)]
    assert place.spec.learning_rates["hidden"] == 0.02
    assert Comparison.from_dict(whole.to_dict()) == whole


def test_a_comparison_written_before_there_were_grids_is_read():
    plain = asked("text.txt").to_dict()
    del plain["sweep"]
    assert Comparison.from_dict(plain) == asked("text.txt")


def test_one_seed_needs_no_name():
    assert [spec.name for spec in asked("text.txt", seeds=(7,)).pending({})] == ["adamw", "polar"]
    assert {spec.seed for spec in asked("text.txt", seeds=(7,)).pending({})} == {7}


def test_rates_are_searched_with_a_seed_that_does_not_count():
    whole = asked("text.txt", tune=True, seeds=(1, 2), limit=3)

    def loss(spec):
        return abs(spec.learning_rates["embedding"] - 0.006)

    order = answered(whole, loss)
    searching, counting = [n for n in order if "steps=" in n], [n for n in order if "seed=" in n]
    assert order.index("adamw@seed=1") < order.index(next(n for n in searching if n.startswith("polar")))
    assert len(counting) == 4
    assert {spec.seed for spec in whole.pending({})} == {3}
    known = {}
    while pending := whole.pending(known):
        known.update({spec.name: loss(spec) for spec in pending})
        chosen = {spec.name: spec.learning_rates["embedding"] for spec in pending if "seed=" in spec.name}
        assert set(chosen.values()) <= {0.006}
    assert all(state.best.learning_rates["embedding"] == 0.006 for state in whole.searches(known).values())


@pytest.mark.parametrize("tuner", ["coordinate", "optuna"])
def test_all_numbers_are_searched_in_as_many_runs_as_are_given(text, tuner, tmp_path):
    if tuner == "optuna":
        pytest.importorskip("optuna")
    whole = asked(text, tune=True, tuner=tuner, runs=3, seeds=(1,))
    assert Comparison.from_dict(whole.to_dict()) == whole

    def loss(spec):
        return spec.optimizer["hidden"].get("weight_decay", 0.0) + spec.learning_rates["embedding"]

    order = answered(whole, loss)
    assert len(order) == 8
    assert [sum(name.startswith(recipe) and "try" in name for name in order) for recipe in ("adamw", "polar")] == [3, 3]
    run_comparison(whole, tmp_path / "out")
    findings = Findings.read(tmp_path / "out")
    assert {run.spec.seed for one in findings.shown for run in one.runs} == {1}
    assert "the search ended with its 3 runs" in " ".join(findings.warnings())
    assert len(findings.tried().rows) == 6


def test_a_comparison_survives_json(text):
    whole = asked(text, seeds=(1, 2), tune=True, ratio=1.5, limit=4)
    assert Comparison.from_dict(whole.to_dict()) == whole
    with pytest.raises(ValueError, match="format"):
        Comparison.from_dict({**whole.to_dict(), "format": 9})
    with pytest.raises(ValueError, match="a comparison has no 'speed'"):
        Comparison.from_dict({**whole.to_dict(), "speed": 9})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ()}, "nothing to compare"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"seeds": ()}, "at least one"),
        ({"tune": True, "ratio": 1.0}, "ratio"),
        ({"tune": True, "sweep": ("rates=1,2",)}, "tune or sweep"),
        ({"sweep": ("warmup=1",)}, "has no warm-up"),
        ({"sweep": ("rates=1,1.00000001",)}, "would be made twice"),
        ({"sweep": ("rates",)}, "cannot read the sweep"),
    ],
)
def test_bad_comparisons_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(asked("text.txt"), **changes)
    spec = tiny_spec("text.txt")
    with pytest.raises(ValueError, match="tiny is given twice"):
        Comparison((spec, spec))


def test_what_has_ended_is_not_repeated_and_what_was_stopped_goes_on(text, tmp_path):
    whole = asked(text, seeds=(1, 2))
    run_comparison(whole, tmp_path / "whole")
    labels = []

    def progress(label):
        labels.append(label)
        return StopsAt(2) if len(labels) == 2 else None

    with pytest.raises(runner.Interrupted, match=f"polargrad resume {tmp_path / 'cut'}"):
        run_comparison(whole, tmp_path / "cut", progress=progress)
    ended = tmp_path / "cut" / "adamw@seed=1" / SUMMARY
    written = ended.stat().st_mtime_ns
    assert status_of(tmp_path / "cut" / "adamw@seed=2") == "interrupted"
    lines = []
    resume_comparison(tmp_path / "cut", report=lines.append)
    assert ended.stat().st_mtime_ns == written
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert lines[0].startswith("2 ended, 2 known to come: adamw@seed=2 ")
    assert len(list((tmp_path / "cut").glob("*/checkpoints/step-*"))) == 4  # the last one of each
    with pytest.raises(FileExistsError, match="polargrad resume"):
        run_comparison(whole, tmp_path / "cut")


def test_runs_are_made_in_the_order_given_each_in_a_folder_of_its_name(text, tmp_path):
    labels = []
    recipes = tuple(tiny_spec(text, name, steps=1) for name in ("b", "a"))
    run_comparison(Comparison(recipes), tmp_path / "both", progress=labels.append)
    assert labels == ["b", "a"]
    assert (tmp_path / "both" / "a" / SPEC).is_file()


def test_two_jobs_make_what_one_makes(text, tmp_path):
    whole = asked(text, seeds=(1, 2))
    run_comparison(whole, tmp_path / "one", threads=1)
    run_comparison(whole, tmp_path / "two", jobs=2)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert read_run(tmp_path / "two" / "adamw@seed=1").environment["threads"] == 1


def test_an_error_in_a_job_is_the_comparison_s(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_comparison(asked(tmp_path / "no-such-text.txt"), tmp_path / "c", jobs=2)


@pytest.mark.parametrize("options", [{"jobs": 0}, {"threads": 0}])
def test_bad_numbers_of_processes_are_errors(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        workers.run_all(list, lambda name: None, tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_comparison_of_two_jobs_survives_blows(text, tmp_path, blow):
    """Stopped again and again from outside, it ends with the losses of one that nobody stopped."""
    whole = asked(text, seeds=(1, 2), steps=150)
    run_comparison(whole, tmp_path / "whole", threads=1)
    for copy in ("once", "cut"):
        (tmp_path / copy).mkdir()
        (tmp_path / copy / COMPARISON).write_bytes((tmp_path / "whole" / COMPARISON).read_bytes())
    command = [sys.executable, "-m", "polargrad", "resume", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "once")], env=environment, check=True, capture_output=True)
    duration, stopped = time.monotonic() - began, 0
    command.append(str(tmp_path / "cut"))
    for wait in (0.6 * duration, 0.7 * duration, 0.7 * duration, 600.0):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            process.communicate(timeout=wait)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(blow)
        _, said = process.communicate()  # and until orphans of a parent that was killed have saved
        stopped += 1
        assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[blow], said
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert stopped
