# SPDX-License-Identifier: Apache-2.0
"""Writing files whole or not at all."""

import os

import pytest

from mindformers.atomic import replacing, write_bytes, write_text


def test_a_new_file_and_one_that_is_replaced(tmp_path):
    """The content is there, nothing else is, and the file's mode is the one a plain open gives."""
    path, plain = tmp_path / "a.txt", tmp_path / "plain"
    plain.write_text("")
    write_text(path, "Löwe\n")
    assert path.read_bytes() == "Löwe\n".encode()
    write_bytes(str(path), b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "plain"]
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_body_that_fails_leaves_the_old_file(tmp_path):
    """Half of the new content is thrown away."""
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path, monkeypatch):
    """The flush is before the rename."""

    def full(handle):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    """A forgotten write must not pass for an empty file."""
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert not os.listdir(tmp_path)
