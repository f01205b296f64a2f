"""`polargrad compare` and `polargrad resume` as a person meets them."""

from functools import partial

import pytest

from polargrad import cli
from polargrad.experiments import budget, recipes
from polargrad.experiments.store import find_runs, read_run
from tests.runs import tiny_spec, tiny_text


@pytest.fixture
def tiny_recipes(tmp_path, monkeypatch):
    """Two recipes that run in a moment, and a folder of our own to run in."""
    text = tiny_text(tmp_path)
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def recipe(name, *, steps=None, seed=42):
        return tiny_spec(text, name, steps=2 if steps is None else steps, seed=seed, polar=name == "polar")

    monkeypatch.setattr(recipes, "RECIPES", {name: partial(recipe, name) for name in ("adamw", "polar")})
    return tmp_path


def _run(capsys, *arguments):
    code = cli.main(list(arguments))
    return code, *capsys.readouterr()


def test_seeds_end_with_spreads_and_a_page(capsys, tiny_recipes):
    code, out, err = _run(capsys, "compare", "adamw", "polar", "--seeds", "2", "--out", "c")
    assert code == 0, err
    assert "±" in out
    assert "steps to the final loss of" in out
    assert "Report: c/report.html" in out
    assert "4 ended, 0 known to come" in err
    assert {path.name for path in find_runs(tiny_recipes / "c")} == {
        f"{name}@seed={seed}" for name in ("adamw", "polar") for seed in (42, 43)
    }
    code, again, _ = _run(capsys, "report", "c")
    assert (code, again) == (0, out)
    code, again, _ = _run(capsys, "resume", "c")  # nothing is left to do
    assert (code, again) == (0, out)


def test_a_search_ends_with_what_it_tried(capsys, tiny_recipes):
    code, out, err = _run(capsys, "compare", "polar", "--tune", "--extend", "0", "--out", "c")
    assert code == 0, err
    names = [path.name for path in find_runs(tiny_recipes / "c")]
    assert sum("@hidden.lr=" in name for name in names) == 9
    assert "polar@seed=42" in names
    page = (tiny_recipes / "c" / "report.html").read_text()
    assert "Learning rates tried" in page
    assert "search" in out or "worse one below and above" in page


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--minutes", "1", "--steps", "3"), "give one of the two"),
        (("--minutes", "-1"), "positive"),
        (("--tune", "--sweep", "hidden.lr=1,2"), "give it or --sweep"),
        (("--tune", "--ratio", "1"), "ratio"),
        (("--jobs", "0"), "jobs must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, tiny_recipes, options, complaint):
    code, _, err = _run(capsys, "compare", "adamw", *options, "--out", "c")
    assert code == 2
    assert complaint in err


def test_an_existing_comparison_is_left_alone(capsys, tiny_recipes):
    assert _run(capsys, "compare", "adamw", "--out", "c")[0] == 0
    code, _, err = _run(capsys, "compare", "adamw", "--out", "c")
    assert code == 2
    assert "`polargrad resume c` goes on" in err


def test_a_spec_of_an_earlier_run_can_be_compared(capsys, tiny_recipes):
    assert _run(capsys, "run", "polar", "--out", "earlier")[0] == 0
    code, _, err = _run(capsys, "compare", "adamw", "earlier/spec.json", "--out", "c")
    assert code == 0, err
    assert [r["loss"] for r in read_run(tiny_recipes / "c" / "polar").of_kind("step")] == [
        r["loss"] for r in read_run(tiny_recipes / "earlier").of_kind("step")
    ]
    code, _, err = _run(capsys, "compare", "earlier/spec.json", "--steps", "9", "--out", "d")
    assert code == 2
    assert "fixes its 2 steps" in err


def test_minutes_become_steps(tiny_recipes, monkeypatch):
    steps = [{"kind": "step", "seconds": 100.0 + 2.0 * k} for k in range(13)]
    steps[0]["seconds"] = 0.0
    monkeypatch.setattr("polargrad.experiments.runner.train_unrecorded", lambda spec: steps)
    spec = recipes.spec_of("adamw")
    assert budget.steps_within(spec, 3.0) == 90
    with pytest.raises(ValueError, match="do not suffice"):
        budget.steps_within(spec, 0.001)


def test_minutes_are_of_every_recipe(capsys, tiny_recipes):
    code, _, err = _run(capsys, "compare", "adamw", "polar", "--minutes", "0.002", "--out", "c")
    assert code == 0, err
    assert all(read_run(path).spec.loop.steps >= 1 for path in find_runs(tiny_recipes / "c"))


def test_a_folder_in_which_nothing_has_ended_is_said(capsys, tiny_recipes):
    assert _run(capsys, "compare", "adamw", "--out", "c")[0] == 0
    (tiny_recipes / "c" / "adamw" / "summary.json").unlink()
    code, _, err = _run(capsys, "report", "c")
    assert code == 2
    assert "no run in c has ended yet" in err
