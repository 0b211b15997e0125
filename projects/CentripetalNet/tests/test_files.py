"""Files have their name only once they are complete."""

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
