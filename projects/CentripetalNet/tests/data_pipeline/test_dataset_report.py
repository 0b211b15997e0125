"""The report about a dataset, and the dataset without invalid entries."""

import copy

import pytest
from coco_content import PATH, annotation, coco, image, load, sound
from hypothesis import given, settings
from hypothesis import strategies as st

from centripetalnet.data.check import Problem, Report, check_annotations, without_errors
from centripetalnet.data.check.report import LINE_CHARACTERS, PAGE_LINES, SEVERITIES


def test_ten_thousand_bad_annotations_give_one_page():
    content = coco([annotation(i, bbox=[1, 2, -3, 4]) for i in range(1, 10_001)])

    lines = check_annotations(content, PATH).format().splitlines()

    assert len(lines) < 20
    (line,) = (x for x in lines if "box of negative size" in x)
    assert line.split() == ["box", "of", "negative", "size", "10,000", "in", "1", "image"]
    examples = [x for x in lines if "width and height must be positive" in x]
    assert len(examples) == 3
    assert "image 1 '1.png' annotation 1: bbox is [1, 2, -3, 4]" in examples[0]


def test_problems_of_every_kind_and_many_classes_stay_within_the_page():
    problems = [
        Problem(kind, "annotations", i, i, i, "name" * 100, "line\nbreak" * 1000)
        for i in range(5)
        for kind in SEVERITIES
    ]
    classes = {f"a class with a rather long name {i}": (i, 1) for i in range(1200)}

    lines = Report("p" * 1000, problems, 5, 5, classes).format(max_examples=100).splitlines()

    assert len(lines) <= PAGE_LINES
    assert max(map(len, lines)) <= LINE_CHARACTERS
    assert all(any(x.strip().startswith(kind) for x in lines) for kind in SEVERITIES)


def test_the_most_frequent_and_the_rarest_classes_are_shown():
    classes = {f"class{i}": (i, 0) for i in range(80)}

    page = Report(PATH, [], 1, 3160, classes).format()

    assert page.index("class79 ") < page.index("class65 ") < page.index("class8 ")
    assert "class8 " in page and "class0 " in page and "class30 " not in page
    assert "... and 56 more, each with 9 to 64 ..." in page


def test_unprintable_text_is_escaped():
    content = coco([annotation(1, id=None)], [image(1, file_name="牛\ud800\x1b.png")])

    page = check_annotations(content, PATH).format()

    page.encode("utf-8")
    assert "牛" in page and "\x1b" not in page and "\\ud800" in page


def test_errors_and_notes_are_separate():
    content = coco([annotation(1, bbox=[1, 2, -3, 4]), annotation(2, bbox=[-1, 2, 3, 4])])

    report = check_annotations(content, PATH)

    assert [x.annotation_id for x in report.errors] == [1]
    assert [x.annotation_id for x in report.notes] == [2]


def test_reports_of_one_file_are_merged():
    content = coco([annotation(1, bbox=[1, 2, 0, 4])])
    annotations = check_annotations(content, PATH)
    missing = Problem("image file is missing", "images", 0, 1, None, "1.png", "not there")

    merged = Report(PATH, [missing], 2, 1) + annotations

    assert merged.problems == [missing, *annotations.problems]
    assert merged.classes == annotations.classes
    with pytest.raises(ValueError, match="same annotation file.*annotations.json.*other.json"):
        annotations + Report("other.json", [], 2, 1)


def test_an_invalid_image_is_removed_with_its_annotations():
    content = coco(
        [annotation(1), annotation(2, id=None), annotation(3, image_id=2), annotation(4, area=...)],
        [image(1), image(2, height="8")],
    )
    before = copy.deepcopy(content)

    cleaned = without_errors(content, check_annotations(content, PATH))

    assert [x["id"] for x in cleaned["images"]] == [1]
    assert [x["id"] for x in cleaned["annotations"]] == [1, 4]
    assert cleaned["categories"] == content["categories"]
    assert content == before


def test_annotations_are_kept_when_one_of_two_equal_images_is_removed():
    content = coco([annotation(1)], [image(1), image(1)])

    cleaned = without_errors(content, check_annotations(content, PATH))

    assert cleaned == coco([annotation(1)], [image(1)])


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, 7, -1, 2**31, 2**63, -(10**400)])
    | st.floats()
    | st.text(max_size=8)
    | st.text("0123P@o", max_size=8),
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
@given(damaged_contents())
def test_detectron2_loads_all_entries_that_pass_the_check(content):
    try:
        report = check_annotations(content, PATH)
    except ValueError as error:
        assert PATH in str(error) and len(str(error)) < 500
        return
    assert len(report.format().splitlines()) <= PAGE_LINES

    cleaned = without_errors(content, report)
    records = load(cleaned)

    assert [x["image_id"] for x in records] == sorted(x["id"] for x in cleaned["images"])
    loaded = sum(len(x["annotations"]) for x in records)
    assert loaded == len(cleaned.get("annotations", []))
    assert check_annotations(cleaned, PATH).errors == []
