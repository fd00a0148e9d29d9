"""Paths as people write them, files that are read and written whole, and folders of a bucket."""

import errno
import os
import pathlib

import pytest

from dpt_jax.errors import UserError
from dpt_jax.io import as_path, local_copy, reading, write_whole
from tests.helpers.commands import refused
from tests.helpers.object_store import put_folder

FILES = ("train/a/1.png", "train/a/2.png", "train/b [x]/1.png", "test/a/3.png", "x.txt")


def test_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert as_path("~/a") == pathlib.Path("/home/me/a")
    assert str(as_path("gs://bucket/a") / "b") == "gs://bucket/a/b"
    for wrong in ("", "gs:/bucket/a", "gs:bucket", "gs://", "s3://bucket/a"):
        refused(wrong or "empty", as_path, wrong)


def test_a_file_is_written_atomically(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "ü")
    assert (tmp_path / "a").read_bytes() == "ü".encode()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(f"{tmp_path / 'a'}.*No space", write_whole, tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == "ü".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_errors_that_are_not_about_the_file_pass(tmp_path):
    for passes in (KeyboardInterrupt, UserError("another sentence")):
        with pytest.raises((KeyboardInterrupt, UserError)) as raised, reading(tmp_path, "a file"):
            raise passes
        assert str(tmp_path) not in str(raised.value)


@pytest.mark.process
def test_a_copy_is_made_once_for_each_state(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in FILES:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(name.encode())
    put_folder(tmp_path / "set", f"{bucket}/data/set")
    remote, said = as_path(f"{bucket}/data/set/"), []

    def copy():
        return local_copy(remote, lambda name: name.startswith("train"), said.append)

    first = copy()
    assert sorted(file.name for file in first.rglob("*.*")) == ["1.png", "1.png", "2.png"]
    assert copy() == first
    assert len(said) == 1
    (first / "train/a/1.png").unlink()  # the cache was cleaned
    assert (copy() / "train/a/1.png").is_file()
    (remote / "train/a/1.png").write_bytes(b"new")
    assert (copy() / "train/a/1.png").read_bytes() == b"new"
    with pytest.raises(UserError, match=str(remote)):  # it changes meanwhile
        local_copy(remote, lambda name: "3" in name, lambda _: write_whole(remote / FILES[3], "x"))
