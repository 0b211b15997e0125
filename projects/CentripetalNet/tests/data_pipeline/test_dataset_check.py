import json

import pytest

from centripetalnet.data.dataset_check import check_coco_categories, check_num_classes


def annotation_file(tmp_path, categories):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return str(path)


def test_gives_the_classes_in_the_order_of_their_ids(tmp_path):
    path = annotation_file(tmp_path, [{"id": 7, "name": "cow"}, {"id": 2, "name": "bear"}])

    assert check_coco_categories(path) == ["bear", "cow"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        check_coco_categories(str(tmp_path / "nothing.json"))


@pytest.mark.parametrize(
    "categories, message",
    [
        ([{"id": 1, "name": "cow"}, {"id": 1, "name": "bear"}], "id 1"),
        ([{"id": 1, "name": "cow"}, {"id": 2, "name": "cow"}], "name 'cow'"),
    ],
)
def test_a_category_named_twice_is_named(tmp_path, categories, message):
    with pytest.raises(ValueError, match=f"annotations.json.*{message}"):
        check_coco_categories(annotation_file(tmp_path, categories))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"categories": [{"id": 1}]}', "\x00"])
def test_a_file_that_is_not_coco_is_named(tmp_path, content):
    path = tmp_path / "annotations.json"
    path.write_text(content)

    with pytest.raises(ValueError, match="annotations.json is not a COCO annotation file"):
        check_coco_categories(str(path))


def test_another_number_of_classes_is_named():
    check_num_classes("pets", ["cat", "dog"], 2)
    with pytest.raises(ValueError, match="NUM_CLASSES is 80.*pets has 2 classes.*set it to 2"):
        check_num_classes("pets", ["cat", "dog"], 80)
