"""The command line as a person meets it: what it prints, where, and the exit code."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import polargrad
from polargrad.lab.cli import main as cli
from polargrad.lab.report import curves
from polargrad.lab.run import environment
from polargrad.lab.run.folder import RECORDS, read_run
from tests.runs import patch_recipes, written_run

CURVE = [(0, 8.0), (2, 6.0), (4, 5.0)]


@pytest.fixture
def tiny_recipes(tmp_path, monkeypatch):
    """Two recipes that run in a moment, and a folder of our own to run in."""
    patch_recipes(tmp_path, monkeypatch, steps=4)
    # Figures take longer than the runs, and have tests of their own.
    monkeypatch.setattr(curves, "draw", lambda run: [])
    return tmp_path


def _run(capsys, *arguments):
    code = cli.main(list(arguments))
    return code, *capsys.readouterr()


def test_alone_it_explains_itself(capsys):
    code, out, err = _run(capsys)
    assert code == 0
    assert "polargrad compare adamw muon+adamw muon+polargrad" in out
    assert not err


def test_what_explains_itself_names_every_command_with_an_example(capsys):
    alone = _run(capsys)
    assert _run(capsys, "--help") == _run(capsys, "-h") == _run(capsys, "help") == alone
    for command in cli.COMMANDS:
        assert f"  polargrad {command} " in alone[1]
    for code in (0, 1, 2, 130, 143):
        assert str(code) in alone[1].rpartition("Exit codes")[2]


def test_the_version(capsys):
    commit = environment.commit()
    version = f"polargrad {polargrad.__version__}" + (f" (commit {commit})" if commit else "")
    assert _run(capsys, "--version") == (0, f"{version}\n", "")


def test_every_command_and_exit_code_is_in_the_docs():
    page = (Path(polargrad.__file__).parents[2] / "docs" / "command-line.md").read_text()
    for command in cli.COMMANDS:
        assert f"| `{command}` |" in page
    for code in (0, 1, 2, 130, 143):
        assert f"\n| {code} | " in page


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = _run(capsys, command, "--help")
    assert code == 0
    assert f"Example: polargrad {command}" in out


def test_an_option_without_a_default_does_not_speak_of_one(capsys):
    _, out, _ = _run(capsys, "bench", "--help")
    assert "default: None" not in out
    assert "(default: )" not in out
    assert "(default: cpu)" in out


def test_the_recipes_are_listed(capsys):
    code, out, _ = _run(capsys, "list")
    assert code == 0
    assert all(name in out for name in ("adamw", "muon+adamw", "muon+polargrad"))
    assert "`polargrad compare phenomena`" in out


def test_a_comparison_cannot_be_run_as_one_recipe(capsys):
    code, _, err = _run(capsys, "run", "phenomena")
    assert code == 2
    assert "`polargrad compare phenomena` runs it" in err


def test_info_tells_the_versions(capsys):
    code, out, _ = _run(capsys, "info")
    assert code == 0
    assert "torch" in out
    assert "transformers" in out


def test_a_run_says_how_it_ended_and_where_it_is(capsys, tiny_recipes):
    code, out, err = _run(capsys, "run", "polar", "--steps", "2", "--out", "here")
    assert code == 0
    assert "polar ends at" in out
    assert "Records are in here" in out
    assert "Results go to here" in err
    assert read_run(tiny_recipes / "here").spec.loop.steps == 2
    code, _, _ = _run(capsys, "run", "here/spec.json", "--out", "again")
    assert code == 0
    first, again = (read_run(tiny_recipes / name) for name in ("here", "again"))
    assert again.spec == first.spec
    assert [r["loss"] for r in again.of_kind("step")] == [r["loss"] for r in first.of_kind("step")]


def test_a_comparison_ends_with_a_report(capsys, tiny_recipes):
    code, out, _ = _run(
        capsys, "compare", "adamw", "polar", "--steps", "2", "--sweep", "hidden.lr=0.001,0.01", "--out", "c"
    )
    assert code == 0
    assert "Report: c/report.html" in out
    assert "tried before" not in out
    assert len(list((tiny_recipes / "c").glob("*@hidden.lr=*"))) == 4
    assert "Note: adamw: the best hidden rate" in out
    code, out, _ = _run(capsys, "report", "c")
    assert code == 0
    assert "Report: c/report.html" in out
    code, out, _ = _run(capsys, "report", "c", "c/adamw@hidden.lr=0.01", "--out", "page.html")
    assert code == 0
    assert (tiny_recipes / "page.html").is_file()


def test_without_a_folder_results_go_to_a_dated_one(capsys, tiny_recipes):
    code, _, _ = _run(capsys, "run", "adamw", "--steps", "1")
    assert code == 0
    (made,) = (tiny_recipes / "runs").iterdir()
    assert made.name.startswith("adamw-20")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'? The allowed names are 'list', 'run'"),
        (["run", "adamv"], "did you mean 'adamw'"),
        (["run", "adamw", "--steps", "0"], "steps must be"),
        (["run", "adamw", "--seed", "-1"], "seed must be an integer of at least 0"),
        (["run", "nowhere.json"], "nowhere.json"),
        (["run", "adamw", "--out", "cache"], "cache exists"),
        (["compare"], "nothing to compare"),
        (["compare", "adamw", "adamw"], "given twice"),
        (["compare", "adamw", "--sweep", "hidden.lr"], "cannot read the sweep"),
        (["compare", "adamw", "--sweep", "conv.lr=1,2"], "no recipe here has a role 'conv'"),
        (["report"], "nothing to report"),
        (["report", "nowhere"], "is not a folder"),
        (["report", "cache"], "holds no run"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tiny_recipes, arguments, message):
    (tiny_recipes / "cache").mkdir(exist_ok=True)
    code, out, err = _run(capsys, *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("polargrad: ")
    assert message in last
    assert "Traceback" not in err
    assert not out
    assert not (tiny_recipes / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "missing from polargrad run: NAME "),
        (["run", "adamw", "--steps", "many"], "--steps cannot be 'many'; "),
        (["run", "adamw", "--stepz", "3"], "unrecognized options: --stepz, 3; did you mean --steps?; "),
        (["run", "adamw", "--seed", "1.5"], "--seed"),
        (["bench", "nosuch"], "nosuch"),
        (["compare", "adamw", "--sweep"], "--sweep"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_arguments_that_cannot_be_read_are_one_sentence(capsys, monkeypatch, arguments, message, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = _run(capsys, *arguments)
    assert code == 2
    assert not out
    assert err.startswith("polargrad: ")
    assert message in err
    assert f"`polargrad {arguments[0]} --help` shows what it takes" in err
    assert err.count("\n") == 1
    assert not set("│─╭╰\x1b") & set(err)


def test_a_damaged_record_is_bad_input(capsys, tmp_path):
    written_run(tmp_path / "one", CURVE)
    with (tmp_path / "one" / RECORDS).open("a") as file:
        file.write('{"kind":"ev')
    code, _, err = _run(capsys, "report", str(tmp_path / "one"))
    assert code == 2
    assert f"{RECORDS}, line " in err
    assert "Delete line" in err


def test_an_existing_page_is_refused(capsys, tmp_path):
    written_run(tmp_path / "one", CURVE)
    (tmp_path / "page.html").write_text("kept")
    code, _, err = _run(capsys, "report", str(tmp_path / "one"), "--out", str(tmp_path / "page.html"))
    assert code == 2
    assert "exists and is left as it is" in err
    assert (tmp_path / "page.html").read_text() == "kept"


def _failing(monkeypatch, error):
    def dispatch(_arguments):
        raise error

    monkeypatch.setattr("polargrad.lab.cli.main.dispatch", dispatch)


def test_a_failure_is_1_and_shows_its_traceback_only_when_asked(capsys, monkeypatch):
    _failing(monkeypatch, RuntimeError("it broke"))
    code, _, err = _run(capsys, "list")
    assert code == 1
    assert err == "polargrad: RuntimeError: it broke; run again with --debug for the traceback\n"
    with pytest.raises(RuntimeError):
        cli.main(["list", "--debug"])


def test_a_missing_package_says_what_to_install(capsys, monkeypatch):
    _failing(monkeypatch, ModuleNotFoundError("No module named 'tyro'", name="tyro"))
    code, _, err = _run(capsys, "list")
    assert code == 1
    assert 'pip install "polargrad[lab]"' in err


def test_an_interruption_is_130_and_says_what_is_safe(capsys, monkeypatch, tmp_path):
    from polargrad.lab.run.runner import Interrupted

    _failing(monkeypatch, Interrupted(tmp_path / "one"))
    code, _, err = _run(capsys, "list")
    assert code == 130
    assert f"everything until then is in {tmp_path / 'one'}" in err
    _failing(monkeypatch, KeyboardInterrupt())
    assert _run(capsys, "list")[0] == 130


def _child(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_the_laboratory_is_imported_only_when_it_is_used():
    heavy = ("tyro", "rich", "transformers", "tokenizers", "matplotlib", "jinja2", "tensorboard")
    script = f"import sys, polargrad.lab.cli.main; print([name for name in {heavy} if name in sys.modules])"
    assert _child(script).stdout.strip() == "[]"


def test_without_the_laboratory_one_sentence_says_what_to_install():
    script = (
        "import sys; sys.modules['tyro'] = None; from polargrad.lab.cli.main import main;"
        "raise SystemExit(main(['run', 'adamw']))"
    )
    done = _child(script)
    assert done.returncode == 1
    assert done.stderr == 'polargrad: tyro is not installed, which this command needs; pip install "polargrad[lab]"\n'


def test_every_package_that_a_command_imports_has_its_extra():
    source = Path(polargrad.__file__).parent
    trees = [ast.parse(path.read_text()) for path in source.rglob("*.py") if "integrations" not in path.parts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    tops = {name.partition(".")[0] for name in names} - {"polargrad", "torch", "mpmath", *sys.stdlib_module_names}
    assert tops - {"triton"} <= set(cli._EXTRA)  # which torch brings where it is used
    extras = tomllib.loads((source.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(cli._EXTRA.values()) <= set(extras)


def test_a_reader_that_goes_away_is_no_traceback():
    script = (
        "import os, sys; from polargrad.lab.cli.main import main;"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1);"
        "sys.exit(main(['list']))"
    )
    assert "Traceback" not in _child(script).stderr


def test_an_interrupted_benchmark_keeps_what_it_measured(capsys, monkeypatch, tmp_path):
    from polargrad.lab.studies import engine

    measured = engine.benchmark

    def impatient(batches, names, *, repeats, report):
        def told(measurement):
            report(measurement)
            raise KeyboardInterrupt

        return measured(batches, names, repeats=repeats, report=told)

    monkeypatch.setattr(engine, "benchmark", impatient)
    asked = ("--shapes", "12x8", "--spectra", "gaussian", "--methods", "svd", "qdwh", "--repeats", "1")
    code, out, err = _run(capsys, "bench", "polar", *asked, "--out", str(tmp_path / "b"))
    assert code == 130
    assert "[1 of 2" in out
    assert f"the 1 of 2 measurements made until then are in {tmp_path / 'b'}" in err
    assert len((tmp_path / "b" / "polar.csv").read_text().splitlines()) == 2


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize(
    "command",
    ["run adamw", "run quadratic", "run theory", "pretrain", "compare adamw muon+adamw", "protocol adamw muon+adamw"],
)
def test_a_folder_that_cannot_be_made_is_said_before_any_text_is_read(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path))
    code, _, said = _run(capsys, *command.split(), "--out", "/proc/nowhere/run")
    assert code == 2
    assert said.startswith("polargrad: ")
    assert "cannot make the folder /proc/nowhere/run" in said
    assert not list(tmp_path.iterdir())
