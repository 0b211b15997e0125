"""The commands of docs/own-data.md, run on a generated dataset."""

import importlib.util
import json
import re
import shlex

import cv2
import numpy as np
import pytest
from conftest import PROJECT
from training import run

from centripetalnet.data import build_augmentations, load_config

GUIDE = PROJECT.parents[1] / "docs" / "own-data.md"
pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="the project is outside its repository")
CLASSES = ("disc", "square", "triangle")
# Added to the guide's config, for a short training on small images.
SMALL = """
INPUT:
  MIN_SIZE_TRAIN: (64,)
  MIN_SIZE_TEST: 64
  CENTER_CROP_PAD:
    SIZE: [64, 64]
SOLVER:
  MAX_ITER: 30
  CHECKPOINT_PERIOD: 20
TEST:
  EVAL_PERIOD: 20
"""


def draw(image, cls, x, y, side, color):
    if CLASSES[cls] == "disc":
        cv2.circle(image, (x + side // 2, y + side // 2), side // 2, color, -1)
    elif CLASSES[cls] == "square":
        cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), color, -1)
    else:
        corners = np.array([(x, y + side), (x + side, y + side), (x + side // 2, y)])
        cv2.fillPoly(image, [corners], color)


def make_dataset(folder, name, count, random):
    """Shapes on noise, as JPEG files with a COCO annotation file beside their folder."""
    (folder / name).mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 10 * i, "name": x} for i, x in enumerate(CLASSES, 1)]
    for number in range(count):
        height, width = random.integers(70, 120, 2).tolist()
        image = random.integers(0, 60, (height, width, 3)).astype(np.uint8)
        for _ in range(2):
            cls, side = int(random.integers(3)), int(random.integers(16, 40))
            x, y = int(random.integers(width - side)), int(random.integers(height - side))
            draw(image, cls, x, y, side, random.integers(120, 256, 3).tolist())
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 10 * (cls + 1),
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        file_name = f"{number}.jpg"
        cv2.imwrite(str(folder / name / file_name), image)
        content["images"].append(
            {"id": number, "file_name": file_name, "height": height, "width": width}
        )
    (folder / f"{name}.json").write_text(json.dumps(content))


def commands_of(guide):
    """Commands in the code blocks."""
    return re.findall(r"^    ((?:\./|tools/|demo/)\S+\.py .*)$", guide, flags=re.MULTILINE)


def test_every_command_of_the_guide_works_as_printed(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    make_dataset(tmp_path / "my", "train", 12, random)
    make_dataset(tmp_path / "my", "val", 4, random)
    for name in ("configs", "tools", "demo", "train_net.py"):
        (tmp_path / name).symlink_to(PROJECT / name)
    guide = GUIDE.read_text()
    config, _ = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "my" / "config.yaml").write_text(config + SMALL)
    monkeypatch.chdir(tmp_path)

    commands = commands_of(guide)
    # The last step of the guide needs optional packages.
    can_export = all(map(importlib.util.find_spec, ("onnx", "onnxruntime")))
    for command in commands:
        if "export_model.py" in command and not can_export:
            continue
        pictures = " ".join(map(shlex.quote, sorted(map(str, tmp_path.glob("my/val/*.jpg")))))
        result = run(*shlex.split(command.replace("my/val/*.jpg", pictures)))
        assert result.returncode == 0, (command, result.stderr[-3000:])

    assert len(commands) == 9
    output = tmp_path / "output"
    assert {x.name for x in (output / "detected").iterdir()} == {f"{i}.jpg" for i in range(4)}
    assert len(list((output / "explained").iterdir())) == 4
    assert (output / "my.onnx").is_file() == can_export
    for name in ("model_best.pth", "model_final.pth", "metrics.json", "log.txt"):
        assert (output / "my" / name).is_file()
    assert "disc" in (output / "my" / "log.txt").read_text()


def test_the_guide_s_sizes_for_photographs_fill_their_canvas():
    _, sizes = re.findall(r"^    (INPUT:\n(?: {6}.*\n)+)", GUIDE.read_text(), flags=re.MULTILINE)
    values = [part for line in sizes.split("\n")[1:-1] for part in line.split(":")]
    opts = {f"INPUT.{key.strip()}": value.strip() for key, value in zip(values[::2], values[1::2])}
    cfg = load_config("centripetal_hg104", [x for pair in opts.items() for x in pair])
    photograph = np.zeros((3000, 4000, 3), np.uint8)

    seen = [
        build_augmentations(cfg, is_train)[0].get_transform(photograph).apply_image(photograph)
        for is_train in (False, True)
    ]

    bits = cfg.MODEL.CENTRIPETALNET.TEST_CANVAS_BITS
    assert len(opts) == 4 and seen[0].shape == seen[1].shape == (767, 1023, 3)
    assert [x | bits for x in seen[0].shape[:2]] == [767, 1023]
