"""Checks of image files, and the tool that runs all checks."""

import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_content import HEIGHT, PATH, WIDTH, annotation, coco, image
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from PIL import Image

from centripetalnet.data.check import check_images, missing_images

TOOL = Path(__file__).parents[2] / "tools" / "check_dataset.py"


def picture(mode: str = "RGB", size=(WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(format: str, content: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    content.save(file, format, **options)
    return file.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def deep_picture() -> Image.Image:
    """16 bits per channel; half of the pixels are above 255."""
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    values[:, ::2] = 1000
    return Image.fromarray(values)


def two_frames(format: str, extension: str) -> tuple:
    options = {"save_all": True, "append_images": [picture("L").convert("RGB")]}
    return extension, encoded(format, picture(), **options)


JPEG = encoded("JPEG", picture(size=(100, 100)))
PNG = encoded("PNG", picture(size=(100, 100)))
TRUNCATED, UNREADABLE = "image file is truncated", "image file cannot be read"
OTHER_SIZE, DEEP = "image size differs from the annotation file", "more than 8 bits per channel"


def write_images(folder: Path, *files) -> dict:
    """Writes files of (extension, bytes); returns the content of their annotation file."""
    names = []
    for index, (extension, data) in enumerate(files, start=1):
        (folder / f"{index}.{extension}").write_bytes(data)
        names.append(f"{index}.{extension}")
    return coco(images=[image(i, file_name=x) for i, x in enumerate(names, start=1)])


@pytest.mark.parametrize(
    "extension, data",
    [
        ("jpg", encoded("JPEG", picture())),
        ("png", encoded("PNG", picture())),
        ("png", encoded("PNG", picture("L"))),
        ("png", encoded("PNG", picture("1"))),
        ("jpg", encoded("JPEG", picture(), exif=orientation(1))),
    ],
)
def test_rgb_and_grey_images_have_no_problem(tmp_path, extension, data):
    content = write_images(tmp_path, (extension, data))

    assert check_images(content, str(tmp_path), num_workers=0).problems == []


@pytest.mark.parametrize(
    "extension, data, kind, detail",
    [
        ("jpg", JPEG[: len(JPEG) // 2], TRUNCATED, "truncated"),
        ("png", PNG[: len(PNG) // 2], TRUNCATED, "truncated"),
        ("jpg", b"", UNREADABLE, "no image format that Pillow supports"),
        ("jpg", b"<html>not found</html>", UNREADABLE, "no image format that Pillow supports"),
        ("png", PNG, OTHER_SIZE, "the file has 100 x 100, the annotations have 10 x 8"),
        (
            "jpg",
            encoded("JPEG", picture(), exif=orientation(6)),
            OTHER_SIZE,
            "8 x 10, the annotations have 10 x 8, its size before the rotation",
        ),
        (
            "jpg",
            encoded("JPEG", picture(size=(HEIGHT, WIDTH)), exif=orientation(6)),
            "rotated by EXIF",
            "orientation 6",
        ),
        ("png", encoded("PNG", deep_picture()), DEEP, "which makes 50% white"),
        ("tif", encoded("TIFF", picture("F")), DEEP, "mode F"),
        ("jpg", encoded("JPEG", picture("CMYK")), "CMYK", "without a colour profile"),
        ("png", encoded("PNG", picture("P")), "palette", "the palette's colours"),
        ("png", encoded("PNG", picture("RGBA")), "alpha channel", "dropped"),
        ("png", encoded("PNG", picture("RGB"), transparency=(0, 0, 0)), "alpha channel", "dropped"),
        (*two_frames("PNG", "png"), "several frames", "2; the first is used"),
        (*two_frames("WEBP", "webp"), "several frames", "2; the first is used"),
    ],
)
def test_each_problem_of_an_image_file_is_reported(tmp_path, extension, data, kind, detail):
    content = write_images(tmp_path, (extension, data))

    (problem,) = check_images(content, str(tmp_path), num_workers=0).problems

    assert (problem.kind, problem.image_id, problem.file_name) == (kind, 1, f"1.{extension}")
    assert detail in problem.detail


def test_an_animated_gif_has_frames_and_a_palette(tmp_path):
    content = write_images(tmp_path, two_frames("GIF", "gif"))

    problems = check_images(content, str(tmp_path), num_workers=0).problems

    assert {"several frames", "palette"} >= {x.kind for x in problems}
    assert "several frames" in {x.kind for x in problems}


def test_an_animation_with_a_damaged_later_frame_is_valid(tmp_path):
    extension, data = two_frames("GIF", "gif")
    content = write_images(tmp_path, (extension, data[:-40]))
    read_image(str(tmp_path / "1.gif"), format="RGB")

    assert check_images(content, str(tmp_path), num_workers=0).errors == []


def test_values_of_deep_images_are_clipped_as_the_note_says(tmp_path):
    (tmp_path / "deep.png").write_bytes(encoded("PNG", deep_picture()))

    image_array = read_image(str(tmp_path / "deep.png"), format="RGB")

    assert (image_array[:, ::2] == 255).all() and (image_array[:, 1::2] == 0).all()


@pytest.mark.parametrize("limit, severity", [(60, "note"), (30, "error")])
def test_images_that_are_too_large_for_pillow_are_reported(tmp_path, monkeypatch, limit, severity):
    content = write_images(tmp_path, ("png", encoded("PNG", picture())))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)

    (problem,) = check_images(content, str(tmp_path), num_workers=0).problems

    assert problem.severity == severity
    assert "decompression bomb" in problem.detail


def test_missing_images_are_found_in_any_folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "folder.png").mkdir()
    there = [root / "1.png", root / "sub" / "2.png", tmp_path / "3.png"]
    for path in there:
        path.write_bytes(b"")
    names = ["1.png", "sub/2.png", "../3.png", str(there[0]), "sub/../1.png"]
    lost = ["4.png", "sub/1.png", "no/1.png", "folder.png", "sub", "a\0b.png", "\ud800/1.png"]
    content = coco(images=[image(i, file_name=x) for i, x in enumerate(names + lost)])

    report = missing_images(content, str(root))

    assert [x.file_name for x in report.problems] == lost
    assert {x.kind for x in report.problems} == {"image file is missing"}


def test_worker_processes_report_the_same_in_the_same_order(tmp_path):
    good, bad = ("png", encoded("PNG", picture())), ("png", PNG)
    content = write_images(tmp_path, *[good, bad, bad] * 12)
    content["images"].append(image(99))

    report = check_images(content, str(tmp_path), num_workers=2)

    assert report == check_images(content, str(tmp_path), num_workers=0)
    assert len(report.problems) == 25 and report.num_images == 37


def test_the_image_check_skips_entries_without_a_valid_name_or_size(tmp_path):
    content = write_images(tmp_path, ("png", encoded("PNG", picture())))
    content["images"][0]["width"] = None
    content["images"].append(image(2, file_name=None))

    assert check_images(content, str(tmp_path), num_workers=0).problems == []


def run_tool(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tool_main():
    """The tool's main in this process, since the imports take seconds."""
    return runpy.run_path(str(TOOL))["main"]


def test_the_tool_prints_a_report_lists_problems_and_writes_a_clean_file(
    tmp_path, tool_main, capsys
):
    content = write_images(tmp_path, ("png", encoded("PNG", picture())), ("png", PNG[:500]))
    content["annotations"] = [annotation(1), annotation(2, bbox=None), annotation(3, image_id=2)]
    json_file, listed, cleaned = (tmp_path / x for x in (PATH, "problems.jsonl", "cleaned.json"))
    json_file.write_text(json.dumps(content))
    arguments = ["--images", str(tmp_path), "--num-workers", "1"]

    result = run_tool("--json", json_file, *arguments, "--list", listed, "--output", cleaned)

    assert result.returncode == 1, result.stderr
    assert "bbox is not four finite numbers" in result.stdout and TRUNCATED in result.stdout
    problems = [json.loads(x) for x in listed.read_text().splitlines()]
    assert [(x["severity"], x["section"], x["position"]) for x in problems] == [
        ("error", "annotations", 1),
        ("error", "images", 1),
    ]
    assert [x["id"] for x in json.loads(cleaned.read_text())["annotations"]] == [1]
    assert tool_main(["--json", str(cleaned), *arguments]) == 0
    assert "errors (invalid entries): none" in capsys.readouterr().out


def test_the_tool_checks_a_registered_dataset(tmp_path, tool_main, capsys):
    json_file = tmp_path / PATH
    json_file.write_text(json.dumps(coco()))
    register_coco_instances("dataset_images_test", {}, str(json_file), str(tmp_path))

    try:
        assert tool_main(["--dataset", "dataset_images_test", "--no-images"]) == 0
        assert tool_main(["--dataset", "dataset_images_test", "--num-workers", "0"]) == 1
    finally:
        DatasetCatalog.remove("dataset_images_test")
        MetadataCatalog.remove("dataset_images_test")
    assert "image file is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        ([], 2, "one of the arguments --dataset --json is required"),
        (["--json", "{annotations}"], 2, "--json needs --images FOLDER"),
        (["--dataset", "x", "--images", "x"], 2, "--images goes with --json"),
        (["--dataset", "x", "--num-workers", "-1"], 2, "expected 0 or more"),
        (["--json", "{annotations}", "--images", "nowhere"], 2, "there is no folder nowhere"),
        (["--json", "nothing.json", "--no-images"], 2, "no annotation file nothing.json"),
        (["--dataset", "nonesuch", "--no-images"], 2, "no dataset 'nonesuch' is registered"),
        (
            ["--json", "{annotations}", "--no-images", "--output", "{annotations}"],
            2,
            "exists; name another file",
        ),
        (["--dataset", "x", "--list", "nowhere/list"], 2, "there is no such folder"),
        (["--json", "{annotations}", "--no-images"], 1, "is not a COCO annotation file"),
    ],
)
def test_an_error_of_the_tool_is_one_line(tmp_path, tool_main, capsys, arguments, status, message):
    json_file = tmp_path / PATH
    json_file.write_text("[]")

    try:
        result = tool_main([x.format(annotations=json_file) for x in arguments])
    except SystemExit as exit:
        result = exit.code

    assert result == status
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert json_file.read_text() == "[]" and os.listdir(tmp_path) == [PATH]
