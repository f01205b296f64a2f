"""`polargrad compare` and `polargrad resume` as a person meets them."""

import pytest

from polargrad.lab.cli import main as cli
from polargrad.lab.comparison import request
from polargrad.lab.recipes import NamedComparison
from polargrad.lab.run.folder import find_runs, read_run
from tests.runs import patch_recipes, tiny_text


@pytest.fixture
def tiny_recipes(tmp_path, monkeypatch):
    """Two recipes that run in a moment, and a folder of our own to run in."""
    patch_recipes(tmp_path, monkeypatch, steps=2)
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
    code, _, err = _run(capsys, "resume", "c/adamw@seed=42", "--jobs", "2")
    assert (code, "--jobs: c/adamw@seed=42 is a single run" in err) == (2, True)


def test_a_grid_of_rates_ends_with_its_tables(capsys, tiny_recipes):
    sweep = ("--sweep", "rates=1,3", "--seeds", "2")
    code, out, err = _run(capsys, "compare", "adamw", "polar", *sweep, "--out", "c")
    assert code == 0, err
    assert "8 ended, 0 known to come" in err
    assert "sensitivity" in out
    assert "spikes; largest rise" in out
    assert "Note: polar: the best rates (" in out or "Note: adamw: the best rates (" in out
    assert "<h2>The grid</h2>" in (tiny_recipes / "c" / "report.html").read_text()
    (tiny_recipes / "c" / "polar@rates=3@seed=43" / "summary.json").unlink()
    code, partly, _ = _run(capsys, "report", "c")
    assert code == 0
    assert partly != out
    code, _, err = _run(capsys, "resume", "c")  # only what is missing is made
    assert (code, "8 ended, 0 known to come" in err, err.count("ended, ")) == (0, True, 1)


def test_a_comparison_with_a_name_brings_its_grid(capsys, tiny_recipes, monkeypatch):
    made = NamedComparison("Two.", ("adamw", "polar"), ("rates=1,2",), steps=3, look_every=1)
    monkeypatch.setattr(request, "COMPARISONS", {"pair": made})
    code, _, err = _run(capsys, "compare", "pair", "--out", "c")
    assert code == 0, err
    runs = [read_run(path) for path in find_runs(tiny_recipes / "c")]
    assert {run.spec.name for run in runs} == {f"{name}@rates={rate}" for name in ("adamw", "polar") for rate in (1, 2)}
    assert {(run.spec.loop.steps, run.spec.loop.eval_every) for run in runs} == {(3, 1)}
    code, _, err = _run(capsys, "compare", "pair", "--steps", "2", "--sweep", "rates=1", "--out", "d")
    assert code == 0, err
    assert {read_run(path).spec.loop.steps for path in find_runs(tiny_recipes / "d")} == {2}
    assert len(find_runs(tiny_recipes / "d")) == 2
    for options, complaint in (
        (("adamw",), "names a whole comparison; give it alone"),
        (("--tune",), "has a grid of its own"),
        (("--steps", "0"), "at least 1"),
    ):
        code, _, err = _run(capsys, "compare", "pair", *options, "--out", "e")
        assert code == 2
        assert complaint in err
    assert not (tiny_recipes / "e").exists()


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
        (("--seeds", "0"), "--seeds must be an integer of at least 1"),
        (("--minutes", "1", "--steps", "3"), "give one of the two"),
        (("--minutes", "-1"), "--minutes must be a finite number above 0; got -1.0"),
        (("--tune", "--sweep", "hidden.lr=1,2"), "--sweep: a search makes its own grid; leave it out"),
        (("--tune", "--ratio", "1"), "ratio"),
        (("--ratio", "3"), "--ratio: options of a search; add --tune"),
        (("--no-halving", "--extend", "2"), "--extend, --no-halving: options of a search; add --tune"),
        (("--jobs", "0"), "jobs must be an integer of at least 1"),
        (("--sweep", "warmup=1"), "the schedule of adamw, constant, has no warm-up"),
        (("--sweep", "rates=0"), "rates takes positive numbers"),
        (("--sweep", "elbow.lr=1"), "no recipe here has a role 'elbow'"),
        (("--sweep", "rates=1,2", "--sweep", "hidden.lr=1"), "both set the lr of hidden"),
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


def test_minutes_are_of_every_recipe(capsys, tiny_recipes):
    code, _, err = _run(capsys, "compare", "adamw", "polar", "--minutes", "0.006", "--out", "c")
    assert code == 0, err
    assert all(read_run(path).spec.loop.steps >= 1 for path in find_runs(tiny_recipes / "c"))


def test_a_folder_in_which_nothing_has_ended_is_said(capsys, tiny_recipes):
    assert _run(capsys, "compare", "adamw", "--out", "c")[0] == 0
    (tiny_recipes / "c" / "adamw" / "summary.json").unlink()
    code, _, err = _run(capsys, "report", "c")
    assert code == 2
    assert "no run in c has ended yet" in err


LAUNCH = """
[compare]
names = ["adamw", "muon+adamw"]
set = ["adamw.head.lr=0.01"]
seeds = 2
tensorboard = true
out = "c"

[model]
hidden_size = 16
layers = 1
heads = 2
kv_heads = 1
sequence = 16
vocabulary = 300

[data]
data = "text.txt"

[schedule]
steps = 2

[training]
batch = 4

[evaluation]
eval_every = 1
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    tiny_text(tmp_path)
    (tmp_path / "compare.toml").write_text(LAUNCH)
    return tmp_path


def test_a_launch_file_says_what_is_compared_and_on_what(capsys, launch):
    code, out, err = _run(capsys, "compare", "compare.toml", "--dry-run")
    assert code == 0, err
    assert not (launch / "c").exists()
    assert "4 runs, 8 steps in all." in out
    code, _, err = _run(capsys, "compare", "compare.toml")
    assert code == 0, err
    runs = {run.spec.name: run for run in map(read_run, find_runs(launch / "c"))}
    assert set(runs) == {f"{name}@seed={seed}" for name in ("adamw", "muon+adamw") for seed in (42, 43)}
    assert {run.spec.objective.hidden_size for run in runs.values()} == {16}
    assert runs["adamw@seed=42"].spec.learning_rates["head"] == 0.01
    assert runs["muon+adamw@seed=42"].spec.learning_rates["head"] == 0.005
    assert all(list((run.path / "tensorboard").iterdir()) for run in runs.values())
    # flags override the file
    code, _, err = _run(capsys, "compare", "compare.toml", "adamw", "--seeds", "1", "--steps", "1", "--out", "d")
    assert code == 0, err
    (one,) = map(read_run, find_runs(launch / "d"))
    assert (one.spec.name, one.spec.loop.steps, one.spec.learning_rates["head"]) == ("adamw", 1, 0.01)


@pytest.mark.parametrize(
    ("changed", "arguments", "complaint"),
    [
        ('seeds = 2 -> seeds = "many"', (), "[compare] seeds must be an integer"),
        ("seeds = 2 -> sedes = 2", (), "unknown key 'sedes'; did you mean 'seeds'"),
        ('batch = 4 -> recipe = "adamw"', (), "[training]: unknown key 'recipe'"),
        ("batch = 4 -> batch = 4\nseed = 3", (), "[training] seed is of a single run"),
        ("[evaluation] -> [run]\nname = 'x'\n[evaluation]", (), "[run] name is of a single run"),
        ("[schedule] -> [optimizer]\nset = ['lr=1']\n[schedule]", (), "[optimizer] set is of a single run"),
        ("steps = 2 -> minutes = 0.1", ("--dry-run",), "give a dry run --steps"),
        ("steps = 2 -> steps = 2\ntokens = 3", (), "give one of them"),
        ('names = ["adamw", "muon+adamw"] -> names = ["valley"]', (), "is a comparison of small runs"),
        ("[compare] -> [[compare]]", (), "compare is a table"),
    ],
)
def test_a_launch_file_that_does_not_fit_is_one_sentence(capsys, launch, changed, arguments, complaint):
    before, _, after = changed.partition(" -> ")
    text = LAUNCH.replace(before, after)
    assert text != LAUNCH
    (launch / "compare.toml").write_text(text)
    code, _, err = _run(capsys, "compare", "compare.toml", *arguments)
    assert (code, err.count("\n")) == (2, 1), err
    assert complaint in err
    assert not (launch / "c").exists()
