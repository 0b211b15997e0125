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


def test_a_dataset_may_be_remote(remote):
    (remote / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(remote / "images" / name)
    content = coco([annotation(1)])
    for image, name in zip(content["images"], ("a.png", "b.png")):
        image["file_name"] = name
    (remote / "annotations.json").write_text(json.dumps(content))
    entry = ["remote_train", "test-store://annotations.json", "test-store://images"]

    try:
        config(DATASETS__COCO_FORMAT=[entry])
        names = usable_datasets(["remote_train"], "test-store://output", skip_unusable=False)
        images = [read_image(x["file_name"], "RGB") for x in DatasetCatalog.get("remote_train")]
    finally:
        DatasetCatalog.remove("remote_train")
        MetadataCatalog.remove("remote_train")

    assert names == ["remote_train"]
    assert [x.shape for x in images] == [(HEIGHT, WIDTH, 3)] * 2


def test_a_remote_dataset_is_used_without_invalid_entries(remote):
    (remote / "images").mkdir()
    content = coco([annotation(1)])
    names = [x["file_name"] for x in content["images"]]
    Image.new("RGB", (WIDTH, HEIGHT)).save(remote / "images" / names[0])
    (remote / "annotations.json").write_text(json.dumps(content))
    entry = ["remote_train", "test-store://annotations.json", "test-store://images"]
    registered = ["remote_train"]

    try:
        register_own_datasets([entry])
        registered += usable_datasets(registered, "test-store://output", skip_unusable=True)
        left = DatasetCatalog.get(registered[-1])
    finally:
        for name in registered:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    assert [x["file_name"] for x in left] == [f"test-store://images/{names[0]}"]
    assert (remote / "output" / "usable_annotations" / "remote_train.json").is_file()
