"""`polargrad runs`, rows for other programs, and what works where only torch and mpmath are installed."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest

from polargrad.lab.cli import main as cli
from tests.runs import written_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three runs in a folder of runs, one of them in a comparison; and a damaged one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    curves = {"one": [(0, 8.0), (4, 5.0)], "search/two": [(0, 8.0), (4, 4.0)], "three": [(0, 8.0), (4, None)]}
    for age, (name, curve) in enumerate(curves.items()):
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        status = "diverged" if name == "three" else "finished"
        written_run(path, curve, name=path.name, recipe="adamw" if age else "muon", status=status)
        os.utime(path / "records.jsonl", (1000 + age, 1000 + age))
    return tmp_path


def said(capsys, *arguments):
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def names(out):
    return [line.split()[0].rpartition("/")[2] for line in out.splitlines() if line.startswith("runs/")]


def test_the_runs_below_a_folder_are_listed(folder, capsys):
    out, _ = said(capsys, "runs")
    assert names(out) == ["one", "two", "three"]
    assert "3 of 3 runs below runs" in out
    assert names(said(capsys, "runs", "--recipe", "adamw")[0]) == ["two", "three"]
    assert names(said(capsys, "runs", "--status", "diverged")[0]) == ["three"]
    assert names(said(capsys, "runs", "--name", "search")[0]) == ["two"]
    assert names(said(capsys, "runs", "--sort", "loss")[0]) == ["three", "one", "two"]
    assert names(said(capsys, "runs", "--sort", "loss", "--last", "1")[0]) == ["two"]


def test_a_damaged_run_is_named_and_the_others_are_listed(folder, capsys):
    (folder / "runs" / "one" / "records.jsonl").write_text("not a record\n")
    out, err = said(capsys, "runs")
    assert set(names(out)) == {"two", "three"}
    assert "Not read: runs/one/records.jsonl, line 1" in err


@pytest.mark.parametrize("command", [["runs"], ["report", "runs/one", "runs/three"]])
def test_rows_for_other_programs(folder, capsys, command):
    out, _ = said(capsys, *command, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    (one,) = [row for row in rows if row["run"] == "one"]
    assert (one["val_loss"], one["status"], one["hidden.lr"]) == ("5.0", "finished", "0.01")
    (three,) = [row for row in rows if row["run"] == "three"]
    assert (three["val_loss"], three["best_val_loss"]) == ("", "8.0")
    rows = json.loads(said(capsys, *command, "--format", "json")[0])
    assert {row["run"]: row["val_loss"] for row in rows}["three"] is None
    lines = said(capsys, *command, "--format", "md")[0].splitlines()
    assert lines[0].startswith("| run | recipe |")
    assert len({line.count("|") for line in lines}) == 1
    assert not list(folder.glob("**/*.html"))


def test_bad_input(folder, capsys):
    assert cli.main(["runs", "nowhere"]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert cli.main(["report", "runs/one", "--format", "csv", "--out", "x"]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "info", "--version", "--help"])
def test_a_core_installation_can_say_what_there_is(command):
    """None of what the extra `lab` installs can be imported."""
    script = f"""
import sys
for name in "numpy transformers tokenizers tyro docstring_parser rich matplotlib jinja2 sklearn".split():
    sys.modules[name] = None
from polargrad.lab.cli.main import main
sys.exit(main([{command!r}]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {"list": "muon+adamw", "info": "torch", "--version": "polargrad 0", "--help": "polargrad list"}[command]
    assert wanted in done.stdout
