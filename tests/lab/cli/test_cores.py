import json
import os

import psutil
import pytest
import torch

from polargrad.lab.cli.main import main
from polargrad.lab.cli.terminal import idle_cores
from polargrad.lab.run.environment import idle_threads, torch_threads
from tests.runs import tiny_spec, tiny_text


@pytest.fixture
def busy(monkeypatch):
    """Four cores, torch on all of them, and how much of each others use."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    usage = [0.0, 0.0, 0.0, 0.0, 100.0]  # the last core is not ours
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: usage)
    with torch_threads(4):
        yield usage


@pytest.mark.parametrize(
    ("usage", "threads"), [((0, 0, 0, 0), 4), ((30, 10, 0, 5), 4), ((100, 0, 0, 0), 3), ((80, 90, 70, 99), 1)]
)
def test_threads_take_the_cores_that_are_idle(busy, usage, threads):
    busy[:4] = usage
    assert idle_threads() == threads


def test_what_was_asked_for_is_taken(busy, monkeypatch):
    busy[:4] = [100.0] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with idle_cores():
        assert torch.get_num_threads() == 4


def test_more_threads_than_cores_are_not_asked_for(busy):
    with torch_threads(2):
        busy[:4] = [100.0, 0.0, 0.0, 0.0]
        assert idle_threads() == 2


def test_a_run_beside_others_takes_fewer_threads_and_says_so(busy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    busy[:4] = [100.0, 100.0, 100.0, 0.0]
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(tiny_spec(tiny_text(tmp_path), steps=2).to_dict()))
    assert main(["run", str(spec), "--out", str(tmp_path / "run")]) == 0
    assert "1 of 4 threads will compute" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["threads"] == 1
    assert torch.get_num_threads() == 4
    busy[:4] = [0.0] * 4
    (tmp_path / "run" / "summary.json").unlink()
    with idle_cores(tmp_path / "run"):  # a run that was stopped goes on as it began
        assert torch.get_num_threads() == 1
    assert "as it began" in capsys.readouterr().err
    busy[:] = [0.0] * 5
    assert main(["run", str(spec), "--out", str(tmp_path / "idle")]) == 0
    assert "threads" not in capsys.readouterr().err
    assert json.loads((tmp_path / "idle" / "environment.json").read_text())["threads"] == 4


@pytest.mark.parametrize(("usage", "threads"), [([0] * 8, 4), ([100] + [0] * 7, 4), ([100, 0] * 4, 2), ([100] * 8, 1)])
def test_two_processors_of_a_core_are_one(busy, monkeypatch, usage, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    busy[:] = [float(one) for one in usage]
    assert idle_threads() == threads


def test_all_threads_where_the_cores_cannot_be_seen(busy, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {8, 9, 10, 11}, raising=False)
    assert idle_threads() == 4

    def refused(**_):
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", refused)
    assert idle_threads() == 4
