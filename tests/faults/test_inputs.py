"""Input that cannot be used: one sentence and exit code 2, before any work, whatever the flag."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from polargrad.lab.cli import main as cli
from tests.runs import tiny_text

INTEGERS = (
    "vocabulary",
    "hidden-size",
    "layers",
    "heads",
    "batch",
    "sequence",
    "steps",
    "keep",
    "accumulation",
    "seed",
)
NUMBERS = ("clip", "held-out", "decay", "minutes")
BAD_INTEGERS = ("-1", str(2**64), "1e9", "nan", "many", "")
BAD_NUMBERS = ("nan", "inf", "-inf", "-1", "many")
SMALL = ("--model", "demo", "--device", "cpu", "--data", "text.txt", "--vocabulary", "300", "--out", "run")


def refused(capsys, folder, arguments):
    """One sentence, exit code 2, and nothing written."""
    code = cli.main(["pretrain", *SMALL, *arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2, said
    assert said[-1].startswith("polargrad: ")
    assert "Traceback" not in "".join(said)
    assert not [path for path in folder.iterdir() if path.name != "text.txt"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    tiny_text(tmp_path)
    return tmp_path


@pytest.mark.faults
@pytest.mark.parametrize("value", BAD_INTEGERS)
@pytest.mark.parametrize("flag", INTEGERS)
def test_integers_out_of_range(capsys, folder, flag, value):
    refused(capsys, folder, (f"--{flag}={value}",))


@pytest.mark.faults
@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("flag", NUMBERS)
def test_numbers_out_of_range(capsys, folder, flag, value):
    refused(capsys, folder, (f"--{flag}={value}",))


@pytest.mark.parametrize("change", ["momentum=1", "momentum=NaN", "weight_decay=Infinity", "lr=-1", "nosuch=1"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_options_of_the_optimizer(capsys, folder, change, dry):
    refused(capsys, folder, ("--set", f"hidden.{change}", *dry))


def child(folder, script, **options):
    environment = {**os.environ, "POLARGRAD_CACHE": str(folder / "cache")}
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, **options
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("{polargrad} list >&-", 0),
        ("{polargrad} list 2>&-", 0),
        ("{polargrad} list >/dev/full", 1),
        ("{polargrad} list | true; exit ${{PIPESTATUS[0]}}", None),
        ("{polargrad} list </dev/null", 0),
        ("{polargrad} run $'\\xff\\xfe.json'", 2),
        ("{polargrad} run adamw --out /proc/nowhere/run", None),
        ("{polargrad} report /nonexistent", 2),
        ("python3 -c 'print(\"[\" * 200000)' > deep.json; {polargrad} run deep.json", 2),
        ('python3 -c \'print("a = " + "[" * 200000)\' > deep.toml; {polargrad} pretrain deep.toml', 2),
    ],
)
def test_hostile_places(folder, script, code):
    done = child(folder, script.format(polargrad=f"{sys.executable} -m polargrad"))
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("polargrad: ")]) <= 1
    if code is not None:
        assert done.returncode == code, done.stderr
