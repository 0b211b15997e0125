import json

import pytest
from coco_content import annotation, coco
from conftest import config
from detectron2.data import DatasetCatalog, MetadataCatalog

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


def test_a_file_that_is_missing_is_left_to_what_needs_it(entry):
    register_own_datasets([[entry[0], entry[1] + ".no", entry[2]]])

    assert "own_train" in DatasetCatalog.list()


@pytest.mark.parametrize("bad", [["name"], ["name", "file", 3], ["a", "b", "c", "d"], "name"])
def test_an_entry_of_another_form_is_named(bad):
    with pytest.raises(ValueError, match="COCO_FORMAT has the entry .* expected .name, annotation"):
        register_own_datasets([bad])


def test_the_name_of_another_dataset_is_refused(entry):
    with pytest.raises(ValueError, match="another dataset of the name 'coco_2017_val'"):
        register_own_datasets([["coco_2017_val", *entry[1:]]])
