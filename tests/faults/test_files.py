"""Faults of files: whatever becomes of one, a run goes on to the same numbers or is refused in a sentence."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
import shutil
import sys

import numpy as np
import pytest
import torch

from polargrad.distributed.checkpoint import CheckpointDamaged, load, save
from polargrad.lab.files import explained
from polargrad.lab.lm import load_tokenizer, open_source, tokenize, train_bpe
from polargrad.lab.run import runner
from polargrad.lab.run.folder import RunFolder, read_run
from polargrad.lab.run.spec import RunSpec
from polargrad.lab.train import CheckpointPolicy
from tests.faults.small import EVERY_STEP, SPEC, goes_on, losses, stopped
from tests.runs import tiny_text

NEWEST = "checkpoints/step-00000004"
FILES = (
    f"{NEWEST}/index.json",
    f"{NEWEST}/rank-00000.bin",
    "checkpoints/step-00000003/index.json",
    "spec.json",
    "settings.json",
    "environment.json",
    "records.jsonl",
)


def flip(share):
    def change(data):
        at = int(share * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    return change


def rewritten(change):
    def damage(path):
        path.write_bytes(change(path.read_bytes()))

    return damage


def replaced_by_folder(path):
    path.unlink()
    path.mkdir()


def replaced_by_link(path):
    path.unlink()
    path.symlink_to("/nonexistent/nowhere")


DAMAGES = {
    "empty": rewritten(lambda data: b""),
    "half": rewritten(lambda data: data[: len(data) // 2]),
    "one byte less": rewritten(lambda data: data[:-1]),
    "one byte more": rewritten(lambda data: data + b"x"),
    "a bit at the start": rewritten(flip(0.0)),
    "a bit in the middle": rewritten(flip(0.5)),
    "a bit near the end": rewritten(flip(0.97)),
    "zeros": rewritten(lambda data: bytes(len(data))),
    "deep JSON": rewritten(lambda data: b"[" * 200_000),
    "not UTF-8": rewritten(lambda data: b"\xff\xfe" + data),
    "another kind of JSON": rewritten(lambda data: b"[1, 2]\n"),
    "removed": lambda path: path.unlink(),
    "a folder": replaced_by_folder,
    "a dead link": replaced_by_link,
}
FEW = ("half", "a bit in the middle", "removed", "a folder")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run that was killed, to be copied, and the losses of the one that was not."""
    folder = tmp_path_factory.mktemp("faults")
    whole = losses(runner.run(SPEC, folder / "whole"))
    stopped(folder / "stopped")
    return folder / "stopped", whole


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage", [name if name in FEW else pytest.param(name, marks=pytest.mark.faults) for name in DAMAGES]
)
def test_damaged_files_of_a_run(model, tmp_path, file, damage):
    template, whole = model
    path = tmp_path / "run"
    shutil.copytree(template, path, symlinks=True)
    DAMAGES[damage](path / file)
    said = goes_on(path, whole)
    if file in ("settings.json", "environment.json") or "checkpoints" in file:
        assert said == "went on"


ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
PLACES = ("records", "checkpoint", "file", "folder")


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_writes_that_fail(tmp_path, monkeypatch, place, after, number):
    whole = losses(runner.run(SPEC, tmp_path / "whole"))
    calls = [0]

    def failing(real):
        def call(*arguments, **options):
            calls[0] += 1
            if calls[0] > after:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        return call

    target = {
        "records": (RunFolder, "position"),
        "checkpoint": ("polargrad.distributed.checkpoint.os", "fsync"),
        "file": ("polargrad.lab.files.tempfile", "mkstemp"),
        "folder": ("polargrad.lab.run.folder.tempfile", "mkdtemp"),
    }[place]
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        owner, name = target
        owner = __import__(owner.rpartition(".")[0], fromlist=["x"]) if isinstance(owner, str) else owner
        owner = getattr(owner, target[0].rpartition(".")[2]) if isinstance(target[0], str) else owner
        patch.setattr(owner, name, failing(getattr(owner, name)))
        failure = None
        try:
            runner.run(SPEC, path, policy=EVERY_STEP)
        except OSError as error:
            failure = error
    assert not list(tmp_path.glob(".*"))  # no litter
    if failure is None:
        assert losses(read_run(path)) == whole
        return
    assert failure.errno == number
    assert len(str(failure)) > 20
    if not path.exists():
        return
    assert goes_on(path, whole) == "went on"


CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
HOOKED = []


class Disk:
    """A disk on which the n-th change of names and files fails, or all from there on; by an audit hook, put in once."""

    def __init__(self, folder):
        self.folder, self.number, self.fails = str(folder), 0, lambda _: False
        if not HOOKED:
            sys.addaudithook(lambda event, arguments: HOOKED[-1] and HOOKED[-1].event(event, arguments))
        HOOKED[:] = [None]

    def event(self, event, arguments):
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not (opened or event in CHANGES) or not str(arguments[0]).startswith(self.folder):
            return
        self.number += 1
        if self.fails(self.number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

    def during(self, act):
        """Do something on this disk; its error, if it is one of the system."""
        HOOKED[:] = [self]
        try:
            act()
        except OSError as error:
            return error
        finally:
            HOOKED[:] = [None]
        return None


def litter(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


@pytest.mark.faults
@pytest.mark.parametrize("lasting", [False, True])
def test_every_change_of_a_run_on_a_disk_that_fails_there(tmp_path, record_property, lasting):
    policy = CheckpointPolicy(every_steps=3)
    whole = losses(runner.run(SPEC, tmp_path / "whole", policy=policy))
    counted = Disk(tmp_path / "counted")
    assert counted.during(lambda: runner.run(SPEC, tmp_path / "counted" / "run", policy=policy)) is None
    assert counted.number > 30
    for at in range(1, counted.number + 1):
        disk, path = Disk(tmp_path / str(at)), tmp_path / str(at) / "run"
        disk.fails = (lambda n, at=at: n >= at) if lasting else (lambda n, at=at: n == at)
        failure = disk.during(lambda path=path: runner.run(SPEC, path, policy=policy))
        assert failure is None or "the disk is full; free some space" in explained(failure), at
        if path.exists():
            if read_run(path).status != "finished":
                assert goes_on(path, whole) == "went on"
            assert losses(read_run(path)) == whole
        elif path.parent.exists():
            # What could not be made could not always be removed either.
            assert lasting or not litter(path.parent), at
    record_property("faults", counted.number)


@pytest.mark.faults
def test_files_that_may_grow_only_so_far(tmp_path, record_property):
    policy, limits = CheckpointPolicy(every_steps=3), [0, 1, 60, 200, 400, 800, 1500, 2500, 4000, 6000, 8000, 10**6]
    whole = losses(runner.run(SPEC, tmp_path / "whole", policy=policy))
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    for limit in limits:
        path, failure = tmp_path / str(limit) / "run", None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            runner.run(SPEC, path, policy=policy)
        except OSError as error:
            failure = error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
        failed += failure is not None
        assert failure is None or "larger than is allowed; raise the limit" in explained(failure), limit
        assert not litter(path.parent)
        if path.exists():
            if read_run(path).status != "finished":
                assert goes_on(path, whole) == "went on"
            assert losses(read_run(path)) == whole
    assert 3 < failed < len(limits)  # the least and the largest limits
    record_property("faults", len(limits))


@pytest.mark.faults
def test_every_change_of_a_cache_on_a_disk_that_fails_there(tmp_path, record_property):
    source = open_source(str(tiny_text(tmp_path)))
    act = lambda cache: tokenize(source, train_bpe(source, 280, cache=cache), cache=cache)  # noqa: E731
    whole = act(tmp_path / "whole").train.checksum
    counted = Disk(tmp_path / "counted")
    assert counted.during(lambda: act(tmp_path / "counted")) is None
    assert counted.number > 10
    for at in range(1, counted.number + 1):
        disk, cache = Disk(tmp_path / str(at)), tmp_path / str(at)
        disk.fails = lambda n, at=at: n == at
        failure = disk.during(lambda cache=cache: act(cache))
        assert failure is None or "the disk is full; free some space" in explained(failure), at
        assert not litter(cache), at
        assert act(cache).train.checksum == whole
    record_property("faults", counted.number)


class Planted:
    """What runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4, "torch"])
@pytest.mark.parametrize(
    "place",
    [
        f"{NEWEST}/.metadata",
        f"{NEWEST}/index.json",
        f"{NEWEST}/rank-00000.bin",
        "checkpoints/step-00000009/.metadata",
        "checkpoints/step-00000009-0123456789abcdef.pt",
        "settings.json",
    ],
)
def test_planted_objects_are_not_run(model, tmp_path, place, protocol):
    template, whole = model
    path = tmp_path / "run"
    shutil.copytree(template, path)
    (path / place).parent.mkdir(exist_ok=True)
    planted = Planted(f"touch {tmp_path / 'PWNED'}")
    if protocol == "torch":
        with (path / place).open("wb") as file:
            torch.save(planted, file)
    else:
        (path / place).write_bytes(pickle.dumps(planted, protocol))
    goes_on(path, whole)
    assert not (tmp_path / "PWNED").exists()


def mutated(data, chance):
    """Bytes with one to four changes: bits, cuts, insertions, doubled pieces, digits."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, len(data)))
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + chance.randint(1, 40)]
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 3:
            data[at:at] = data[at : at + chance.randint(1, 60)]
        elif kind == 4 and data:
            data[at] = chance.choice(b'0123456789[]{}",:-e.')
        else:
            del data[at:]
    return bytes(data)


def fuzz_checkpoint(folder, chance, number):
    """Every tensor that loads is the one that was saved."""
    W = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(W.parameters(), lr=0.1, momentum=0.9)
    W(torch.ones(3)).sum().backward()
    optimizer.step()
    save(folder / "whole", W, optimizer, step=3)
    saved = {name: value.clone() for name, value in W.state_dict().items()}
    for turn in range(number):
        path = folder / "changed"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(folder / "whole", path)
        file = path / ("index.json" if turn % 2 else "rank-00000.bin")
        file.write_bytes(mutated(file.read_bytes(), chance))
        other = torch.nn.Linear(3, 2)
        try:
            extra = load(path, other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9))
        except (CheckpointDamaged, ValueError):
            continue
        assert extra == {"step": 3}
        assert all(torch.equal(saved[name], value) for name, value in other.state_dict().items())


def fuzz_spec(folder, chance, number):
    """A spec that is read describes what it says, or is refused."""
    text = SPEC.to_json().encode()
    for _ in range(number):
        try:
            read = RunSpec.from_json(mutated(text, chance).decode("utf-8", "surrogateescape"))
        except (ValueError, TypeError):
            continue
        assert RunSpec.from_json(read.to_json()) == read


def fuzz_records(folder, chance, number):
    """Records are read whole or refused with file and line."""
    stopped(folder / "run")
    path = folder / "run" / "records.jsonl"
    data = path.read_bytes()
    for _ in range(number):
        path.write_bytes(mutated(data, chance))
        try:
            read_run(folder / "run")
        except ValueError as error:
            said = str(error)
            assert "records.jsonl" in said


def fuzz_cache(folder, chance, number):
    """Damaged tokens and vocabularies are built again, to the same ones."""
    source = open_source(str(tiny_text(folder)))
    words = train_bpe(source, 280, cache=folder)
    whole = tokenize(source, words, cache=folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "text.txt")
    held = {path: path.read_bytes() for path in files}
    for _ in range(number):
        path = chance.choice(files)
        path.write_bytes(mutated(held[path], chance))
        again = train_bpe(source, 280, cache=folder)
        found = tokenize(source, again, cache=folder)
        assert again.checksum == words.checksum
        assert np.array_equal(
            found.train.tokens[: len(whole.train.tokens)], whole.train.tokens[: len(whole.train.tokens)]
        )
        for file, data in held.items():
            file.write_bytes(data)


FUZZ = {"checkpoint": (fuzz_checkpoint, 800), "spec": (fuzz_spec, 500), "records": (fuzz_records, 500)}
FUZZ["cache"] = (fuzz_cache, 200)


@pytest.mark.filterwarnings("ignore:the cache file:RuntimeWarning")
@pytest.mark.parametrize("kind", FUZZ)
@pytest.mark.parametrize("share", [0.02, pytest.param(1.0, marks=pytest.mark.faults)])
def test_mutated_bytes(kind, share, tmp_path, record_property):
    act, number = FUZZ[kind]
    number = int(share * number)
    act(tmp_path, random.Random(kind), number)
    record_property("faults", number)


def test_a_forged_cache_cannot_index_out_of_the_vocabulary(tmp_path):
    import hashlib
    import json

    source = open_source(str(tiny_text(tmp_path)))
    words = train_bpe(source, 280, cache=tmp_path)
    whole = tokenize(source, words, cache=tmp_path)
    (path,) = tmp_path.rglob("train-00000.tokens")
    header = path.with_name(path.name + ".header.json")
    tokens = np.frombuffer(path.read_bytes(), "<u2").copy()
    tokens[5] = 60_000
    path.write_bytes(tokens.tobytes())
    facts = json.loads(header.read_text())
    header.write_text(json.dumps({**facts, "sha256": hashlib.sha256(tokens.tobytes()).hexdigest()}))
    found = tokenize(source, words, cache=tmp_path)
    assert found.train.tokens[: len(tokens)].max() < 280
    assert found.train.checksum == whole.train.checksum


def test_a_cache_is_shared_by_a_group(tmp_path):
    source = open_source(str(tiny_text(tmp_path)))
    before = os.umask(0o002)
    try:
        train_bpe(source, 280, cache=tmp_path / "cache")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert modes == {0o664}
    (path,) = (tmp_path / "cache").rglob("tokenizer.json")
    assert load_tokenizer(str(path)).vocab_size == 280
