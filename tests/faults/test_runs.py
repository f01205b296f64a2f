"""Faults of starts and resumptions: what a run was stays, and nothing is claimed that is not there."""

from __future__ import annotations

import dataclasses
import json
import signal

import pytest
import torch

from polargrad.lab.comparison.comparison import Comparison, run_comparison
from polargrad.lab.exit_codes import exit_code
from polargrad.lab.run import folder as folders
from polargrad.lab.run import runner
from polargrad.lab.run.folder import CHECKPOINTS, ENVIRONMENT, RunFolder, launch_token, relaunched
from polargrad.lab.train import StopRequest, parallel
from tests.faults.small import EVERY_STEP, SPEC, losses, stopped
from tests.runs import tiny_spec, tiny_text


def test_the_slower_of_two_starts_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    real = folders.write_settings

    def quicker(made, options=None):
        monkeypatch.setattr(folders, "write_settings", real)
        RunFolder(tmp_path / "run", SPEC, {}).close()
        real(made, options)

    monkeypatch.setattr(folders, "write_settings", quicker)
    with pytest.raises(FileExistsError, match="exists and is left as it is"):
        RunFolder(tmp_path / "run", SPEC, {})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_second_recipe_that_does_not_fit_is_refused_before_the_first_is_trained(tmp_path):
    good = tiny_spec(tiny_text(tmp_path), "good")
    bad = dataclasses.replace(good, name="bad", optimizer={**good.optimizer, "hidden": {"lr": 0.1, "momentum": 1.0}})
    with pytest.raises(ValueError, match="momentum"):
        run_comparison(Comparison((good, bad)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_checkpoints(tmp_path):
    stopped(tmp_path / "run")
    runner.resume(tmp_path / "run")
    assert len(list((tmp_path / "run" / CHECKPOINTS).iterdir())) == EVERY_STEP.keep


@pytest.mark.parametrize("what", ["polargrad", "commit", "python", "torch", "transformers", "tokenizers"])
def test_other_versions_are_on_record(tmp_path, what):
    stopped(tmp_path / "run")
    path = tmp_path / "run" / ENVIRONMENT
    path.write_text(json.dumps({**json.loads(path.read_text()), what: "0.0.1"}))
    events = [event["message"] for event in runner.resume(tmp_path / "run").of_kind("event")]
    assert any(message.startswith(f"{what} was '0.0.1' and is now ") for message in events)


@pytest.mark.parametrize(("signals", "code"), [("TERM TERM", 143), ("HUP", 129), ("INT", 130), ("INT TERM", 143)])
def test_signals_end_a_run_with_their_code_and_a_true_sentence(tmp_path, signals, code):
    class Struck:
        def start(self, total, unit): ...
        def evaluated(self, step, metrics): ...
        def finish(self, status): ...

        def update(self, step, loss, units, seconds):
            if step == 3:
                for name in signals.split():
                    signal.raise_signal(getattr(signal, f"SIG{name}"))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(runner.Interrupted) as caught:
            runner.run(SPEC, tmp_path / "run", progress=Struck())
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_code(caught.value) == code
    saved = (tmp_path / "run" / CHECKPOINTS).exists()
    assert saved == (" " not in signals)
    assert ("continues after step 3" if saved else "begins again: there is no checkpoint") in str(caught.value)
    assert losses(runner.resume(tmp_path / "run")) == losses(runner.run(SPEC, tmp_path / "whole"))


def test_a_torchrun_that_starts_again_finds_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    RunFolder(tmp_path / "mine", SPEC, {}).close()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "8")
    token = launch_token()
    assert relaunched(tmp_path / "mine", tmp_path) is None
    RunFolder(tmp_path / "other", SPEC, {}).close()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launch_token() == token
    assert relaunched(tmp_path / "mine", tmp_path) is None
    assert relaunched(None, tmp_path) == tmp_path / "other"


def test_gpus_without_nccl_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match=r"no NCCL.*CUDA_VISIBLE_DEVICES="):
        parallel._device()


def test_several_processes_heed_the_first_signal_alone():
    with StopRequest(again=False) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert stop.name == "SIGTERM"
