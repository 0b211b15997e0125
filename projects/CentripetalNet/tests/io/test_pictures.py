"""Finding, reading and writing the image files of the demo."""

import os

import cv2
import numpy as np
import pytest

from centripetalnet.io.pictures import find_pictures, output_paths, read_picture, write_picture

GREY = np.full((8, 12, 3), 100, np.uint8)
LISTED = ["pictures/b.png\n", "\n", "pictures/wide [1].bmp\r\n", "pictures/inner"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of several formats, another file, and a subfolder with an image."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "wide [1].bmp", "inner/deep.png"):
        os.makedirs(os.path.dirname(os.path.join("pictures", name)), exist_ok=True)
        cv2.imwrite(os.path.join("pictures", name), GREY)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / "named_like.png").mkdir()
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    "arguments, found",
    [
        # The images of a folder in order, without those of its subfolders.
        (["pictures"], ["pictures/a.JPG", "pictures/b.png", "pictures/wide [1].bmp"]),
        # A pattern and another path to files that are named already; brackets in a name.
        (["pictures/b.png", "pictures/[abc].*"], ["pictures/b.png", "pictures/a.JPG"]),
        (["pictures/wide [1].bmp", "./pictures/wide [1].bmp"], ["pictures/wide [1].bmp"]),
        (["-"], ["pictures/b.png", "pictures/wide [1].bmp", "pictures/inner/deep.png"]),
    ],
)
def test_files_folders_patterns_and_lists_are_found(folder, arguments, found):
    listed = iter(LISTED)

    assert find_pictures(arguments, listed) == found

    # Without "-" the list is not read.
    assert list(listed) == ([] if "-" in arguments else LISTED)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pictures/b.png", "pictures/no.png"], "no.png: there is no such file"),
        (["pictures/*.gif"], r"\*.gif: there is no such file"),
        (["empty"], "empty: the folder contains no image.*webp"),
        (["-"], "the list of files is empty"),
    ],
)
def test_arguments_without_images_are_an_error(folder, arguments, message):
    os.mkdir("empty")

    with pytest.raises(FileNotFoundError, match=message):
        find_pictures(arguments)


def test_results_keep_their_names_in_a_folder_and_equal_names_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["x/a.png", "y/a.png", "z/A.PNG", "x/a_2.png", "x/a.gif", "x/a", "x/wide [1].bmp"]
    for name in names:
        os.makedirs(os.path.dirname(name), exist_ok=True)
        open(name, "w").close()

    targets = output_paths("out", names)

    names = ["a.png", "a_2.png", "A_3.PNG", "a_2_2.png", "a_4.png", "a_5.png", "wide [1].bmp"]
    assert targets == [os.path.join("out", x) for x in names]
    assert not os.path.exists("out")
    assert output_paths("out", ["x/a"], (".mp4", ".avi"), kept=()) == ["out/a.mp4"]


def test_a_folder_may_have_an_extension(folder):
    os.mkdir("v1.png")

    assert output_paths("v1.png", ["pictures/b.png"]) == ["v1.png/b.png"]
    assert output_paths("new.png/", ["pictures/b.png"]) == ["new.png/b.png"]


@pytest.mark.parametrize(
    "output, message",
    [
        ("drawn.png", "drawn.png: expected a folder"),
        ("plain", "plain: expected a folder"),
        ("pictures", "would overwrite pictures/b.png"),
        ("linked", "would overwrite pictures/inner/deep.png"),
    ],
)
def test_an_invalid_output_is_an_error(folder, output, message):
    (folder.parent / "plain").touch()
    (folder.parent / "linked").mkdir()
    # A hard link to one input with the name of another.
    os.link(folder / "inner" / "deep.png", folder.parent / "linked" / "b.png")

    with pytest.raises(ValueError, match=message):
        output_paths(output, ["pictures/b.png", "pictures/inner/deep.png"])
    with pytest.raises(ValueError, match=r"drawn.mp4: .* a file with one of the extensions \.png"):
        output_paths("drawn.mp4", ["pictures/b.png"])


@pytest.mark.parametrize("extension", ["bmp", "JPEG", "jpg", "png", "tif", "tiff", "webp"])
def test_an_image_is_written_in_the_format_of_its_extension(tmp_path, extension):
    path = tmp_path / "new" / "folder" / f"picture.{extension}"

    write_picture(GREY, str(path))

    assert os.listdir(path.parent) == [path.name]
    np.testing.assert_allclose(read_picture(str(path)), GREY, atol=2)


def test_an_image_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"big.jpg.*"):
        write_picture(np.zeros((1, 70000, 3), np.uint8), str(tmp_path / "big.jpg"))
    assert not (tmp_path / "big.jpg").exists()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(cv2.imencode(".png", GREY)[1].tobytes()[:40])

    with pytest.raises(OSError, match="cut.png cannot be read as an image"):
        read_picture(str(path))
