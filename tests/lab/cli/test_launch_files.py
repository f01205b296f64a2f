"""The launch files: they describe runs that can start, and say what a dry run says."""

import dataclasses
from pathlib import Path

import pytest

from polargrad.lab.cli import main as cli
from polargrad.lab.launch import Launch

FOLDER = Path(__file__).parents[3] / "launch"
FILES = sorted(path for path in FOLDER.glob("*.toml") if not path.name.startswith("compare-"))


def test_there_are_launch_files():
    assert {"paper-qwen2.5-muon-polargrad.toml", "gpt2-small.toml", "gpt2-medium-8gpu.toml"} <= {f.name for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_comment_is_what_a_dry_run_says(path, capsys):
    devices = "8" if "8gpu" in path.name else "1"
    assert cli.main(["pretrain", str(path), "--dry-run", "--devices", devices, "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()[2:]
    comment = [line.removeprefix("#   ") for line in path.read_text().splitlines() if line.startswith("#   ")]
    assert comment == said


@pytest.mark.parametrize("path", sorted(FOLDER.glob("compare-*.toml")), ids=lambda path: path.stem)
def test_a_comparison_s_launch_file_can_start(path, capsys):
    assert cli.main(["compare", str(path), "--dry-run"]) == 0
    assert "3 runs, 900 steps in all." in capsys.readouterr().out


def test_the_paper_s_run_is_the_paper_s():
    read = Launch.from_file(FOLDER / "paper-qwen2.5-muon-polargrad.toml")
    spec = dataclasses.replace(read, training=dataclasses.replace(read.training, device="cpu")).spec()
    assert {options["lr"] for options in spec.optimizer.values()} == {1e-3}
    for role in ("embedding", "head"):
        chosen = spec.optimizer[role]
        wanted = {"momentum": 0.5, "scale": "nuclear", "method": "qdwh", "max_steps": 5}
        assert {key: chosen[key] for key in wanted} == wanted
    assert spec.optimizer["hidden"]["method"] == "newton-schulz"
    assert (spec.objective.batch, spec.objective.sequence) == (16, 512)
    assert spec.schedule(0) == 1.0
    assert spec.schedule(13299) < 1e-3
