"""Faults of runs on several processes: deaths, restarts, other layouts, copies that drift apart."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from polargrad.lab.run.folder import read_run
from polargrad.lab.train.parallel import Parallel, _sum_of_bits
from tests.distributed.worlds import spawn
from tests.faults.forked import Ranks
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
        spec = tiny_spec(tiny_text(folder), polar=True, steps=STEPS)
        wide = dataclasses.replace(spec, objective=dataclasses.replace(spec.objective, precision="float64"))
        path.write_text(wide.to_json())
        finished(command(1, "run", path, "--out", folder / "whole"))
        yield path, losses(read_run(folder / "whole"))


@pytest.fixture(scope="module")
def forked(spec):
    ranks = Ranks()
    yield ranks
    ranks.close()


def command(ranks, *arguments, faults="", restarts=0):
    """Start the command line on so many ranks, with faults."""
    launch = (sys.executable,)
    if ranks > 1:
        launch = (*LAUNCHER, f"--nproc-per-node={ranks}", f"--max-restarts={restarts}")
    environment = {**os.environ, "FAULTS": faults, "EVERY_STEP": "1"}
    return subprocess.Popen(
        [*launch, "-m", "tests.faults.injected", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process, code=0):
    """What a process said, once it has ended with a code; None: any but 0."""
    said, _ = process.communicate(timeout=900)
    assert process.returncode == code if code is not None else process.returncode, said
    return said


def assert_unbroken(path, whole):
    """Every step once, with the losses of the undisturbed run; weights, losses and polar factors are in float64."""
    run = read_run(path)
    assert run.status == "finished"
    assert [record["step"] for record in run.of_kind("step")] == list(range(1, STEPS + 1))
    assert losses(run) == pytest.approx(whole, rel=1e-10)


def test_layouts_follow_each_other(spec, tmp_path):
    path, whole = spec
    out = tmp_path / "run"
    finished(command(2, "run", path, "--parallel", "ddp", "--out", out, faults="1:2:SIGTERM:0"), None)
    said = finished(command(1, "resume", out, faults="0:2:SIGTERM:0"), 143)
    assert f"`polargrad resume {out}` continues after step 6" in said
    finished(command(4, "resume", out, "--parallel", "fsdp", faults="3:2:SIGTERM:0"), None)
    finished(command(2, "resume", out, "--parallel", "hsdp"))
    assert_unbroken(out, whole)
    resumed = [event["step"] for event in read_run(out).of_kind("event") if event["event"] == "resumed"]
    assert resumed == [3, 6, 9]
    with pytest.raises(AssertionError):  # negative control
        assert_unbroken(out, [*whole[:-1], whole[-1] * (1 + 1e-9)])


def test_torchrun_starts_again_three_times(spec, tmp_path):
    path, whole = spec
    out, deaths = tmp_path / "run", "1:3:SIGKILL:0,0:3:SIGKILL:1,1:3:SIGKILL:2"
    finished(command(2, "run", path, "--parallel", "ddp", "--out", out, faults=deaths, restarts=3))
    assert_unbroken(out, whole)
    resumed = [event["step"] for event in read_run(out).of_kind("event") if event["event"] == "resumed"]
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
def test_kills_at_random_moments(spec, forked, tmp_path, number):
    path, whole = spec
    chance, out = random.Random(number), tmp_path / "run"
    ranks, mode = (2, 4)[number % 2], ("ddp", "fsdp")[number // 2 % 2]
    # A third of them within the writing of a checkpoint; the others anywhere, which may be there too.
    victim, step = chance.randrange(ranks), chance.randrange(2, STEPS - 2)
    moment = f"{step}w" if number % 3 == 0 else step + round(chance.random(), 3)
    begin = ("run", path, "--parallel", mode, "--out", out)
    codes, said = forked.run(ranks, tmp_path / "said", *begin, faults=f"{victim}:{moment}:SIGKILL:0")
    assert codes[victim] == -signal.SIGKILL, said
    assert not {0, -signal.SIGKILL, -signal.SIGQUIT} & {*codes[:victim], *codes[victim + 1 :]}, said
    assert "Traceback" not in said
    after = ("resume", out, *(("--parallel", "fsdp") if chance.random() < 0.3 else ()))
    codes, said = forked.run(2 if len(after) > 2 else 1, tmp_path / "later", *after)
    assert not any(codes), said
    assert_unbroken(out, whole)


@pytest.mark.parametrize(
    ("faults", "codes", "said"),
    [
        ("1:5:SIGSTOP:0", [0, 0], ""),
        ("1:5w:ENOSPC:0", [0, 0], ""),  # an older checkpoint makes room
        ("1:5w:EIO:0", [0, 0], ""),  # the next checkpoint comes after the next step
        ("0:5w:EIO:0", [0, 0], ""),
        ("1:5:MemoryError:0", [1, 1], "polargrad, rank 1: MemoryError: injected"),
        ("0:5:MemoryError:0", [1, 1], "polargrad: MemoryError: injected"),
        ("1:5:ValueError:0", [1, 2], "polargrad, rank 1: injected"),
        ("0:5:ENOSPC:0", [1, 1], "polargrad: the disk is full; free some space, then `polargrad resume"),
        ("1:5:SIGHUP:0,1:5.1:SIGHUP:0", [129, 129], "continues after step"),
        ("0:5:SIGINT:0,1:6:SIGTERM:0", [130, 130], "continues after step"),
    ],
)
def test_one_process_in_trouble(spec, forked, tmp_path, faults, codes, said):
    path, whole = spec
    out = tmp_path / "run"
    found, output = forked.run(2, tmp_path / "said", "run", path, "--parallel", "ddp", "--out", out, faults=faults)
    assert found == codes, output
    assert said in output
    assert "Traceback" not in output
    if any(codes):
        found, output = forked.run(1, tmp_path / "later", "resume", out)
        assert found == [0], output
    assert_unbroken(out, whole)


def test_processes_with_other_texts_are_refused(spec, forked, tmp_path):
    data = json.loads(spec[0].read_text())
    data["objective"]["corpus"] = "text.txt"
    (tmp_path / "spec.json").write_text(json.dumps(data))
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        path = tiny_text(folder)
        path.write_text(path.read_text() + "bon bon bon\n" * number)
    begin = ("run", tmp_path / "spec.json", "--parallel", "ddp", "--out", tmp_path / "run")
    codes, said = forked.run(2, tmp_path / "said", *begin, folders=folders)
    assert codes == [1, 2], said
    assert "polargrad, rank 1: this process is not like the first: corpus_checksum was" in said
    assert not read_run(tmp_path / "run").of_kind("step")


COMMANDS = ("pretrain", "compare")


def of_user(spec, name):
    """A command on the text and the cache of the spec, and the run in its folder that is hit."""
    folder = spec[0].parent
    if name == "compare":
        for number in (1, 2):
            data = {**json.loads(spec[0].read_text()), "name": f"run{number}"}
            (folder / f"run{number}.json").write_text(json.dumps(data))
        return ("compare", folder / "run1.json", folder / "run2.json"), "run2", STEPS + 5
    model = json.loads(spec[0].read_text())["objective"]
    sizes = [f"--{size}={model[size]}" for size in ("layers", "heads", "mlp", "vocabulary", "sequence", "batch")]
    sizes.append(f"--kv-heads={model['kv_heads']}")
    how = ("--hidden-size=16", "--precision=float64", "--eval-every=4", "--device=cpu")
    text = ("--data", model["corpus"], "--steps", STEPS, "--checkpoint-every=1", "--evaluation-windows=8")
    return ("pretrain", "--model=demo", "--recipe=polargrad", *sizes, *how, *text), ".", 5


@pytest.fixture(scope="module")
def calm(spec, forked, tmp_path_factory):
    """The losses of the commands, undisturbed on one process."""
    folder, found = tmp_path_factory.mktemp("calm"), {}
    for name in COMMANDS:
        arguments, where, _ = of_user(spec, name)
        codes, said = forked.run(1, folder / f"{name}.txt", *arguments, "--out", folder / name)
        assert codes == [0], said
        found[name] = losses(read_run(folder / name / where))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_were_killed_go_on(spec, forked, calm, tmp_path, name):
    (arguments, where, step), out = of_user(spec, name), tmp_path / "out"
    begin = (*arguments, "--parallel", "ddp", "--out", out)
    codes, said = forked.run(2, tmp_path / "begin.txt", *begin, faults=f"1:{step}:SIGKILL:0")
    assert codes == [1, -signal.SIGKILL], said
    assert f"`polargrad resume {out / where}`" in said
    codes, said = forked.run(2, tmp_path / "end.txt", "resume", out, "--parallel", "fsdp")
    assert codes == [0, 0], said
    assert_unbroken(out / where, calm[name])
    (resumed,) = [event for event in read_run(out / where).of_kind("event") if event["event"] == "resumed"]
    assert resumed["step"] == 5
    assert list(out.glob("*.html"))


@pytest.mark.parametrize("name", COMMANDS)
def test_torchrun_starts_commands_again(spec, calm, tmp_path, name):
    (arguments, where, step), out = of_user(spec, name), tmp_path / "out"
    begin = (*arguments, "--parallel", "ddp", "--out", out)
    finished(command(2, *begin, faults=f"0:{step}:SIGKILL:0", restarts=1))
    assert_unbroken(out / where, calm[name])


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
