"""Checks of image files, and the tool that runs all checks."""

import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_content import HEIGHT, PATH, WIDTH, annotation, coco, image
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from centripetalnet.commands.check import main
from centripetalnet.data.check.images import check_images, missing_images


def picture(mode: str = "RGB", size=(WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(format: str, content: Image.Image, orientation=None, **options) -> bytes:
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    content.save(file, format, **options)
    return file.getvalue()


def two_frames() -> bytes:
    return encoded("PNG", picture(), save_all=True, append_images=[picture("L").convert("RGB")])


def write_images(folder: Path, *files, extension: str = "png") -> list:
    """Writes the bytes of files; returns their entries."""
    images = [image(i, file_name=f"{i}.{extension}") for i in range(1, len(files) + 1)]
    for entry, data in zip(images, files):
        (folder / entry["file_name"]).write_bytes(data)
    return images


GOOD = encoded("PNG", picture())
PNG = encoded("PNG", picture(size=(100, 100)))
# Half of the pixels are above 255.
GREY16 = encoded("PNG", Image.fromarray(np.tile(np.array([1000, 0], np.uint16), (HEIGHT, 5))))
RGB16 = cv2.imencode(".png", np.full((HEIGHT, WIDTH, 3), 1000, np.uint16))[1].tobytes()
NO_BOX = "bbox is not four finite numbers"
TRUNCATED, UNREADABLE = "image file is truncated", "image file cannot be read"
OTHER_SIZE, DEEP = "image size differs from the annotation file", "more than 8 bits per channel"
SIZES = "has 100 x 100, the annotations have 10 x 8"
TURNED = "has 8 x 10, the annotations have 10 x 8, its size before the rotation"


@pytest.mark.parametrize(
    "extension, data, kind, detail",
    [
        ("jpg", encoded("JPEG", picture(), orientation=1), None, None),
        ("png", GOOD, None, None),
        ("png", encoded("PNG", picture("L")), None, None),
        ("png", encoded("PNG", picture("1")), None, None),
        ("png", PNG[: len(PNG) // 2], TRUNCATED, "truncated"),
        ("jpg", b"<html>not found</html>", UNREADABLE, "no image format that Pillow supports"),
        ("png", PNG, OTHER_SIZE, SIZES),
        ("jpg", encoded("JPEG", picture(), orientation=6), OTHER_SIZE, TURNED),
        ("jpg", encoded("JPEG", picture(size=(8, 10)), 6), "rotated by EXIF", "orientation is 6"),
        ("png", GREY16, DEEP, "clipping to 0 ... 255 makes 50% white"),
        ("png", RGB16, DEEP, "of 16 bits the upper 8 are used"),
        ("tif", encoded("TIFF", picture("F")), DEEP, "mode is F"),
        ("jpg", encoded("JPEG", picture("CMYK")), "CMYK", "mode is CMYK"),
        ("png", encoded("PNG", picture("P")), "palette", "mode is P"),
        ("png", encoded("PNG", picture("RGBA")), "alpha channel", "mode is RGBA"),
        ("png", encoded("PNG", picture(), transparency=(0, 0, 0)), "alpha channel", "mode is RGB"),
        ("png", two_frames(), "several frames", "it has 2"),
        # Only the later frame is damaged.
        ("png", two_frames()[:-40], "several frames", "it has"),
    ],
)
def test_each_problem_of_an_image_file_is_reported(tmp_path, extension, data, kind, detail):
    images = write_images(tmp_path, data, extension=extension)

    problems = check_images(images, str(tmp_path), num_workers=0)

    assert [x[:6] for x in problems] == (
        [(kind, "images", 0, 1, None, f"1.{extension}")] if kind else []
    )
    assert not kind or detail in problems[0].detail


@pytest.mark.parametrize("limit, severity", [(60, "note"), (30, "error")])
def test_images_that_are_too_large_for_pillow_are_reported(tmp_path, monkeypatch, limit, severity):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)

    (problem,) = check_images(write_images(tmp_path, GOOD), str(tmp_path), num_workers=0)

    assert problem.severity == severity and "decompression bomb" in problem.detail


def test_missing_images_are_found_in_any_folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "folder.png").mkdir()
    there = [root / "1.png", root / "sub" / "2.png", tmp_path / "3.png"]
    for path in there:
        path.write_bytes(b"")
    names = ["1.png", "sub/2.png", "../3.png", str(there[0]), "sub/../1.png"]
    lost = ["4.png", "sub/1.png", "no/1.png", "folder.png", "sub", "a\0b.png", "\ud800/1.png"]
    images = [image(i, file_name=x) for i, x in enumerate(names + lost + [None])]

    problems = missing_images(images, str(root))

    assert [x.file_name for x in problems] == lost
    assert {x.kind for x in problems} == {"image file is missing"}


def test_worker_processes_report_the_same_in_the_same_order(tmp_path):
    images = write_images(tmp_path, *[GOOD, PNG, PNG] * 12)
    # Not compared with the file, without a name, and missing.
    images += [image(1, width=None), image(98, file_name=None), image(99)]

    problems = check_images(images, str(tmp_path), num_workers=2)

    assert problems == check_images(images, str(tmp_path), num_workers=0)
    assert [x.position for x in problems] == [38] + [i for i in range(36) if i % 3]


def test_the_tool_prints_a_report_lists_problems_and_writes_a_clean_file(tmp_path, capsys):
    images = write_images(tmp_path, GOOD, PNG[:500])
    bad = [annotation(2, bbox=None), annotation(3, image_id=2)]
    json_file, listed, cleaned = (tmp_path / x for x in (PATH, "problems.jsonl", "cleaned.json"))
    json_file.write_text(json.dumps(coco([annotation(1), *bad], images)))
    options = ["--images", str(tmp_path), "--num-workers", "1"]
    outputs = ["--list", str(listed), "--output", str(cleaned)]

    assert main(["--json", str(json_file), *options, *outputs]) == 1

    printed = capsys.readouterr().out
    for text in (NO_BOX, TRUNCATED, "2 invalid entries", "cow"):
        assert text in printed
    problems = [json.loads(x) for x in listed.read_text().splitlines()]
    assert [(x["severity"], x["section"], x["position"]) for x in problems] == [
        ("error", "annotations", 1),
        ("error", "images", 1),
    ]
    assert [x["id"] for x in json.loads(cleaned.read_text())["annotations"]] == [1]
    assert main(["--json", str(cleaned), *options]) == 0
    assert "0 invalid entries" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        ("--dataset checked --no-images", 0, "0 invalid entries"),
        ("--dataset checked --num-workers 0", 1, "image file is missing"),
        ("--json list.json --no-images", 1, "is not a COCO annotation file"),
        ("", 2, "one of the arguments --dataset --json is required"),
        ("--json list.json", 2, "--json needs --images FOLDER"),
        ("--dataset x --images x", 2, "--images goes with --json"),
        ("--dataset x --num-workers -1", 2, "expected 0 or more"),
        ("--json list.json --images nowhere", 2, "there is no folder nowhere"),
        ("--json nothing.json --no-images", 2, "no annotation file nothing.json"),
        ("--dataset nonesuch --no-images", 2, "no dataset 'nonesuch' is registered"),
        ("--dataset x --output list.json", 2, "exists; name another file"),
        ("--dataset x --list nowhere/list", 2, "there is no such folder"),
        ("--dataset x --list a --output a", 2, "name the same file"),
    ],
)
def test_the_exit_status_of_the_tool(tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    Path(PATH).write_text(json.dumps(coco()))
    Path("list.json").write_text("[]")
    register_coco_instances("checked", {}, PATH, ".")
    try:
        result = main(arguments.split())
    except SystemExit as exit:
        result = exit.code
    finally:
        DatasetCatalog.remove("checked")
        MetadataCatalog.remove("checked")

    output = capsys.readouterr()
    assert result == status and message in output.out + output.err
    assert status < 2 or message in output.err.splitlines()[-1]
    assert Path("list.json").read_text() == "[]" and len(os.listdir()) == 2
