"""Atomic writing of files."""

import os

import pytest

from centripetalnet.io.files import atomic_file, atomic_path


@pytest.fixture(params=["local", "remote"])
def place(request, remote):
    """The address of a file and its path, in an empty folder."""
    path = remote / "file"
    return ("test-store://file" if request.param == "remote" else str(path)), path


def test_a_file_appears_when_the_block_ends(place):
    address, path = place

    with atomic_file(address, durable=True) as file:
        file.write("ä")
        assert not path.exists()

    assert path.read_text(encoding="utf-8") == "ä"
    assert list(path.parent.iterdir()) == [path]


def test_the_temporary_path_may_have_the_extension(tmp_path):
    path = tmp_path / "program.pt2"

    with atomic_path(str(path), ending=".pt2") as unfinished:
        assert unfinished.endswith(".pt2")
        (tmp_path / unfinished).write_bytes(b"complete")
        assert not path.exists()

    assert path.read_bytes() == b"complete"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_keeps_the_previous_file(place, error):
    address, path = place
    path.write_bytes(b"before")

    with pytest.raises(error), atomic_file(address, "wb") as file:
        file.write(b"half")
        raise error

    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_durable_file_is_synced_before_and_its_folder_after_the_rename(tmp_path, monkeypatch):
    path = tmp_path / "file"
    synced = []
    fsync = os.fsync

    def note(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)

    with atomic_file(str(path), durable=True) as file:
        file.write("content")

    assert synced == [(f"{path}.part", False), (str(tmp_path), True)]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(path)

    monkeypatch.setattr(os, "open", refuse)

    with atomic_file(str(tmp_path / "file"), durable=True) as file:
        file.write("content")

    assert (tmp_path / "file").read_text() == "content"
