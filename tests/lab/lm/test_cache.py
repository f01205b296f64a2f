import errno
import os

import pytest

from polargrad.lab.lm import cache
from polargrad.lab.lm.cache import cache_folder, publish, verified_header


def test_an_interrupted_write_leaves_nothing(tmp_path):
    path = tmp_path / "data"

    def half(part):
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(path, half)
    assert list(tmp_path.iterdir()) == []
    assert verified_header(path) is None


def test_a_file_without_its_header_does_not_count(tmp_path):
    path = tmp_path / "data"
    publish(path, lambda part: part.write_bytes(b"whole"), kind="x")
    header = verified_header(path, kind="x")
    assert header is not None
    assert header["bytes"] == 5
    path.with_name("data.header.json").unlink()
    assert verified_header(path) is None


def test_a_full_disk_names_the_remedy_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "data"
    publish(path, lambda part: part.write_bytes(b"old"))

    def full(part):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"the disk is full.*POLARGRAD_CACHE"):
        publish(path, full)
    assert path.read_bytes() == b"old"
    assert verified_header(path) is not None


def test_the_cache_folder_is_chosen_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "environment"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "environment"
    monkeypatch.delenv("POLARGRAD_CACHE")
    monkeypatch.setattr(cache.Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "polargrad"
    assert not os.listdir(tmp_path)
