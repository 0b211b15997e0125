import json
import os
import re

import pytest
from coco_content import annotation, coco, image
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from centripetalnet.data.checked_datasets import check_datasets, usable_datasets


@pytest.fixture
def register(tmp_path):
    """Registers a content as the dataset "checked", with the images 1.png and 2.png."""
    for i in (1, 2):
        Image.new("RGB", (10, 8)).save(tmp_path / f"{i}.png")

    def make(content):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        register_coco_instances("checked", {}, str(path), str(tmp_path))

    yield make
    for name in ("checked", "checked_usable"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


# The box is outside the image; the category is unknown; the file is missing.
BAD = [annotation(2, bbox=[20, 1, 4, 4]), annotation(3, category_id=9), annotation(4, image_id=5)]
BAD_CONTENT = coco([annotation(1), *BAD], [image(1), image(2), image(5)])


def test_a_sound_dataset_is_taken_as_it_is_and_says_nothing(register, tmp_path, caplog):
    register(coco([annotation(1)]))

    assert usable_datasets(["checked"], str(tmp_path / "out"), False) == ["checked"]
    assert not (tmp_path / "out").exists() and not caplog.records


def test_what_cannot_be_used_stops_a_training_with_a_page(register, tmp_path):
    register(BAD_CONTENT)

    with pytest.raises(ValueError) as error:
        usable_datasets(["checked"], str(tmp_path / "out"), False)

    page = str(error.value)
    for expected in (
        "annotations.json",
        "image 5 '5.png': there is no file",
        "annotation 2: bbox is [20, 1, 4, 4]",
        "annotation 3: category_id is 9",
        "DATALOADER.SKIP_UNUSABLE True",
    ):
        assert expected in page
    assert len(page.splitlines()) < 60


def test_by_config_key_it_is_left_out_and_counted(register, tmp_path, caplog):
    register(BAD_CONTENT)

    for _ in range(2):
        (name,) = usable_datasets(["checked"], str(tmp_path / "out"), True)

    records = get_detection_dataset_dicts([name], filter_empty=False)
    assert [x["image_id"] for x in records] == [1, 2]
    assert [len(x["annotations"]) for x in records] == [1, 0]
    assert MetadataCatalog.get(name).thing_classes == ["cow", "bear"]
    assert "Left out 1 of 3 images" in caplog.text
    assert "Left out 3 of 4 annotations" in caplog.text


def test_what_is_converted_is_told(register, tmp_path, caplog):
    register(coco([annotation(1), annotation(2, bbox=[2, 2, 0, 3])]))

    assert usable_datasets(["checked"], str(tmp_path), False) == ["checked"]
    assert re.search("box without an area +1 in 1 image", caplog.text)


def test_a_file_is_looked_at_again_only_if_it_has_changed(register, tmp_path, caplog):
    register(coco([annotation(1), annotation(2, bbox=[2, 2, 0, 3])]))
    for _ in range(2):
        usable_datasets(["checked"], str(tmp_path), False)
    assert len(caplog.records) == 1

    os.utime(tmp_path / "annotations.json", (0, 0))
    usable_datasets(["checked"], str(tmp_path), False)

    assert len(caplog.records) == 2


def test_other_formats_are_left_to_their_own_loaders(tmp_path):
    DatasetCatalog.register("other", lambda: [])
    try:
        MetadataCatalog.get("other").set(thing_classes=["cow"])

        check_datasets(["other"], 1)
        assert usable_datasets(["other"], str(tmp_path), False) == ["other"]
    finally:
        DatasetCatalog.remove("other")
        MetadataCatalog.remove("other")
