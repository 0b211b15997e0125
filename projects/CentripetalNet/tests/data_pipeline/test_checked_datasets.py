"""Checks of the datasets of a config, and of the records that a function returns."""

import json
import math
import os
import re

import numpy as np
import pytest
from coco_content import annotation, changed, coco, image, rle
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from PIL import Image

from centripetalnet.data.check.datasets import check_datasets, usable_datasets
from centripetalnet.data.check.records import check_records

CLASSES = ["cow", "bear"]


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """With the images 1.png to 3.png of 10 x 8."""
    monkeypatch.chdir(tmp_path)
    for i in (1, 2, 3):
        Image.new("RGB", (10, 8)).save(f"{i}.png")
    yield
    for name in ("checked", "checked_usable", "checked_usable_train"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def register(content, **metadata):
    """Registers the content of an annotation file or a function as the dataset "checked"."""
    if callable(content):
        DatasetCatalog.register("checked", content)
        MetadataCatalog.get("checked").set(**{"thing_classes": CLASSES, **metadata})
    else:
        with open("annotations.json", "w") as file:
            json.dump(content, file)
        register_coco_instances("checked", {}, "annotations.json", ".")


def usable(skip_unusable=False, evaluated=True):
    (name,) = usable_datasets(["checked"], "out", skip_unusable, evaluated)
    return name


def box(**changes):
    """A valid annotation of a record with the given changes."""
    return changed({"bbox": [2, 1, 6, 4], "bbox_mode": 0, "category_id": 1}, changes)


def record(number, *annotations, **changes):
    fields = {"file_name": f"{number}.png", "image_id": number, "height": 8, "width": 10}
    return changed({**fields, "annotations": list(annotations)}, changes)


# A box outside the image, an unknown category and an image without a file.
BAD = [annotation(2, bbox=[20, 1, 4, 4]), annotation(3, category_id=9), annotation(4, image_id=5)]
BAD_CONTENT = coco([annotation(1), *BAD], [image(1), image(2), image(5)])
# With the id 0, which COCO's evaluation cannot use.
NOTED_CONTENT = coco([annotation(0)])


def test_the_classes_of_the_config_must_be_those_of_the_dataset():
    register(lambda: [])
    check_datasets(["checked"], 2)

    with pytest.raises(ValueError, match="NUM_CLASSES is 80.*checked has 2 classes.*set it to 2"):
        check_datasets(["checked"], 80)
    MetadataCatalog.pop("checked")
    with pytest.raises(ValueError, match=r"no class names.*'checked'\)\.thing_classes = \["):
        check_datasets(["checked"], 2)


def test_invalid_entries_stop_a_training_with_a_report():
    register(BAD_CONTENT)
    entries = "image 5 file '5.png': there is no file.*image 1 file '1.png' annotation 2: bbox"
    advice = "Fix the annotation file.*DATALOADER.SKIP_UNUSABLE True"

    with pytest.raises(ValueError, match=f"(?s)annotations.json.*{entries}.*{advice}"):
        usable()


def test_with_skip_unusable_invalid_entries_are_left_out_and_counted(caplog):
    register(BAD_CONTENT)

    name = [usable(skip_unusable=True) for _ in range(2)][1]

    records = get_detection_dataset_dicts([name], filter_empty=False)
    assert [(x["image_id"], len(x["annotations"])) for x in records] == [(1, 1), (2, 0)]
    assert MetadataCatalog.get(name).thing_classes == CLASSES
    assert caplog.text.count("Left out 1 of 3 images") == 1
    assert caplog.text.count("Left out 3 of 4 annotations") == 1


def test_a_file_is_checked_again_only_if_it_has_changed(caplog):
    register(NOTED_CONTENT)
    assert [usable() for _ in range(2)] == ["checked"] * 2
    assert len(caplog.records) == 1 and not os.path.exists("out")

    os.utime("annotations.json", (0, 0))
    usable()

    assert len(re.findall("note +annotation id is not positive +1 ", caplog.text)) == 2


def test_records_in_every_form_of_detectron2_are_valid():
    polygon = [2, 1, 6, 1, 6, 4.0, 2, 4]
    code = rle()
    records = [
        record(
            1,
            box(iscrowd=1, segmentation={**code, "counts": code["counts"].encode("ascii")}),
            box(bbox=(2, 1, 4, 3), bbox_mode=BoxMode.XYWH_ABS, segmentation=[polygon]),
            box(bbox=np.array([2, 1, 6, 4.0]), segmentation=[np.array(polygon)]),
            box(category_id=np.int64(0), segmentation=code, keypoints=[1, 2], ignored="yes"),
            box(bbox=[np.float32(2), 1, 6, np.int64(4)], segmentation=[]),
            neg_category_ids=[5],
        ),
        record(2, image_id="two", height=np.int32(8), annotations=...),
        record(3, file_name="https://example.com/3.png"),
    ]

    assert check_records(records, CLASSES, "records").problems == []


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"bbox": [20, 1, 24, 4]}, "bbox is [20, 1, 4, 3] in an image of 10 x 8"),
        ({"bbox": np.array([2, 1, 4, 3]), "bbox_mode": BoxMode.XYWH_ABS}, "bbox is array("),
        ({"bbox_mode": ...}, "there is no bbox_mode"),
        ({"bbox_mode": BoxMode.XYXY_REL}, "bbox_mode is <BoxMode.XYXY_REL: 2>"),
        ({"segmentation": [np.array([1, 2, 3, 4, 5, math.nan])]}, "one has [nan]"),
        ({"segmentation": {"size": [8, 10], "counts": [80]}}, "its counts are a list"),
        ({"segmentation": {"size": [8, 10], "counts": b"1"}}, "its runs have 1 pixels together"),
    ],
)
def test_invalid_annotations_of_records_are_reported(changes, expected):
    records = [record(1, box()), record(2, box(), box(**changes))]

    (problem,) = check_records(records, CLASSES, "records").problems

    assert problem[1:6] == ("annotations", 2, 2, 1, "2.png")
    assert expected in problem.detail


BARE = {"image_id": ..., "height": ..., "width": ...}


@pytest.mark.parametrize(
    "changes, evaluated, expected",
    [
        ({"file_name": ...}, True, "there is no file_name"),
        ({"file_name": "/gone/2.png"}, True, "there is no file /gone/2.png"),
        ({"height": ..., "width": ...}, True, "there is no height.*there is no width"),
        ({"image_id": ...}, True, "no image_id; expected an integer or a string"),
        ({"image_id": 1}, True, "2 images have it and differ"),
        # Training needs neither ids nor sizes, but checks those that are there.
        ({**BARE, "width": 10}, False, "there is no height"),
        ({**BARE, "image_id": 2.5}, False, "image_id is 2.5"),
        ({**BARE, "annotations": [box(bbox=[6, 1, 2, 4])]}, False, "bbox is .6, 1, -4, 3"),
    ],
)
def test_invalid_images_of_records_are_reported(changes, evaluated, expected):
    records = [record(1, box()), record(2, box(), **changes)]

    problems = check_records(records, CLASSES, "records", evaluated).problems

    assert re.search(expected, problems[0].detail)
    assert len(problems) == 1 + ("and differ" in expected)


def test_training_needs_no_ids_and_sizes_and_its_copy_is_separate():
    # Outside the image, whose size is unknown.
    bare = record(2, box(bbox=[20, 1, 24, 4], segmentation=rle()), **BARE)
    register(lambda: [record(1, box()), bare, bare, record(5, box())])

    names = [usable(True, evaluated) for evaluated in (True, False)]

    files = [[x["file_name"] for x in DatasetCatalog.get(name)] for name in names]
    assert files == [["1.png"], ["1.png", "2.png", "2.png"]]


@pytest.mark.parametrize(
    "records, message",
    [
        ([5], "records of checked .*record 0 is 5; expected a dict"),
        ([{"annotations": None}], "annotations of record 0 are None; expected a list"),
        (map(record, (1, 2)), "dataset checked returns a map.*Return a list"),
    ],
)
def test_values_that_are_not_records_are_refused(records, message):
    register(lambda: records)

    with pytest.raises(ValueError, match=message):
        usable(skip_unusable=True)


def test_a_dataset_that_is_not_a_list_is_logged_as_not_checked(caplog):
    register(lambda: range(5))

    assert usable() == "checked"
    assert "checked is a range, not a list of records: not checked" in caplog.text


def test_with_skip_unusable_the_valid_records_are_used(caplog):
    records = [
        record(1, box(), box(category_id=9), box(category_id=0), box(bbox=[20, 1, 24, 4])),
        record(5, box(), box()),
        record(2, box()),
        # Two records of one image with different objects: the objects are ambiguous.
        record(3, box()),
        record(3, box(category_id=0)),
    ]
    register(lambda: records, thing_colors=[(0, 0, 255), (255, 0, 0)])

    name = [usable(skip_unusable=True) for _ in range(2)][1]

    kept = get_detection_dataset_dicts([name])
    assert [x["image_id"] for x in kept] == [1, 2]
    assert [[a["category_id"] for a in x["annotations"]] for x in kept] == [[1, 0], [1]]
    assert MetadataCatalog.get(name).thing_colors == [(0, 0, 255), (255, 0, 0)]
    assert caplog.text.count("Left out 3 of 5 images") == 1
    assert caplog.text.count("Left out 6 of 9 annotations") == 1
    # Converts the records to a COCO file.
    COCOEvaluator(name, output_dir="out")
    with open(f"out/{name}_coco_format.json") as file:
        assert len(json.load(file)["annotations"]) == 3


def test_a_function_is_called_once_until_another_is_registered():
    calls = []
    register(lambda: calls.append("first") or [record(1)])
    assert [usable() for _ in range(2)] == ["checked"] * 2

    DatasetCatalog.remove("checked")
    register(lambda: calls.append("second") or [record(1)])
    usable()

    assert calls == ["first", "second"]


def test_a_dataset_of_a_function_is_checked_again_after_its_evaluation(caplog):
    register(lambda: [record(1, box())], evaluator_type="coco")
    COCOEvaluator("checked", output_dir="out")
    caplog.clear()

    check_datasets(["checked"], 2)
    assert usable() == "checked" and not caplog.records
