"""Checks of annotation files and their report; image files are in test_dataset_images.py."""

import copy
import json
import math
import re

import pytest
from coco_content import HEIGHT, PATH, WIDTH, annotation, changed, coco, image, rle
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from centripetalnet.data.check.annotations import check_annotations, decode_counts
from centripetalnet.data.check.reading import check_coco_categories
from centripetalnet.data.check.report import EXPECTED, NO_IDS, NO_IMAGE_FIELDS, Report


def sound() -> dict:
    """A valid file with every form of annotation."""
    counts = {"size": [HEIGHT, WIDTH], "counts": [10, 20, 50]}
    return coco(
        [
            annotation(1),
            annotation(2, segmentation=...),
            annotation(3, segmentation=counts, iscrowd=1, image_id=2, category_id=7),
            annotation(4, segmentation=rle(), ignore=0),
            annotation(5, segmentation=[], keypoints=[1, 2, 2, 0, 0, 0]),
        ]
    )


def test_a_valid_file_has_no_problems():
    assert check_annotations(sound(), PATH) == Report(PATH, sound(), [])


def test_a_test_set_needs_no_annotations():
    content = {key: coco()[key] for key in ("images", "categories")}

    assert check_annotations(content, PATH).without_errors() == content


def test_classes_are_in_the_order_of_their_ids(tmp_path):
    path = tmp_path / PATH
    path.write_text('{"categories": [{"id": 7, "name": "cow"}, {"id": 2, "name": "bear"}]}')

    assert check_coco_categories(str(path)) == ["bear", "cow"]
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        check_coco_categories(str(tmp_path / "nothing.json"))


@pytest.mark.parametrize("content", ["{", "\x00", "[" * 100_000])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / PATH).write_text(content)

    with pytest.raises(ValueError, match="annotations.json is not a COCO annotation file"):
        check_coco_categories(str(tmp_path / PATH))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "not a COCO annotation file: it holds None"),
        ({}, "no list 'categories'"),
        ({**coco(), "images": 5}, "its 'images' is 5"),
        ({**coco(), "annotations": {"a": 1}}, "its 'annotations' is {'a': 1}"),
        (coco([annotation(1), None]), "annotations\\[1\\] is None, not an object"),
        ({**coco(), "categories": []}, "'categories' is empty"),
        ({**coco(), "categories": [{"id": "1", "name": "cow"}]}, "{'id': '1', 'name': 'cow'}"),
        ({**coco(), "categories": [{"id": 1, "name": 5}]}, "{'id': 1, 'name': 5}"),
        ({**coco(), "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "the id 1"),
        ({**coco(), "categories": [{"id": x, "name": "a"} for x in (1, 2)]}, "the name 'a'"),
    ],
)
def test_a_file_that_is_not_in_coco_format_is_refused(content, message):
    with pytest.raises(ValueError, match=f"annotations.json .*{message}"):
        check_annotations(content, PATH)


HUGE = 10**400
NO_BOX, OVER = "bbox is not four finite numbers", "box reaches outside its image"
POLYGON, DROPPED = "invalid polygon", "polygon dropped by Detectron2"
OF_ANNOTATIONS = [
    ({"id": ...}, NO_IDS, "there is no id"),
    ({"image_id": [1]}, NO_IDS, "image_id is \\[1\\]"),
    ({"category_id": 3.0}, NO_IDS, "category_id is 3.0"),
    ({"category_id": HUGE}, NO_IDS, "category_id is 10000.*\\.\\.\\."),
    ({"id": 2}, "annotation id is not unique", "annotations\\[0\\] has the same id"),
    ({"id": 0}, "annotation id is not positive", "id is 0"),
    ({"image_id": 9}, "annotation of an unknown image", "image_id is 9"),
    ({"category_id": 4}, "annotation of an unknown category", "is 4; .* ids from 3 to 7"),
    ({"bbox": ...}, NO_BOX, "there is no bbox"),
    ({"bbox": [1, 2, math.nan, 4]}, NO_BOX, "nan"),
    ({"bbox": [1, 2, 3, -4]}, "box of negative size", "\\[1, 2, 3, -4\\]"),
    ({"bbox": [1, 2, 0, 4]}, "box without an area", "\\[1, 2, 0, 4\\]"),
    ({"bbox": [10, 2, 3, 4]}, "box outside its image", "in an image of 10 x 8"),
    ({"bbox": [1, -4, 3, 4]}, "box outside its image", "in an image of 10 x 8"),
    ({"bbox": [-1.5, 2, 3, 4]}, OVER, "by 1.5 pixels"),
    ({"bbox": [1, 2, 3, 7]}, OVER, "by 1 pixels"),
    ({"ignore": 1}, "ignore is not 0", "ignore is 1"),
    ({"iscrowd": 2}, "iscrowd is not 0 or 1", "iscrowd is 2"),
    ({"iscrowd": ...}, "no iscrowd", "there is no iscrowd"),
    ({"area": "12"}, "no valid area", "area is '12'"),
    ({"keypoints": [1, 2, "2"]}, "invalid keypoints", "keypoints is \\[1, 2, '2'\\]"),
    ({"segmentation": "x"}, "segmentation of unknown format", "segmentation is 'x'"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, POLYGON, "1 of 1 .* has 7 numbers"),
    ({"segmentation": [[]]}, POLYGON, "has 0 numbers"),
    ({"segmentation": [[1, 1, 5, 1, 5, 5], [1, 2]]}, DROPPED, "1 of 2 .* has 2 numbers"),
    ({"segmentation": [1, 2, 3, 4, 5, 6]}, POLYGON, "one has 1;"),
    ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, POLYGON, "one has \\['6'\\]"),
    ({"segmentation": [[1, 2, 3, 4, 5, HUGE]]}, POLYGON, "one has \\[1000"),
    ({"segmentation": [[1, 2], [1, 2, 3, 4, 5, math.nan]]}, POLYGON, "one has \\[nan\\]"),
    ({"segmentation": [[1, 2, 3, 4, 5, -1e9]]}, POLYGON, "\\[-1000000000.0\\]; expected .* 1e"),
]
RUNS = [
    ([10, 8], [80], "size is \\[10, 8\\], that of the image \\[8, 10\\]"),
    ([8, 10.0], [80], "size is \\[8, 10.0\\]"),
    ([2**30, 2**30], [80], "more than 2147483647 pixels"),
    ([8, 10], [], "0 pixels together, its size 80"),
    ([8, 10], [90, -10], "counts is \\[90, -10\\], not integers from 0"),
    ([8, 10], [80.0], "counts is \\[80.0\\]"),
    ([8, 10], "0P", "counts is '0P'"),
    ([8, 10], "ä", "counts is 'ä'"),
    ([8, 10], "ooooooo0", "counts is 'ooooooo0'"),
    ([8, 10], "@", "counts is '@'"),
    ([8, 10], "T3", "100 pixels"),
]
OF_ANNOTATIONS += [
    ({"segmentation": {"size": size, "counts": counts}}, "invalid run-length encoding", detail)
    for size, counts, detail in RUNS
]
OUTSIDE, COPY = "file name leads outside the image folder", "image id is not unique"
OF_IMAGES = [
    ({"id": ...}, NO_IMAGE_FIELDS, "there is no id"),
    ({"file_name": "", "height": 0}, NO_IMAGE_FIELDS, "file_name is ''; height is 0"),
    ({"file_name": "../2.png"}, OUTSIDE, "'../2.png'"),
    ({"file_name": "/data/2.png"}, OUTSIDE, "'/data/2.png'"),
    ({"id": 1, "file_name": "1.png"}, COPY, "it is equal to images\\[0\\], which is kept"),
]


@pytest.mark.parametrize(
    "section, changes, kind, detail",
    [("annotations", *x) for x in OF_ANNOTATIONS] + [("images", *x) for x in OF_IMAGES],
)
def test_each_problem_of_an_entry_is_reported(section, changes, kind, detail):
    content = coco([annotation(2), annotation(5)], [image(1), image(2)])
    content[section][1] = changed(content[section][1], changes)

    (problem,) = check_annotations(content, PATH).problems

    assert (problem.kind, problem.section, problem.position) == (kind, section, 1)
    assert re.search(detail, problem.detail), problem.detail
    assert len(problem.detail) < 200


def test_of_different_images_with_one_id_none_is_kept():
    content = coco([annotation(1)], [image(1), image(2), image(1, file_name="other.png")])

    problems = check_annotations(content, PATH).problems

    assert [(x.kind, x.position) for x in problems] == [(COPY, 0), (COPY, 2)]
    assert "2 images have it and differ" in problems[0].detail


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=20))
def test_compressed_counts_are_decoded_as_pycocotools_encodes_them(counts):
    size = [1, sum(counts)]
    encoded = mask_util.frPyObjects({"size": size, "counts": counts}, *size)

    assert decode_counts(encoded["counts"].decode("ascii")) == counts


def test_the_report_has_one_row_for_each_kind_errors_first():
    noted = [annotation(i, bbox=[-1, 2, 3, 4], image_id=i % 2 + 1) for i in range(2, 202)]
    wrong = [annotation(1, id=None), annotation(5000, bbox=[1, 2, -3, 4])]
    content = coco(noted + wrong, [image(1, file_name="牛\ud800\x1b.png"), image(2)])

    lines = check_annotations(content, PATH).format().splitlines()

    assert lines[0] == "annotations.json: 2 images, 202 annotations, 2 invalid entries"
    rows = [re.split("  +", x) for x in lines[4:]]
    assert [x[:3] for x in rows] == [
        ["error", NO_IDS, "1"],
        ["error", "box of negative size", "1"],
        ["note", OVER, "200"],
    ]
    assert [x[3] for x in rows] == [EXPECTED[x[1]] for x in rows]
    assert rows[0][4] == "image 1 file '牛\\ud800\\x1b.png': id is None"
    assert rows[1][4].endswith(".png' annotation 5000: bbox is [1, 2, -3, 4]")


def test_objects_and_crowds_are_counted_the_most_frequent_class_first():
    content = coco(
        [annotation(1), annotation(2, category_id=7, iscrowd=1), annotation(3, category_id=7)]
    )
    content["categories"].append({"id": 8, "name": "1e5\n" + "x" * 999})

    table = check_annotations(content, PATH).format_classes()

    rows = [x.split() for x in table.splitlines()[2:]]
    assert rows[:2] == [["bear", "1", "1"], ["cow", "1", "0"]]
    assert rows[2][0].startswith("1e5\\nxxx") and len(rows[2][0]) == 200


def test_an_invalid_image_is_removed_with_its_annotations():
    content = coco(
        [annotation(1), annotation(2, id=None), annotation(3, image_id=2), annotation(4, area=...)],
        [image(1), image(1), image(2, height="8")],
    )
    before = copy.deepcopy(content)

    cleaned = check_annotations(content, PATH).without_errors()

    assert cleaned == coco([annotation(1), annotation(4, area=...)], [image(1)])
    assert content == before


SCALARS = [st.none(), st.booleans(), st.integers(), st.floats(), st.text("0123P@oä", max_size=8)]
VALUES = st.recursive(
    st.one_of(*SCALARS, st.sampled_from([0, 1, 2, 3, 7, -1, 2**31, 2**63, -(10**400)])),
    lambda x: st.lists(x, max_size=6) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=8,
)


def places(value, place=()):
    """The path of keys to each node of a JSON value."""
    found = [place]
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += places(value[key], (*place, key))
    return found


@st.composite
def damaged_contents(draw):
    """A valid content in which one or two random nodes are replaced or removed."""
    content = sound()
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(content)))
        if not place:
            return draw(VALUES)
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        if draw(st.integers(0, 3)) == 0:
            del parent[place[-1]]
        else:
            parent[place[-1]] = draw(VALUES)
    return content


@settings(max_examples=600, deadline=None)
@given(content=damaged_contents())
def test_detectron2_loads_all_entries_that_pass_the_check(tmp_path_factory, content):
    try:
        report = check_annotations(content, PATH)
    except ValueError as error:
        assert PATH in str(error) and len(str(error)) < 500
        return
    assert max(map(len, report.format().splitlines())) < 400

    cleaned = report.without_errors()
    file = tmp_path_factory.getbasetemp() / PATH
    file.write_text(json.dumps(cleaned))
    MetadataCatalog.pop("fuzzed", None)
    records = load_coco_json(str(file), "", "fuzzed")

    assert [x["image_id"] for x in records] == sorted(x["id"] for x in cleaned["images"])
    loaded = sum(len(x["annotations"]) for x in records)
    assert loaded == len(cleaned.get("annotations", []))
    assert not check_annotations(cleaned, PATH).invalid
