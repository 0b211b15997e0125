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
from centripetalnet.data.check.report import SEVERITIES, Problem, Report, without_errors


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


def test_a_valid_file_has_no_problems_and_its_objects_are_counted():
    report = check_annotations(sound(), PATH)

    assert report == Report(PATH, [], 2, 5, {"cow": (4, 0), "bear": (0, 1)})


def test_a_test_set_needs_no_annotations():
    content = {key: coco()[key] for key in ("images", "categories")}

    assert without_errors(content, check_annotations(content, PATH)) == content


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
        ({**coco(), "categories": [{"id": "1", "name": "cow"}]}, "the id '1'"),
        ({**coco(), "categories": [{"id": 1, "name": 5}]}, "the name 5"),
        ({**coco(), "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "the id 1"),
        ({**coco(), "categories": [{"id": x, "name": "a"} for x in (1, 2)]}, "the name 'a'"),
    ],
)
def test_a_file_that_is_not_in_coco_format_is_refused(content, message):
    with pytest.raises(ValueError, match=f"annotations.json .*{message}"):
        check_annotations(content, PATH)


HUGE = 10**400
NO_IDS = "annotation without a valid id, image_id or category_id"
NO_BOX, OVER = "bbox is not four finite numbers", "box reaches outside its image"
POLYGON, DROPPED = "invalid polygon", "polygon dropped by Detectron2"
RUNS, NO_FORM = "invalid run-length encoding", "segmentation of unknown format"


OF_ANNOTATIONS = [
    ({"id": ...}, NO_IDS, "there is no id; expected an integer"),
    ({"image_id": [1]}, NO_IDS, "image_id is \\[1\\]; expected an integer"),
    ({"category_id": 3.0}, NO_IDS, "category_id is 3.0"),
    ({"category_id": HUGE}, NO_IDS, "an integer of 1329 bits"),
    ({"id": 2}, "annotation id is not unique", "annotations\\[0\\] has the same id"),
    ({"id": 0}, "annotation id is not positive", "needs ids from 1"),
    ({"image_id": 9}, "annotation of an unknown image", "one of the file's images"),
    ({"category_id": 4}, "annotation of an unknown category", "category_id is 4"),
    ({"bbox": ...}, NO_BOX, "there is no bbox; expected \\[x, y, width, height\\]"),
    ({"bbox": [1, 2, math.nan, 4]}, NO_BOX, "nan"),
    ({"bbox": [HUGE, 2, 3, 4]}, NO_BOX, "bits"),
    ({"bbox": [1, 2, 3, -4]}, "box of negative size", "\\[1, 2, 3, -4\\]; .* positive"),
    ({"bbox": [1, 2, 0, 4]}, "box without an area", "no training target"),
    ({"bbox": [10, 2, 3, 4]}, "box outside its image", "in an image of 10 x 8"),
    ({"bbox": [1, -4, 3, 4]}, "box outside its image", "in an image of 10 x 8"),
    ({"bbox": [-1.5, 2, 3, 4]}, OVER, "1.5 pixels are clipped"),
    ({"bbox": [1, 2, 3, 7]}, OVER, "1 pixels are clipped"),
    ({"ignore": 1}, "ignore is not 0", "it is 1"),
    ({"iscrowd": 2}, "iscrowd is not 0 or 1", "iscrowd is 2"),
    ({"iscrowd": ...}, "no iscrowd", "evaluation fails"),
    ({"area": "12"}, "no valid area", "area is '12'"),
    ({"keypoints": [1, 2, "2"]}, "invalid keypoints", "x, y, visibility"),
    ({"segmentation": "x"}, NO_FORM, "it is 'x'; expected a list of polygons"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, POLYGON, "7 numbers.*Detectron2 drops"),
    ({"segmentation": [[]]}, POLYGON, "0 numbers.*Detectron2 drops the whole"),
    ({"segmentation": [[1, 1, 5, 1, 5, 5], [1, 2]]}, DROPPED, "2 numbers.*keeps 1 of the 2"),
    ({"segmentation": [1, 2, 3, 4, 5, 6]}, POLYGON, "one is 1; expected a list"),
    ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, POLYGON, "a coordinate is '6'"),
    ({"segmentation": [[1, 2, 3, 4, 5, HUGE]]}, POLYGON, "bits"),
    ({"segmentation": [[1, 2], [1, 2, 3, 4, 5, math.nan]]}, POLYGON, "a coordinate is nan"),
    ({"segmentation": [[1, 2, 3, 4, 5, -1e9]]}, POLYGON, "-1e\\+09; expected at most"),
    ({"segmentation": {"size": [10, 8], "counts": [80]}}, RUNS, "\\[8, 10\\]"),
    ({"segmentation": {"size": [8, 10.0], "counts": [80]}}, RUNS, "\\[8, 10.0\\]"),
    ({"segmentation": {"size": [2**31, 2**31], "counts": [80]}}, RUNS, "1 to 2147483647"),
    ({"segmentation": {"size": [8, 10], "counts": []}}, RUNS, "0 pixels.*expected 80"),
    ({"segmentation": {"size": [8, 10], "counts": [90, -10]}}, RUNS, "length -10"),
    ({"segmentation": {"size": [8, 10], "counts": [80.0]}}, RUNS, "expected integers"),
    ({"segmentation": {"size": [8, 10], "counts": "0P"}}, RUNS, "'0P'; expected numbers"),
    ({"segmentation": {"size": [8, 10], "counts": "ä"}}, RUNS, "'ä'; .*'P' to 'o'"),
    ({"segmentation": {"size": [8, 10], "counts": "ooooooo0"}}, RUNS, "at most 7"),
    ({"segmentation": {"size": [8, 10], "counts": "@"}}, RUNS, "length -16"),
    ({"segmentation": {"size": [8, 10], "counts": "T3"}}, RUNS, "100 pixels"),
]
NO_IMAGE = "image without a valid id, file_name, height or width"
OUTSIDE, COPY = "file name leads outside the image folder", "image id is not unique"
OF_IMAGES = [
    ({"id": ...}, NO_IMAGE, "there is no id; expected an integer"),
    ({"file_name": ""}, NO_IMAGE, "file_name is ''; expected a string"),
    ({"height": 0}, NO_IMAGE, "height is 0; expected a positive integer"),
    ({"width": [10]}, NO_IMAGE, "width is \\[10\\]"),
    ({"file_name": "../2.png"}, OUTSIDE, "expected a path relative to the image folder"),
    ({"file_name": "/data/2.png"}, OUTSIDE, "expected a path relative to the image folder"),
    ({"id": 1, "file_name": "1.png"}, COPY, "they are equal, the first is kept"),
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
    assert "annotations are ambiguous" in problems[0].detail


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=20))
def test_compressed_counts_are_decoded_as_pycocotools_encodes_them(counts):
    size = [1, sum(counts)]
    encoded = mask_util.frPyObjects({"size": size, "counts": counts}, *size)

    assert decode_counts(encoded["counts"].decode("ascii")) == counts


def test_the_report_has_one_row_for_each_kind_errors_first():
    noted = [annotation(i, bbox=[-1, 2, 3, 4], image_id=i % 2 + 1) for i in range(2, 1202)]
    wrong = [annotation(1, id=None), annotation(5000, bbox=[1, 2, -3, 4])]
    content = coco(noted + wrong, [image(1, file_name="牛\ud800\x1b.png"), image(2)])

    lines = check_annotations(content, PATH).format().splitlines()

    assert lines[:3] == [
        "annotations.json: 2 images, 1,202 annotations",
        "errors (invalid entries): 2",
        "notes (accepted or converted by Detectron2): 1,200",
    ]
    rows = [re.split("  +", x) for x in lines[6:]]
    assert [x[:4] for x in rows] == [
        ["error", NO_IDS, "1", "1"],
        ["error", "box of negative size", "1", "1"],
        ["note", OVER, "1,200", "2"],
    ]
    assert rows[0][4] == "image 1 '牛\\ud800\\x1b.png': id is None; expected an integer"
    assert rows[2][4].startswith("image 1 '牛\\ud800\\x1b.png' annotation 2: bbox is [-1, 2, 3, 4]")


def test_long_texts_of_a_report_are_cut_and_the_most_frequent_classes_shown():
    problems = [Problem(x, "images", 0, 1, None, "n" * 999, "new\nline" * 999) for x in SEVERITIES]
    report = Report("p" * 9999, problems, 1, 0, {f"{i}" + "\n" * 99: (i, 2) for i in range(121)})

    lines, classes = report.format().splitlines(), report.format_classes().splitlines()

    assert len(lines) == 6 + len(SEVERITIES) and max(map(len, lines)) < 240
    assert classes[2].startswith("120\\n") and classes[2].split()[1:] == ["120", "2"]
    assert len(classes) == 2 + 100 + 1 and classes[-1] == "and 21 rarer classes"


def test_an_invalid_image_is_removed_with_its_annotations():
    content = coco(
        [annotation(1), annotation(2, id=None), annotation(3, image_id=2), annotation(4, area=...)],
        [image(1), image(1), image(2, height="8")],
    )
    before = copy.deepcopy(content)

    cleaned = without_errors(content, check_annotations(content, PATH))

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
    assert max(map(len, report.format().splitlines())) < 240

    cleaned = without_errors(content, report)
    file = tmp_path_factory.getbasetemp() / PATH
    file.write_text(json.dumps(cleaned))
    MetadataCatalog.pop("fuzzed", None)
    records = load_coco_json(str(file), "", "fuzzed")

    assert [x["image_id"] for x in records] == sorted(x["id"] for x in cleaned["images"])
    loaded = sum(len(x["annotations"]) for x in records)
    assert loaded == len(cleaned.get("annotations", []))
    assert check_annotations(cleaned, PATH).errors == []
