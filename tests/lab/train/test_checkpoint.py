"""Checkpoint files: whole or absent, checked, kept in number, and refused where they belong to something else."""

import errno
import os
import random
import shutil

import numpy
import pytest
import torch
from torch import nn

import polargrad
from polargrad.lab.train import (
    CheckpointError,
    CheckpointPolicy,
    Checkpoints,
    LoopConfig,
    StepDecay,
    StopRequest,
    train,
)
from polargrad.lab.train.checkpoint import differences

EVERY_STEP = CheckpointPolicy(every_steps=1)


class Noisy:
    """A regression with dropout, noise of Python and noise of numpy: whatever generator is not restored shows."""

    unit = "sample"
    units_per_step = 1

    def __init__(self):
        torch.manual_seed(7)
        self.module = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.drawn = 0

    def loss(self, step):
        self.drawn += 1
        x = torch.randn(5, 4) + self.drawn
        target = random.random() + numpy.random.rand()  # noqa: NPY002
        return (self.module(x) - target).square().mean()

    def evaluate(self):
        return {"norm": sum(p.norm().item() for p in self.module.parameters())}

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def polar(module):
    return polargrad.PolarGrad(polargrad.parameter_groups(module))


def go(folder, *, steps=8, make=polar, resume=None, policy=EVERY_STEP, objective=None, config=None, before=None):
    objective = objective or Noisy()
    if resume is None:
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)  # noqa: NPY002
    checkpoints = Checkpoints(folder, {"steps": steps}, policy)
    records = []
    if before is not None:
        before(objective)
    summary = train(
        objective,
        make(objective.module),
        StepDecay(2, 0.5),
        config or LoopConfig(steps, eval_every=3),
        record=records.append,
        checkpoints=checkpoints,
        resume=resume,
    )
    return summary, records, objective


def trajectory(records):
    kept = {"step", "loss", "lr", "norm", "units"}
    return [{k: v for k, v in record.items() if k in kept} for record in records if record["kind"] in ("step", "eval")]


@pytest.mark.parametrize(
    "make",
    [
        polar,
        lambda module: torch.optim.AdamW(module.parameters(), lr=torch.tensor(0.01)),
        lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9),
    ],
)
def test_every_checkpoint_leads_to_the_same_end(tmp_path, make):
    _, whole, reference = go(tmp_path, make=make, policy=CheckpointPolicy(every_steps=1, keep=100))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for file in reversed(files[:-1]):
        shutil.rmtree(files[files.index(file) + 1])
        found = Checkpoints(tmp_path, {"steps": 8}).newest()
        assert found.path == file
        torch.manual_seed(99)
        summary, records, again = go(tmp_path / "again", make=make, resume=found)
        assert trajectory(records) == [r for r in trajectory(whole) if r["step"] > found.step]
        assert summary.steps == 8
        for name, value in reference.module.state_dict().items():
            assert torch.equal(value, again.module.state_dict()[name])


def test_a_generator_that_is_not_restored_would_be_seen(tmp_path, monkeypatch):
    _, whole, _ = go(tmp_path, policy=CheckpointPolicy(every_steps=4))
    shutil.rmtree(sorted(tmp_path.iterdir())[-1])
    found = Checkpoints(tmp_path, {"steps": 8}).newest()
    monkeypatch.setattr("polargrad.lab.train.checkpoint._restore_generators", lambda held: None)
    _, records, _ = go(tmp_path / "again", resume=found)
    assert trajectory(records) != [r for r in trajectory(whole) if r["step"] > found.step]


def test_the_last_few_are_kept(tmp_path):
    go(tmp_path, policy=CheckpointPolicy(every_steps=1, keep=3))
    assert [file.name[:13] for file in sorted(tmp_path.iterdir())] == [
        "step-00000006",
        "step-00000007",
        "step-00000008",
    ]


@pytest.mark.parametrize(("keep", "left"), [(True, 2), (False, 0)])
def test_what_a_finished_run_leaves(tmp_path, keep, left):
    policy = CheckpointPolicy(every_steps=2, keep_finished=keep)
    go(tmp_path / "c", policy=policy)
    stale = tmp_path / "c" / "step-00000009.part"
    stale.mkdir()
    (stale / "rank-00000.bin").write_bytes(b"half")
    Checkpoints(tmp_path / "c", {}, policy).finish()
    assert len(list(tmp_path.glob("c/*"))) == left


def flip(path, name="rank-00000.bin"):
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)


def flip_index(path):
    flip(path, "index.json")


def cut(path):
    (path / "rank-00000.bin").write_bytes((path / "rank-00000.bin").read_bytes()[:-100])


def empty(path):
    for file in path.iterdir():
        file.unlink()


def replace_by_file(path):
    empty(path)
    path.rmdir()
    path.write_bytes(b"")


def replace_by_folders(path):
    empty(path)
    (path / "index.json").mkdir()


DAMAGES = [flip, flip_index, cut, empty, replace_by_file, replace_by_folders]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path, damage):
    _, whole, _ = go(tmp_path, policy=CheckpointPolicy(every_steps=3, keep=3, keep_finished=False))
    damage(sorted(tmp_path.iterdir())[-1])
    found = Checkpoints(tmp_path, {"steps": 8}).newest()
    assert found.step == 3
    assert "step-00000006" in found.message
    assert "damaged" in found.message
    _, records, _ = go(tmp_path, resume=found, policy=CheckpointPolicy(every_steps=3))
    assert records[0]["event"] == "resumed"
    assert "damaged" in records[0]["message"]
    assert trajectory(records) == [r for r in trajectory(whole) if r["step"] > 3]
    assert Checkpoints(tmp_path, {"steps": 8}).newest().step == 8


def test_without_a_whole_checkpoint_there_is_an_error(tmp_path):
    assert Checkpoints(tmp_path / "none", {}).newest() is None
    go(tmp_path, policy=CheckpointPolicy(every_steps=8))
    flip(next(tmp_path.iterdir()))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
            Checkpoints(tmp_path, {"steps": 8}).newest()


def test_another_configuration_is_refused_by_name(tmp_path):
    go(tmp_path)
    with pytest.raises(CheckpointError, match="steps was 8 and is now 9"):
        Checkpoints(tmp_path, {"steps": 9}).newest()
    assert differences({"a": (1, 2), "b": {"c": 1}}, {"a": [1, 2], "b": {"c": 2}, "d": 0}) == [
        "b.c was 1 and is now 2",
        "d was None and is now 0",
    ]


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    objective = Noisy()
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(tmp_path, {}).save(1, objective.module, polar(objective.module), {"journal": Evil()})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_an_earlier_version_is_not_ignored(tmp_path):
    (tmp_path / "step-00000003-0123456789abcdef.pt").write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match="earlier version"):
        Checkpoints(tmp_path, {}).newest()


class FullDisk:
    """Syncing a checkpoint fails as on a full disk while more than so many are there, from the second save on."""

    def __init__(self, monkeypatch, folder, room, number=errno.ENOSPC):
        real = os.fsync

        def fsync(handle):
            if len(list(folder.glob("step-????????"))) > room:
                raise OSError(number, os.strerror(number))
            real(handle)

        monkeypatch.setattr("polargrad.distributed.checkpoint.os.fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(tmp_path, monkeypatch, number):
    FullDisk(monkeypatch, tmp_path, 0, number)
    summary, records, _ = go(tmp_path, policy=CheckpointPolicy(every_steps=2, keep_finished=False))
    assert summary.status == "finished"
    failed = [record for record in records if record.get("event") == "not-saved"]
    assert [record["step"] for record in failed] == [4, 6]
    assert "step-00000004 cannot be written: " in failed[0]["message"]
    assert "as it was" in failed[0]["message"]
    (kept,) = tmp_path.iterdir()
    assert Checkpoints(tmp_path, {"steps": 8}).newest().path == kept


def test_where_there_is_no_room_an_older_checkpoint_makes_some(tmp_path, monkeypatch):
    FullDisk(monkeypatch, tmp_path, 2)
    summary, records, _ = go(tmp_path, policy=CheckpointPolicy(every_steps=2, keep=3))
    assert summary.status == "finished"
    assert not [record for record in records if record.get("event") == "not-saved"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000006", "step-00000008"]


def test_a_run_is_not_finished_without_its_last_checkpoint(tmp_path, monkeypatch):
    FullDisk(monkeypatch, tmp_path, 0)
    with pytest.raises(OSError, match="step-00000008 cannot be written: the disk is full; free some space"):
        go(tmp_path, policy=CheckpointPolicy(every_steps=2))
    (kept,) = tmp_path.iterdir()
    assert kept.name == "step-00000002"


def test_saving_takes_at_most_a_hundredth_of_the_time(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr("polargrad.lab.train.checkpoint.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, {}, CheckpointPolicy(every_seconds=30.0))

    def slow(*arguments):
        now[0] += 5.0

    monkeypatch.setattr("polargrad.lab.train.checkpoint.write", slow)
    now[0] = 29.0
    assert not checkpoints.due(1)
    now[0] = 31.0
    assert checkpoints.due(2)
    checkpoints.save(2, None, None, {})
    now[0] += 499.0
    assert not checkpoints.due(3)
    now[0] += 2.0
    assert checkpoints.due(3)


@pytest.mark.parametrize("options", [{"every_steps": -1}, {"keep": 0}, {"every_seconds": 0.0}, {"keep": True}])
def test_bad_policies_are_errors(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CheckpointPolicy(**options)


def test_a_stop_request_ends_the_run_after_its_step_saved(tmp_path):
    import signal

    class Stopped(Noisy):
        def loss(self, step):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(step)

    summary, records, _ = go(tmp_path, objective=Stopped(), policy=CheckpointPolicy(every_steps=100))
    assert (summary.status, summary.reason, summary.steps) == ("interrupted", "SIGTERM", 5)
    assert records[-1]["message"] == "interrupted by SIGTERM after 5 of 8 steps"
    found = Checkpoints(tmp_path, {"steps": 8}).newest()
    assert found.step == 5
    _, rest, _ = go(tmp_path, resume=found)
    _, whole, _ = go(tmp_path / "whole")
    assert trajectory(records) + trajectory(rest) == trajectory(whole)


def test_a_second_request_interrupts_and_handlers_are_put_back():
    import signal

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    told = []
    with StopRequest(lambda: told.append(1)) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert told == [1]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_an_ignored_signal_stays_ignored():
    import signal

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_source_that_cannot_take_its_position_is_an_error(tmp_path):
    go(tmp_path)
    found = Checkpoints(tmp_path, {"steps": 8}).newest()

    class Deaf(Noisy):
        load_state_dict = property()

    with pytest.raises(ValueError, match="Deaf cannot take it"):
        go(tmp_path, resume=found, objective=Deaf())


def test_a_schedule_by_steps_goes_on_where_it_was(tmp_path):
    go(tmp_path, policy=CheckpointPolicy(every_steps=5, keep_finished=False))
    found = Checkpoints(tmp_path, {"steps": 8}).newest()
    assert [group["lr"] for group in [saved["options"] for saved in found.saved.groups]] == [
        group["lr"] for group in polar(Noisy().module).param_groups
    ]
