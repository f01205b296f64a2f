"""Faults of runs on several processes: deaths, restarts, other layouts, copies that drift apart."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from polargrad.lab.run.folder import CHECKPOINTS, read_run
from polargrad.lab.train.parallel import Parallel, _sum_of_bits
from tests.distributed.worlds import spawn
from tests.faults.small import losses
from tests.runs import tiny_spec, tiny_text

pytestmark = pytest.mark.faults
STEPS = 12
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A spec on disk, of exact polar factors, saved after every step; a cache of its own; the undisturbed losses."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLARGRAD_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        path = folder / "spec.json"
        path.write_text(tiny_spec(tiny_text(folder), polar=True, steps=STEPS).to_json())
        finished(command(1, "run", path, "--out", folder / "whole"))
        yield path, losses(read_run(folder / "whole"))


def command(ranks, *arguments, faults="", restarts=0, wide=False):
    """Start the command line on so many ranks, with faults."""
    launch = (sys.executable,)
    if ranks > 1:
        launch = (*LAUNCHER, f"--nproc-per-node={ranks}", f"--max-restarts={restarts}")
    environment = {**os.environ, "FAULTS": faults, "EVERY_STEP": "1", "WIDE": "1" if wide else ""}
    return subprocess.Popen(
        [*launch, "-m", "tests.faults.injected", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process, code=0):
    """What a process said, once it has ended with a code; None: any but 0."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code if code is not None else process.returncode, said
    return said


def assert_unbroken(path, whole, tolerance):
    """Every step once, with the losses of the undisturbed run."""
    run = read_run(path)
    assert run.status == "finished"
    assert [record["step"] for record in run.of_kind("step")] == list(range(1, STEPS + 1))
    assert losses(run) == pytest.approx(whole, rel=tolerance)


def test_layouts_follow_each_other(spec, tmp_path):
    path, whole = spec
    out = tmp_path / "run"
    finished(command(2, "run", path, "--parallel", "ddp", "--out", out, faults="1:2:SIGTERM:0"), None)
    said = finished(command(1, "resume", out, faults="0:5:SIGTERM:0"), 143)
    assert f"`polargrad resume {out}` continues after step 6" in said
    finished(command(4, "resume", out, "--parallel", "fsdp", faults="3:8:SIGTERM:0"), None)
    finished(command(2, "resume", out, "--parallel", "hsdp"))
    assert_unbroken(out, whole, 1e-5)
    resumed = [event["step"] for event in read_run(out).of_kind("event") if event["event"] == "resumed"]
    assert resumed == [3, 6, 9]
    with pytest.raises(AssertionError):  # negative control
        assert_unbroken(out, [2 * loss for loss in whole], 1e-5)


def test_torchrun_starts_again_three_times(spec, tmp_path):
    path, _ = spec
    deaths = "1:3:SIGKILL:0,0:6:SIGKILL:1,1:9:SIGKILL:2"
    for name, faults in (("calm", ""), ("hit", deaths)):
        out = ("--parallel", "ddp", "--out", tmp_path / name)
        finished(command(2, "run", path, *out, faults=faults, restarts=3, wide=True))
    calm, hit = (losses(read_run(tmp_path / name)) for name in ("calm", "hit"))
    assert len(hit) == STEPS
    assert hit == pytest.approx(calm, rel=1e-10)
    resumed = [event["step"] for event in read_run(tmp_path / "hit").of_kind("event") if event["event"] == "resumed"]
    assert resumed == [3, 6, 9]


def test_a_death_ends_the_others_in_one_sentence(spec, tmp_path):
    path, _ = spec
    out = tmp_path / "run"
    began = time.monotonic()
    said = finished(command(2, "run", path, "--parallel", "ddp", "--out", out, faults="1:4:SIGKILL:0"), None)
    assert time.monotonic() - began < 120
    (line,) = [line for line in said.splitlines() if line.startswith("polargrad: ")]
    assert "another process of this run died" in line
    assert f"`polargrad resume {out}` continues after step 4" in line


@pytest.mark.parametrize("number", range(30))
def test_kills_at_random_moments(spec, tmp_path, number):
    path, whole = spec
    ranks, chance = (2, 4)[number % 2], random.Random(number)
    out = tmp_path / "run"
    process = command(ranks, "run", path, "--parallel", ("ddp", "fsdp")[number // 2 % 2], "--out", out)
    end = time.monotonic() + 120
    while not (out / CHECKPOINTS).exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(chance.random() * 0.5)
    victims = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    if victims:
        os.kill(int(chance.choice(victims)), signal.SIGKILL)
    process.communicate(timeout=300)
    if not victims or process.returncode == 0:
        pytest.skip("the run ended before the kill, which therefore shows nothing")
    if read_run(out).status != "finished":
        finished(command(1, "resume", out))
    assert_unbroken(out, whole, 1e-5)


def compared(rank, world, apart):
    mesh = torch.distributed.device_mesh.init_device_mesh(
        "cpu", (world, 1, 1), mesh_dim_names=("replicate", "shard", "tensor")
    )
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    if apart and rank == 1:
        with torch.no_grad():
            module[1].weight[0, 0] = torch.nextafter(module[1].weight[0, 0], torch.tensor(9.0))
    control = torch.distributed.new_group(backend="gloo")
    try:
        Parallel("ddp", (world, 1, 1), mesh, torch.device("cpu"), control).check_copies(module)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("apart", [False, True])
def test_copies_that_drift_apart_are_noticed(tmp_path, apart):
    results = spawn(2, tmp_path, compared, apart)
    for result in results:
        assert result is not None
        said = result[1]
        assert ("different copies of 1.weight" in said) == apart, json.dumps(said)


def test_a_changed_bit_changes_the_sum():
    W = torch.randn(4, 5)
    before = _sum_of_bits(W).item()
    W[2, 3] = torch.nextafter(W[2, 3], torch.tensor(9.0))
    assert _sum_of_bits(W).item() != before
