"""Runs that were stopped, and what of them may go on."""

import dataclasses
import errno
import json
import subprocess
import sys

import pytest

from polargrad.lab.cli import main as cli
from polargrad.lab.run import build, runner
from polargrad.lab.run.folder import CHECKPOINTS, DISCARDED, RECORDS, SPEC, SUMMARY, RunFolder, read_run
from polargrad.lab.train import CheckpointError, CheckpointPolicy
from tests.runs import StopsAt, tiny_spec, tiny_text

EVERY_STEP = CheckpointPolicy(every_steps=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus with a cache of its own."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLARGRAD_CACHE", str(folder / "cache"))
        yield tiny_text(folder)


def stopped(text, path, step=3, policy=EVERY_STEP):
    with pytest.raises(runner.Interrupted, match=f"polargrad resume {path}"):
        runner.run(tiny_spec(text), path, progress=StopsAt(step), policy=policy)


def losses(run):
    return [record["loss"] for record in run.of_kind("step")]


def test_a_stopped_run_goes_on_to_the_same_end(text, tmp_path):
    whole = runner.run(tiny_spec(text), tmp_path / "whole")
    stopped(text, tmp_path / "one")
    held = (tmp_path / "one" / RECORDS).read_text()
    run = runner.resume(tmp_path / "one")
    assert run.status == "finished"
    assert losses(run) == losses(whole)
    # What was recorded after the checkpoint is kept apart.
    assert held.endswith((tmp_path / "one" / DISCARDED).read_text())
    assert "resumed after step 2" in run.of_kind("event")[0]["message"]


def test_a_run_without_a_checkpoint_begins_again_and_says_so(text, tmp_path):
    stopped(text, tmp_path / "one", policy=CheckpointPolicy())
    assert not (tmp_path / "one" / CHECKPOINTS).exists()
    run = runner.resume(tmp_path / "one")
    assert [record["step"] for record in run.of_kind("step")] == [1, 2, 3, 4]
    assert "begun again" in run.of_kind("event")[0]["message"]


def test_a_line_cut_short_is_no_obstacle(text, tmp_path):
    stopped(text, tmp_path / "one")
    with (tmp_path / "one" / RECORDS).open("a") as file:
        file.write('{"kind":"st')
    assert runner.resume(tmp_path / "one").status == "finished"


def test_records_that_do_not_fit_on_the_disk_end_the_run_with_a_remedy(text, tmp_path, monkeypatch):
    whole = runner.run(tiny_spec(text), tmp_path / "whole")
    record = RunFolder.record

    def full(folder, entry):
        if entry.get("step") == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        record(folder, entry)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", full)
        with pytest.raises(OSError, match=r"the disk is full; free some space, then `polargrad resume"):
            runner.run(tiny_spec(text), tmp_path / "one", policy=EVERY_STEP)
    assert losses(runner.resume(tmp_path / "one")) == losses(whole)


def test_another_configuration_is_an_error_that_names_it(text, tmp_path):
    stopped(text, tmp_path / "one")
    before = {path: path.read_bytes() for path in (tmp_path / "one").glob("*.json*")}
    other = tiny_spec(text).with_option("hidden", "lr", 0.5)
    with pytest.raises(CheckpointError, match=r"optimizer.hidden.lr was 0.003 and is now 0.5"):
        runner.resume(tmp_path / "one", other)
    assert {path: path.read_bytes() for path in (tmp_path / "one").glob("*.json*")} == before
    spec = json.loads((tmp_path / "one" / SPEC).read_text())
    spec["seed"] = 7
    (tmp_path / "one" / SPEC).write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match="seed was 42 and is now 7"):
        runner.resume(tmp_path / "one")


def test_another_text_is_another_configuration(text, tmp_path):
    own = tmp_path / "text.txt"
    own.write_text(text.read_text())
    stopped(own, tmp_path / "one")
    own.write_text(text.read_text() + "one word more")
    build._corpus.cache_clear()  # a process reads a corpus once
    with pytest.raises(CheckpointError, match="corpus_checksum was"):
        runner.resume(tmp_path / "one")


def test_what_has_ended_is_left_alone(text, tmp_path):
    runner.run(tiny_spec(text, steps=1), tmp_path / "one")
    with pytest.raises(FileExistsError, match="finished, so there is nothing to resume"):
        runner.resume(tmp_path / "one")
    with pytest.raises(FileExistsError, match="has finished and is left as it is"):
        RunFolder.reopen(tmp_path / "one", 0)


def test_records_that_were_lost_are_missed(text, tmp_path):
    stopped(text, tmp_path / "one")
    (tmp_path / "one" / RECORDS).write_text("")
    with pytest.raises(ValueError, match="its checkpoint knows of"):
        runner.resume(tmp_path / "one")


def test_two_processes_cannot_write_one_run(text, tmp_path):
    with RunFolder(tmp_path / "one", tiny_spec(text), {}):
        script = f"from polargrad.lab.run.folder import RunFolder; RunFolder.reopen({str(tmp_path / 'one')!r}, 0)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "is being written by another process" in done.stderr


def test_another_machine_is_told(text, tmp_path):
    stopped(text, tmp_path / "one")
    where = tmp_path / "one" / "environment.json"
    where.write_text(json.dumps({**json.loads(where.read_text()), "threads": 77}))
    run = runner.resume(tmp_path / "one")
    (event,) = [event for event in run.of_kind("event") if event["event"] == "machine"]
    assert event["message"].startswith("threads was 77 and is now ")
    assert run.status == "finished"


def test_ensuring_runs_resumes_and_reads(text, tmp_path):
    spec = tiny_spec(text)
    first = runner.run_or_resume(spec, tmp_path / "new")
    written = (tmp_path / "new" / SUMMARY).stat().st_mtime_ns
    assert runner.run_or_resume(spec, tmp_path / "new") == first
    assert (tmp_path / "new" / SUMMARY).stat().st_mtime_ns == written
    stopped(text, tmp_path / "one")
    assert losses(runner.run_or_resume(spec, tmp_path / "one")) == losses(first)
    stopped(text, tmp_path / "two")
    with pytest.raises(ValueError, match="description was"):
        runner.run_or_resume(dataclasses.replace(spec, description="Other."), tmp_path / "two")


def test_the_command_resumes_and_says_how_it_ended(text, tmp_path, capsys):
    stopped(text, tmp_path / "one")
    assert cli.main(["resume", str(tmp_path / "one")]) == 0
    assert "tiny ends at" in capsys.readouterr().out
    assert read_run(tmp_path / "one").status == "finished"
    assert cli.main(["resume", str(tmp_path / "one")]) == 2
    assert "nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_exit_code_tells_who_asked(monkeypatch, tmp_path, signal, code):
    def fail(arguments):
        raise runner.Interrupted(tmp_path, signal)

    monkeypatch.setattr("polargrad.lab.cli.main.dispatch", fail)
    assert cli.main(["list"]) == code
