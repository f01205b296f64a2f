"""Faults of starts and resumptions: what a run was stays, and nothing is claimed that is not there."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import socket
from pathlib import Path

import pytest
import torch

from polargrad.lab.cli import main as cli
from polargrad.lab.comparison.comparison import Comparison, run_comparison
from polargrad.lab.exit_codes import exit_code
from polargrad.lab.run import folder as folders
from polargrad.lab.run import runner
from polargrad.lab.run.folder import CHECKPOINTS, ENVIRONMENT, RunFolder, launch_token, read_run, relaunched
from polargrad.lab.train import StopRequest, parallel
from tests.faults.small import EVERY_STEP, SPEC, goes_on, losses, stopped
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


def alone(monkeypatch, **environment):
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", **environment}.items():
        monkeypatch.setenv(name, str(value))


def test_a_port_in_use_is_said(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        alone(monkeypatch, WORLD_SIZE=2, MASTER_PORT=taken.getsockname()[1])
        with pytest.raises(ConnectionError, match=r"did not find each other at 127\.0\.0\.1:\d+ .*a free port"):
            parallel.processes("ddp").__enter__()


def test_an_interface_that_is_not_there_is_said(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        alone(monkeypatch, MASTER_PORT=free.getsockname()[1], GLOO_SOCKET_IFNAME="nosuch0")
    with pytest.raises(ConnectionError, match="GLOO_SOCKET_IFNAME"):
        parallel.processes("ddp").__enter__()
    assert not torch.distributed.is_initialized()


def moved(path):
    return path.rename(path.with_name("moved"))


def copied(path):
    return Path(shutil.copytree(path, path.with_name("copied")))


def linked(path):
    path.with_name("link").symlink_to(path)
    return path.with_name("link")


def on_another_disk(path):
    (path / CHECKPOINTS).rename(path.with_name("elsewhere"))
    (path / CHECKPOINTS).symlink_to(path.with_name("elsewhere"))
    return path


@pytest.mark.parametrize("place", [moved, copied, linked, on_another_disk])
def test_a_run_goes_on_wherever_it_is_moved_to(tmp_path, place):
    whole = losses(runner.run(SPEC, tmp_path / "whole"))
    stopped(tmp_path / "run")
    assert losses(runner.resume(place(tmp_path / "run"))) == whole


def of_another_seed(path):
    other = path.with_name("other")
    runner.run(dataclasses.replace(SPEC, seed=7), other, policy=EVERY_STEP)
    shutil.rmtree(path / CHECKPOINTS)
    shutil.copytree(other / CHECKPOINTS, path / CHECKPOINTS)


def earlier_data(path):
    name = "rank-00000.bin"
    shutil.copy(path / CHECKPOINTS / "step-00000003" / name, path / CHECKPOINTS / "step-00000004" / name)


def exchanged(path):
    here = path / CHECKPOINTS
    (here / "step-00000004").rename(here / "x")
    (here / "step-00000003").rename(here / "step-00000004")
    (here / "x").rename(here / "step-00000003")


@pytest.mark.parametrize(
    ("swap", "said"),
    [
        (of_another_seed, "is of another configuration: seed was 7 and is now 42"),
        (earlier_data, "resumed after step 3 from step-00000003; step-00000004 is damaged and was passed over"),
        (exchanged, "resumed after step 3 from step-00000004"),
    ],
)
def test_checkpoints_that_were_swapped_are_noticed(tmp_path, swap, said):
    whole = losses(runner.run(SPEC, tmp_path / "whole"))
    stopped(tmp_path / "run")
    swap(tmp_path / "run")
    found = goes_on(tmp_path / "run", whole)
    if found == "went on":
        (found,) = [e["message"] for e in read_run(tmp_path / "run").of_kind("event") if e["event"] == "resumed"]
    assert said in found


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_of_a_run_ends_the_command_in_a_sentence(monkeypatch, capsys, name):
    monkeypatch.setattr(cli, "dispatch", lambda arguments: signal.raise_signal(name))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = signal.getsignal(name)
    signal.signal(name, signal.SIG_DFL)
    try:
        assert cli.main(["list"]) == 128 + name
        assert signal.getsignal(name) == signal.SIG_DFL
    finally:
        signal.signal(name, before)
    assert capsys.readouterr().err == f"polargrad: stopped by {name.name}\n"


def test_several_processes_heed_the_first_signal_alone():
    with StopRequest(again=False) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert stop.name == "SIGTERM"
