"""Files have their name only once they are complete."""

import os

import pytest

from centripetalnet.files import complete_file, complete_path


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "file"

    with complete_file(str(path)) as file:
        file.write("ä")
        assert not path.exists()

    assert path.read_text(encoding="utf-8") == "ä"
    assert list(tmp_path.iterdir()) == [path]


def test_until_then_a_path_may_keep_its_ending(tmp_path):
    path = tmp_path / "program.pt2"

    with complete_path(str(path), ending=".pt2") as unfinished:
        assert unfinished.endswith(".pt2")
        (tmp_path / unfinished).write_bytes(b"whole")
        assert not path.exists()

    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_before(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    with pytest.raises(error), complete_file(str(path), "wb") as file:
        file.write(b"half")
        raise error

    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_file_and_then_its_name_are_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "file"
    synced = []
    fsync = os.fsync

    def note(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)

    with complete_file(str(path), durable=True) as file:
        file.write("content")

    assert synced == [(f"{path}.part", False), (str(tmp_path), True)]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(path)

    monkeypatch.setattr(os, "open", refuse)

    with complete_file(str(tmp_path / "file"), durable=True) as file:
        file.write("content")

    assert (tmp_path / "file").read_text() == "content"


def test_a_remote_file_appears_whole_when_the_block_ends(remote):
    with complete_file("test-store://file", durable=True) as file:
        file.write("\u00e4")
        assert not (remote / "file").exists()

    assert (remote / "file").read_text(encoding="utf-8") == "\u00e4"


def test_an_error_leaves_the_remote_file_as_it_was(remote):
    (remote / "file").write_bytes(b"before")

    with pytest.raises(KeyboardInterrupt), complete_file("test-store://file", "wb") as file:
        file.write(b"half")
        raise KeyboardInterrupt

    assert (remote / "file").read_bytes() == b"before"
