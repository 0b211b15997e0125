import json
import math
import os
import re

import numpy as np
import pytest
import torch
from coco_content import annotation, coco, image, rle
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from centripetalnet.data.check.datasets import check_datasets, usable_datasets


@pytest.fixture
def register(tmp_path):
    """Registers a content as the dataset "checked" with the images 1.png and 2.png."""
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


# A box outside the image, an unknown category and an image without a file.
BAD = [annotation(2, bbox=[20, 1, 4, 4]), annotation(3, category_id=9), annotation(4, image_id=5)]
BAD_CONTENT = coco([annotation(1), *BAD], [image(1), image(2), image(5)])


def test_a_valid_dataset_is_used_unchanged_without_a_warning(register, tmp_path, caplog):
    register(coco([annotation(1)]))

    assert usable_datasets(["checked"], str(tmp_path / "out"), False) == ["checked"]
    assert not (tmp_path / "out").exists() and not caplog.records


def test_invalid_entries_stop_a_training_with_a_report(register, tmp_path):
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


def test_with_skip_unusable_invalid_entries_are_left_out_and_counted(register, tmp_path, caplog):
    register(BAD_CONTENT)

    for _ in range(2):
        (name,) = usable_datasets(["checked"], str(tmp_path / "out"), True)

    records = get_detection_dataset_dicts([name], filter_empty=False)
    assert [x["image_id"] for x in records] == [1, 2]
    assert [len(x["annotations"]) for x in records] == [1, 0]
    assert MetadataCatalog.get(name).thing_classes == ["cow", "bear"]
    assert "Left out 1 of 3 images" in caplog.text
    assert "Left out 3 of 4 annotations" in caplog.text


def test_converted_entries_are_logged(register, tmp_path, caplog):
    register(coco([annotation(1), annotation(2, bbox=[2, 2, 0, 3])]))

    assert usable_datasets(["checked"], str(tmp_path), False) == ["checked"]
    assert re.search("box without an area +1 in 1 image", caplog.text)


def test_a_file_is_checked_again_only_if_it_has_changed(register, tmp_path, caplog):
    register(coco([annotation(1), annotation(2, bbox=[2, 2, 0, 3])]))
    for _ in range(2):
        usable_datasets(["checked"], str(tmp_path), False)
    assert len(caplog.records) == 1

    os.utime(tmp_path / "annotations.json", (0, 0))
    usable_datasets(["checked"], str(tmp_path), False)

    assert len(caplog.records) == 2


@pytest.fixture
def register_function(tmp_path, monkeypatch):
    """Registers a function as the dataset "made", with the images 1.png to 3.png of 10 x 8."""
    monkeypatch.chdir(tmp_path)
    for i in (1, 2, 3):
        Image.new("RGB", (10, 8)).save(tmp_path / f"{i}.png")

    def make(function, **metadata):
        DatasetCatalog.register("made", function)
        MetadataCatalog.get("made").set(**{"thing_classes": ["cow", "bear"], **metadata})

    yield make
    for name in ("made", "made_usable", "made_usable_train"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


def box(**changes):
    """A valid annotation of a record with the given changes; ... removes a field."""
    fields = {"bbox": [2, 1, 6, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, **changes}
    return {key: value for key, value in fields.items() if value is not ...}


def record(number, *annotations, **changes):
    fields = {
        "file_name": f"{number}.png",
        "image_id": number,
        "height": 8,
        "width": 10,
        "annotations": list(annotations),
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not ...}


def test_records_in_every_form_of_detectron2_are_valid(register_function, tmp_path, caplog):
    polygon = [2, 1, 6, 1, 6, 4.0, 2, 4]
    code = rle()
    records = [
        record(
            1,
            box(iscrowd=1, segmentation={**code, "counts": code["counts"].encode("ascii")}),
            box(bbox=(2, 1, 4, 3), bbox_mode=BoxMode.XYWH_ABS, segmentation=[polygon]),
            box(bbox=np.array([2, 1, 6, 4.0]), segmentation=[np.array(polygon)]),
            box(category_id=np.int64(0), segmentation=code, keypoints=[1, 2], ignored="yes"),
            box(bbox=[np.float32(2), 1, 6, np.int64(4)], bbox_mode=0, segmentation=[]),
            neg_category_ids=[5],
        ),
        record(2, image_id="two", height=np.int32(8), annotations=...),
        record(3, file_name="https://example.com/3.png"),
    ]
    register_function(lambda: records)

    assert usable_datasets(["made"], str(tmp_path), False) == ["made"]
    assert not caplog.records


BAD_POLYGON = [[1, 2, 3, 4, 5, math.nan]]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"bbox": [2, 1, 6, math.inf]}, "bbox is [2, 1, 6, inf]"),
        ({"bbox": [6, 1, 2, 4]}, "bbox is [6, 1, -4, 3]; width and height must be positive"),
        ({"bbox": [20, 1, 24, 4]}, "bbox is [20, 1, 4, 3] in an image of 10 x 8"),
        ({"bbox": np.array([2, 1, 4, 3]), "bbox_mode": BoxMode.XYWH_ABS}, "bbox is array("),
        ({"bbox": ...}, "there is no bbox"),
        ({"bbox_mode": ...}, "there is none; expected one of detectron2.structures.BoxMode"),
        ({"bbox_mode": BoxMode.XYXY_REL}, "it is <BoxMode.XYXY_REL: 2>"),
        ({"category_id": 2}, "category_id is 2; expected one of the 2 category ids, 0 to 1"),
        ({"category_id": -1}, "category_id is -1"),
        ({"category_id": ...}, "there is no category_id"),
        ({"iscrowd": 2}, "iscrowd is 2"),
        ({"segmentation": BAD_POLYGON}, "a coordinate is nan"),
        ({"segmentation": {"size": [8, 10], "counts": [80]}}, "its counts are a list"),
        ({"segmentation": {"size": [8, 10], "counts": b"1"}}, "its runs have 1 pixels together"),
    ],
)
def test_invalid_annotations_of_records_are_reported(
    register_function, tmp_path, changes, expected
):
    good, bad = record(1, box()), record(2, box(), box(**changes))
    register_function(lambda: [good, bad])

    with pytest.raises(ValueError) as error:
        usable_datasets(["made"], str(tmp_path), False)

    page = str(error.value)
    assert f"image 2 '2.png' annotation 1: {expected}" in page
    assert "Fix the function" in page and "DATALOADER.SKIP_UNUSABLE True" in page


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"file_name": ...}, "there is no file_name"),
        ({"file_name": "/gone/2.png"}, "there is no file /gone/2.png"),
        ({"height": ...}, "there is no height"),
        ({"width": "10"}, "width is '10'; expected a positive integer"),
        ({"image_id": ...}, "no image_id; expected an integer or a string"),
        ({"image_id": 2.5}, "image_id is 2.5"),
        ({"image_id": 1}, "2 images have the id"),
    ],
)
def test_invalid_images_of_records_are_reported(register_function, tmp_path, changes, expected):
    records = [record(1, box()), record(2, box(), **changes)]
    register_function(lambda: records)

    with pytest.raises(ValueError) as error:
        usable_datasets(["made"], str(tmp_path), False)

    assert expected in str(error.value)


BARE = {"image_id": ..., "height": ..., "width": ...}


def test_records_without_id_and_size_are_valid_in_training_only(
    register_function, tmp_path, caplog
):
    # Outside the image, whose size is unknown.
    far = box(bbox=[20, 1, 24, 4], segmentation=rle())
    records = [record(1, far, **BARE), record(2, box(), **BARE)]
    register_function(lambda: records)

    assert usable_datasets(["made"], str(tmp_path), False, evaluated=False) == ["made"]
    assert not caplog.records
    with pytest.raises(ValueError, match="there is no height.* no width(.|\n)*no image_id"):
        usable_datasets(["made"], str(tmp_path), False)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"width": 10}, "there is no height"),
        ({"height": "8", "width": 10}, "height is '8'"),
        ({"image_id": 2.5}, "image_id is 2.5"),
        ({"annotations": [box(), box(bbox=[6, 1, 2, 4])]}, "box of negative size +1 in 1 image"),
        ({"annotations": [box(segmentation={"size": [8, 10], "counts": b"1"})]}, "1 pixels"),
    ],
)
def test_in_training_records_without_id_and_size_are_checked(
    register_function, tmp_path, changes, expected
):
    records = [record(1, box(), **BARE), record(2, box(), **{**BARE, **changes})]
    register_function(lambda: records)

    with pytest.raises(ValueError, match=expected):
        usable_datasets(["made"], str(tmp_path), False, evaluated=False)


def test_copies_for_training_and_evaluation_are_separate(register_function, tmp_path):
    records = [record(1, box()), record(2, box(), **BARE), record(5, box())]
    register_function(lambda: records)

    (test,) = usable_datasets(["made"], str(tmp_path), True)
    (train,) = usable_datasets(["made"], str(tmp_path), True, evaluated=False)

    files = [[x["file_name"] for x in DatasetCatalog.get(name)] for name in (test, train)]
    assert files == [["1.png"], ["1.png", "2.png"]]


@pytest.mark.parametrize(
    "records, message",
    [([5], "record 0 is 5"), ([{"annotations": None}], "annotations of record 0 are None")],
)
def test_values_that_are_not_records_are_refused(register_function, tmp_path, records, message):
    register_function(lambda: records)

    with pytest.raises(ValueError, match=f"records of made .*{message}; expected"):
        usable_datasets(["made"], str(tmp_path), True)


def test_with_skip_unusable_the_valid_records_are_evaluated(register_function, tmp_path, caplog):
    bad = [box(category_id=9), box(bbox=[20, 1, 24, 4])]
    records = [
        record(1, box(), bad[0], box(category_id=0), bad[1]),
        record(5, box(), box()),
        record(2, box()),
        # Two records of one image with different objects: the objects are ambiguous.
        record(3, box()),
        record(3, box(category_id=0)),
    ]
    register_function(lambda: records, thing_colors=[(0, 0, 255), (255, 0, 0)])

    for _ in range(2):
        (name,) = usable_datasets(["made"], str(tmp_path / "out"), True)

    kept = get_detection_dataset_dicts([name])
    assert [x["image_id"] for x in kept] == [1, 2]
    assert [[a["category_id"] for a in x["annotations"]] for x in kept] == [[1, 0], [1]]
    assert MetadataCatalog.get(name).thing_colors == [(0, 0, 255), (255, 0, 0)]
    assert caplog.text.count("Left out 3 of 5 images") == 1
    assert caplog.text.count("Left out 6 of 9 annotations") == 1
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path))
    evaluator.reset()
    for x in kept:
        instances = Instances((8, 10))
        instances.pred_boxes = Boxes([a["bbox"] for a in x["annotations"]])
        instances.scores = torch.ones(len(x["annotations"]))
        instances.pred_classes = torch.tensor([a["category_id"] for a in x["annotations"]])
        evaluator.process([x], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_a_function_is_called_once_until_another_is_registered(register_function, tmp_path):
    calls = []
    register_function(lambda: calls.append("first") or [record(1)])
    for _ in range(2):
        usable_datasets(["made"], str(tmp_path), False)

    DatasetCatalog.remove("made")
    DatasetCatalog.register("made", lambda: calls.append("second") or [record(1)])
    usable_datasets(["made"], str(tmp_path), False)

    assert calls == ["first", "second"]


def test_a_dataset_of_a_function_is_checked_again_after_its_evaluation(register_function, tmp_path):
    register_function(lambda: [record(1, box())], evaluator_type="coco")
    COCOEvaluator("made", output_dir=str(tmp_path))

    check_datasets(["made"], 2)
    assert usable_datasets(["made"], str(tmp_path), False) == ["made"]


def test_a_dataset_that_is_not_a_list_is_logged_as_not_checked(register_function, tmp_path, caplog):
    register_function(lambda: range(5))

    assert usable_datasets(["made"], str(tmp_path), False) == ["made"]
    assert "made is a range, not a list of records: not checked" in caplog.text


def test_a_generator_is_refused(register_function, tmp_path):
    register_function(lambda: (record(i, box()) for i in (1, 2)))

    with pytest.raises(ValueError, match="dataset made returns a generator.*Return a list"):
        usable_datasets(["made"], str(tmp_path), False)
