import json

import pytest
from coco_content import HEIGHT, WIDTH, annotation, coco
from conftest import config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image

from centripetalnet.data.check.datasets import usable_datasets
from centripetalnet.data.own_datasets import register_own_datasets


@pytest.fixture
def entry(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco([annotation(1)])))
    yield ["own_train", str(path), str(tmp_path)]
    if "own_train" in DatasetCatalog.list():
        DatasetCatalog.remove("own_train")
        MetadataCatalog.remove("own_train")


def test_datasets_of_a_config_are_registered_with_their_classes(entry):
    for _ in range(2):
        config(DATASETS__COCO_FORMAT=[entry])

    metadata = MetadataCatalog.get("own_train")
    assert metadata.thing_classes == ["cow", "bear"]
    assert metadata.json_file == entry[1] and metadata.image_root == entry[2]
    assert len(DatasetCatalog.get("own_train")) == 2


def test_a_missing_file_is_no_error_at_registration(entry):
    register_own_datasets([[entry[0], entry[1] + ".no", entry[2]]])

    assert "own_train" in DatasetCatalog.list()


@pytest.mark.parametrize("bad", [["name"], ["name", "file", 3], ["a", "b", "c", "d"], "name"])
def test_an_entry_of_another_form_is_named(bad):
    with pytest.raises(ValueError, match="COCO_FORMAT has the entry .* expected .name, annotation"):
        register_own_datasets([bad])


def test_the_name_of_another_dataset_is_refused(entry):
    with pytest.raises(ValueError, match="another dataset of the name 'coco_2017_val'"):
        register_own_datasets([["coco_2017_val", *entry[1:]]])


@pytest.mark.parametrize("num_files", [2, 1])
def test_a_remote_dataset_is_used_without_invalid_entries(remote, num_files):
    (remote / "images").mkdir()
    content = coco([annotation(1)])
    names = [x["file_name"] for x in content["images"]][:num_files]
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(remote / "images" / name)
    (remote / "annotations.json").write_text(json.dumps(content))
    config(
        DATASETS__COCO_FORMAT=[
            ["remote_train", "test-store://annotations.json", "test-store://images"]
        ]
    )
    registered = {"remote_train"}

    try:
        (used,) = usable_datasets(["remote_train"], "test-store://output", num_files == 1)
        registered.add(used)
        files = [x["file_name"] for x in DatasetCatalog.get(used)]
        images = [read_image(x, "RGB") for x in files]
    finally:
        for name in registered:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    assert files == [f"test-store://images/{x}" for x in names]
    assert [x.shape for x in images] == [(HEIGHT, WIDTH, 3)] * num_files
    changed = remote / "output" / "usable_annotations" / "remote_train.json"
    assert changed.is_file() == (num_files == 1) == (used != "remote_train")
