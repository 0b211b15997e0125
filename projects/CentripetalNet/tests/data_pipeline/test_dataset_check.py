"""Checks of annotation files; those of image files are in test_dataset_images.py."""

import json
import math
import re

import numpy as np
import pytest
from coco_content import PATH, annotation, coco, image, sound
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_util

from centripetalnet.data.check import (
    check_annotations,
    check_coco_categories,
    check_num_classes,
    segmentations,
)
from centripetalnet.data.check.segmentations import decode_counts


def annotation_file(tmp_path, categories):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return str(path)


def test_classes_are_in_the_order_of_their_ids(tmp_path):
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
def test_a_duplicate_category_is_named(tmp_path, categories, message):
    with pytest.raises(ValueError, match=f"annotations.json.*{message}"):
        check_coco_categories(annotation_file(tmp_path, categories))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"categories": [{"id": 1}]}', '{"categories": []}', "\x00", "[" * 100_000],
)
def test_a_file_that_is_not_coco_is_named(tmp_path, content):
    path = tmp_path / "annotations.json"
    path.write_text(content)

    with pytest.raises(ValueError, match="annotations.json is not a COCO annotation file"):
        check_coco_categories(str(path))


def test_a_wrong_number_of_classes_is_named():
    check_num_classes("pets", ["cat", "dog"], 2)
    with pytest.raises(ValueError, match="NUM_CLASSES is 80.*pets has 2 classes.*set it to 2"):
        check_num_classes("pets", ["cat", "dog"], 80)


def test_missing_class_names_are_named_with_their_remedy():
    with pytest.raises(ValueError, match=r"pets has no class names.*'pets'\)\.thing_classes = \["):
        check_num_classes("pets", [], 5)


def test_a_valid_file_has_no_problems_and_its_objects_are_counted():
    report = check_annotations(sound(), PATH)

    assert report.problems == []
    assert (report.num_images, report.num_annotations) == (2, 5)
    assert report.classes == {"cow": (4, 0), "bear": (0, 1)}


def test_a_test_set_needs_no_annotations():
    content = coco()
    del content["annotations"]

    assert check_annotations(content, PATH).problems == []


HUGE = 10**400
BAD_CODE = "invalid run-length encoding"
BAD_POLYGON = "invalid polygon"
NO_FIELDS = "annotation without a valid id, image_id or category_id"
BAD_BOX = "bbox is not four finite numbers"


@pytest.mark.parametrize(
    "changes, kind, detail",
    [
        ({"id": ...}, NO_FIELDS, "there is no id"),
        ({"id": True}, NO_FIELDS, "id is True; expected an integer"),
        ({"image_id": "1"}, NO_FIELDS, "image_id is '1'"),
        ({"image_id": [1]}, NO_FIELDS, "image_id is \\[1\\]"),
        ({"category_id": 3.0}, NO_FIELDS, "category_id is 3.0"),
        ({"category_id": HUGE}, NO_FIELDS, "an integer of 1329 bits"),
        ({"id": 2}, "annotation id is not unique", "annotations\\[0\\] has the same id"),
        ({"id": 0}, "annotation id is not positive", "needs ids from 1"),
        ({"image_id": 9}, "annotation of an unknown image", "one of the file's images"),
        ({"category_id": 4}, "annotation of an unknown category", "category_id is 4"),
        ({"bbox": ...}, BAD_BOX, "there is no bbox"),
        ({"bbox": []}, BAD_BOX, "bbox is \\[\\]"),
        ({"bbox": [1, 2, 3]}, BAD_BOX, "expected \\[x, y, width, height\\]"),
        ({"bbox": [1, 2, math.nan, 4]}, BAD_BOX, "nan"),
        ({"bbox": [1, 2, math.inf, 4]}, BAD_BOX, "inf"),
        ({"bbox": [1, 2, "3", 4]}, BAD_BOX, "'3'"),
        ({"bbox": [1, 2, None, 4]}, BAD_BOX, "None"),
        ({"bbox": [HUGE, 2, 3, 4]}, BAD_BOX, "bits"),
        ({"bbox": [1, 2, 3, -4]}, "box of negative size", "\\[1, 2, 3, -4\\]; .* positive"),
        ({"bbox": [1, 2, 0, 4]}, "box without an area", "no training target"),
        ({"bbox": [10, 2, 3, 4]}, "box outside its image", "in an image of 10 x 8"),
        ({"bbox": [1, -4, 3, 4]}, "box outside its image", "in an image of 10 x 8"),
        ({"bbox": [-1.5, 2, 3, 4]}, "box reaches outside its image", "1.5 pixels are clipped"),
        ({"bbox": [-1e308, 2, 1.5e308, 4]}, "box reaches outside its image", "clipped"),
        ({"bbox": [1, 2, 3, 7]}, "box reaches outside its image", "1 pixels are clipped"),
        ({"ignore": 1}, "ignore is not 0", "it is 1"),
        ({"ignore": None}, "ignore is not 0", "it is None"),
        ({"iscrowd": 2}, "iscrowd is not 0 or 1", "iscrowd is 2"),
        ({"iscrowd": ...}, "no iscrowd", "evaluation fails"),
        ({"area": ...}, "no valid area", "there is no area"),
        ({"area": "12"}, "no valid area", "area is '12'"),
        ({"keypoints": [1, 2]}, "invalid keypoints", "x, y, visibility"),
        ({"keypoints": [1, 2, "2"]}, "invalid keypoints", "x, y, visibility"),
        ({"segmentation": 5}, "segmentation of unknown format", "it is 5"),
        ({"segmentation": "x"}, "segmentation of unknown format", "it is 'x'"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, BAD_POLYGON, "7 numbers.*Detectron2 drops"),
        ({"segmentation": [[1, 2, 3, 4]]}, BAD_POLYGON, "4 numbers.*Detectron2 drops the whole"),
        ({"segmentation": [[]]}, BAD_POLYGON, "0 numbers"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, BAD_POLYGON, "one is 1; expected a list"),
        ({"segmentation": ["abcdef"]}, BAD_POLYGON, "one is 'abcdef'"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, BAD_POLYGON, "a coordinate is '6'"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, BAD_POLYGON, "a coordinate is None"),
        ({"segmentation": [[1, 2, 3, 4, 5, HUGE]]}, BAD_POLYGON, "bits"),
        ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, BAD_POLYGON, "a coordinate is nan"),
        ({"segmentation": [[1, 2, 3, 4, 5, -math.inf]]}, BAD_POLYGON, "a coordinate is -inf"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, BAD_POLYGON, "1e\\+09; expected at most"),
        (
            {"segmentation": [[1, 1, 5, 1, 5, 5], [1, 2, 3, 4]]},
            "polygon dropped by Detectron2",
            "4 numbers.*keeps 1 of the 2",
        ),
        ({"segmentation": {"counts": [80]}}, BAD_CODE, "size is None"),
        ({"segmentation": {"size": [10, 8], "counts": [80]}}, BAD_CODE, "\\[8, 10\\]"),
        ({"segmentation": {"size": [8, 10.0], "counts": [80]}}, BAD_CODE, "\\[8, 10.0\\]"),
        ({"segmentation": {"size": [2**31, 2**31], "counts": [80]}}, BAD_CODE, "1 to 2147483647"),
        ({"segmentation": {"size": [8, 10]}}, BAD_CODE, "counts are None"),
        ({"segmentation": {"size": [8, 10], "counts": []}}, BAD_CODE, "0 pixels.*expected 80"),
        ({"segmentation": {"size": [8, 10], "counts": [90, -10]}}, BAD_CODE, "length -10"),
        ({"segmentation": {"size": [8, 10], "counts": [80.0]}}, BAD_CODE, "expected integers"),
        ({"segmentation": {"size": [8, 10], "counts": [70, 9]}}, BAD_CODE, "79 pixels"),
        ({"segmentation": {"size": [8, 10], "counts": ""}}, BAD_CODE, "0 pixels"),
        ({"segmentation": {"size": [8, 10], "counts": "0P"}}, BAD_CODE, "end within a number"),
        ({"segmentation": {"size": [8, 10], "counts": "ä"}}, BAD_CODE, "characters"),
        ({"segmentation": {"size": [8, 10], "counts": "0~"}}, BAD_CODE, "characters"),
        ({"segmentation": {"size": [8, 10], "counts": "\0"}}, BAD_CODE, "characters"),
        ({"segmentation": {"size": [8, 10], "counts": "oooooooo0"}}, BAD_CODE, "32 bits"),
        ({"segmentation": {"size": [8, 10], "counts": "@"}}, BAD_CODE, "length -16"),
        ({"segmentation": {"size": [8, 10], "counts": "T3"}}, BAD_CODE, "100 pixels"),
    ],
)
def test_each_problem_of_an_annotation_is_reported(changes, kind, detail):
    content = coco([annotation(2), annotation(5, **changes)])

    (problem,) = check_annotations(content, PATH).problems

    assert (problem.kind, problem.section, problem.position) == (kind, "annotations", 1)
    assert re.search(detail, problem.detail), problem.detail
    assert len(problem.detail) < 200


def test_bad_coordinates_are_found_among_many_polygons(monkeypatch):
    monkeypatch.setattr(segmentations, "COORDINATES_AT_ONCE", 20)
    good, bad = [1, 1, 5, 1, 5, 5.0], [1, 1, 5, math.inf, math.nan, 5]
    polygons = [[good], [[], good], [good, bad], [bad, bad], [good], [good], [good, bad]]
    content = coco([annotation(i + 1, segmentation=x) for i, x in enumerate(polygons)])

    problems = check_annotations(content, PATH).errors

    assert {x.position for x in problems} == {2, 3, 6}
    assert all(x.detail.startswith("a coordinate is inf") for x in problems)


NO_IMAGE = "image without a valid id, file_name, height or width"


@pytest.mark.parametrize(
    "changes, kind, detail",
    [
        ({"id": ...}, NO_IMAGE, "there is no id"),
        ({"id": False}, NO_IMAGE, "id is False; expected an integer"),
        ({"file_name": ...}, NO_IMAGE, "there is no file_name"),
        ({"file_name": ""}, NO_IMAGE, "file_name is ''"),
        ({"file_name": 5}, NO_IMAGE, "file_name is 5; expected a string"),
        ({"height": 0}, NO_IMAGE, "height is 0; expected a positive integer"),
        ({"width": 10.0}, NO_IMAGE, "width is 10.0"),
        ({"width": [10]}, NO_IMAGE, "width is \\[10\\]"),
        ({"file_name": "../2.png"}, "file name leads outside the image folder", "relative"),
        ({"file_name": "/data/2.png"}, "file name leads outside the image folder", "relative"),
    ],
)
def test_each_problem_of_an_image_entry_is_reported(changes, kind, detail):
    content = coco([annotation(1)], [image(1), image(2, **changes)])

    (problem,) = check_annotations(content, PATH).problems

    assert (problem.kind, problem.section, problem.position) == (kind, "images", 1)
    assert re.search(detail, problem.detail), problem.detail


def test_of_equal_images_with_one_id_the_first_is_kept():
    content = coco([annotation(1)], [image(1), image(2), image(1)])

    (problem,) = check_annotations(content, PATH).problems

    assert (problem.kind, problem.position) == ("image id is not unique", 2)
    assert "equal, the first is kept" in problem.detail


def test_of_different_images_with_one_id_none_is_kept():
    content = coco([annotation(1)], [image(1), image(2), image(1, file_name="other.png")])

    problems = check_annotations(content, PATH).problems

    assert [(x.kind, x.position) for x in problems] == [
        ("image id is not unique", 0),
        ("image id is not unique", 2),
    ]
    assert "annotations are ambiguous" in problems[0].detail


def test_a_box_in_an_image_of_unknown_size_is_not_checked_against_it():
    boxes = [500, 500, 5, 5], [-50, -50, 5, 5], [-5, -5, 10, 10]
    annotations = [annotation(i + 1, bbox=x) for i, x in enumerate(boxes)]
    content = coco(annotations, [image(1, width=None)])

    assert [x.kind for x in check_annotations(content, PATH).problems] == [NO_IMAGE]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "it holds None"),
        ([], "it holds \\[\\]"),
        ({}, "no list 'categories'"),
        ({**coco(), "images": 5}, "its 'images' is 5"),
        ({**coco(), "annotations": {"a": 1}}, "its 'annotations' is {'a': 1}"),
        (coco([annotation(1), None]), "annotations\\[1\\] is None, not an object"),
        (coco(images=[[image(1)]]), "images\\[0\\] is \\[{"),
        ({**coco(), "categories": []}, "'categories' is empty"),
        ({**coco(), "categories": ["cow"]}, "categories\\[0\\] is 'cow'"),
        ({**coco(), "categories": [{"id": "1", "name": "cow"}]}, "the id '1'"),
        ({**coco(), "categories": [{"id": 1, "name": 5}]}, "the name 5"),
    ],
)
def test_a_file_that_is_not_in_coco_format_is_refused(content, message):
    with pytest.raises(ValueError, match=f"annotations.json is not a COCO.*{message}.*Expected"):
        check_annotations(content, PATH)


@settings(max_examples=100, deadline=None)
@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.integers(0, 1),
    )
)
def test_compressed_counts_are_decoded_as_pycocotools_encodes_them(mask):
    encoded = mask_util.encode(np.asfortranarray(mask))
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    expected = np.diff([0, *changes, pixels.size]).tolist()

    counts = decode_counts(encoded["counts"].decode("ascii")).tolist()

    assert counts == expected


def test_compressed_counts_of_long_runs_are_decoded():
    counts = [0, 1_000_000, 3, 2, 30_000_000, 1_000_000, 1]
    size = [1, sum(counts)]
    encoded = mask_util.frPyObjects({"size": size, "counts": counts}, *size)

    assert decode_counts(encoded["counts"].decode("ascii")).tolist() == counts
