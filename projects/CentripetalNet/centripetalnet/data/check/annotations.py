"""Checks the entries of an annotation file."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np

from .report import Problem, Report
from .segmentations import BAD_POLYGON, CoordinateCheck, KindAndDetail, check_segmentation
from .structure import class_names, entries_of, is_integer, is_number, shown

# Pixels. COCO rounds x and width to hundredths each, and their sum is not exact.
OUTSIDE_TOLERANCE = 0.02

Size = Optional[tuple[int, int]]


def check_annotations(content: Any, path: str, needs_sizes: bool = True) -> Report:
    """Finds all entries of an annotation file that Detectron2 would fail on or silently ignore.

    Args:
        content: the parsed file, any JSON value.
        path: of the file, for the messages.
        needs_sizes: whether an image without height and width is invalid. If not, its objects are
            not compared with its size.

    Returns:
        All problems except those of the image files, and the number of objects of each class.

    Raises:
        ValueError: if it is not in COCO format, or an id or a name of a category is not unique, so
            that leaving out entries cannot fix it.
    """
    classes = class_names(content, path)
    images = entries_of(content, "images", path)
    # A test set has no annotations.
    annotations = entries_of(content, "annotations", path, required=False)

    problems = list(_check_images(images, needs_sizes))
    sizes = _sizes(images)
    names = {
        x["id"]: x["file_name"]
        for x in images
        if is_integer(x.get("id")) and isinstance(x.get("file_name"), str)
    }

    found = _check_annotations(annotations, sizes, classes)
    # In the order of the file, not of the checks.
    for position, kind, detail in sorted(found, key=lambda x: x[0]):
        annotation = annotations[position]
        image_id = _integer_or_none(annotation.get("image_id"))
        annotation_id = _integer_or_none(annotation.get("id"))
        name = names.get(image_id)
        problems.append(
            Problem(kind, "annotations", position, image_id, annotation_id, name, detail)
        )
    counts = _class_counts(annotations, classes)
    return Report(path, problems, len(images), len(annotations), counts)


def _check_images(images: list[dict], needs_sizes: bool) -> Iterator[Problem]:
    same_id: dict[int, list[int]] = {}
    for position, image in enumerate(images):
        image_id, file_name = image.get("id"), image.get("file_name")
        usable_name = isinstance(file_name, str) and file_name != ""
        where = (
            "images",
            position,
            _integer_or_none(image_id),
            None,
            file_name if usable_name else None,
        )
        wrong = []
        if is_integer(image_id):
            same_id.setdefault(image_id, []).append(position)
        else:
            wrong.append(_wrong_field(image, "id", "an integer"))
        if not usable_name:
            wrong.append(_wrong_field(image, "file_name", "a string"))
        # Detectron2 accepts both or neither.
        has_sizes = needs_sizes or "height" in image or "width" in image
        for side in ("height", "width") if has_sizes else ():
            if not _is_side(image.get(side)):
                wrong.append(_wrong_field(image, side, "a positive integer"))
        if wrong:
            kind = "image without a valid id, file_name, height or width"
            yield Problem(kind, *where, "; ".join(wrong))
        if usable_name and _leads_outside(file_name):
            kind = "file name leads outside the image folder"
            yield Problem(kind, *where, "expected a path relative to the image folder")
    for image_id, positions in same_id.items():
        if len(positions) > 1:
            yield from _check_copies(image_id, positions, images)


def _check_copies(image_id: int, positions: list[int], images: list[dict]) -> Iterator[Problem]:
    """Problems of entries with the same id. Of equal entries the first is kept."""
    equal = all(images[x] == images[positions[0]] for x in positions[1:])
    detail = f"{len(positions)} images have the id, the first is images[{positions[0]}]; " + (
        "they are equal, the first is kept"
        if equal
        else "they differ, so their annotations are ambiguous"
    )
    for position in positions[1:] if equal else positions:
        name = images[position].get("file_name")
        name = name if isinstance(name, str) else None
        yield Problem("image id is not unique", "images", position, image_id, None, name, detail)


def _sizes(images: list[dict]) -> dict[int, Size]:
    """(height, width) by image id; None if unknown or ambiguous."""
    sizes: dict[int, Size] = {}
    for image in images:
        if not is_integer(image.get("id")):
            continue
        height, width = image.get("height"), image.get("width")
        size = (height, width) if _is_side(height) and _is_side(width) else None
        sizes[image["id"]] = size if sizes.get(image["id"], size) == size else None
    return sizes


def _check_annotations(
    annotations: list[dict], sizes: dict[int, Size], classes: dict[int, str]
) -> list[tuple[int, str, str]]:
    """Position in the list, kind and detail of each problem."""
    found: list[tuple[int, str, str]] = []
    coordinates = CoordinateCheck()
    first_of_id: dict[int, int] = {}
    boxes, box_sizes, box_positions = [], [], []
    for position, annotation in enumerate(annotations):
        problems = _check_ids(annotation, position, sizes, classes, first_of_id)
        problems += _check_flags(annotation)
        image_id = annotation.get("image_id")
        size = sizes.get(image_id) if is_integer(image_id) else None
        box = annotation.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            boxes.append(box)
            box_sizes.append(size or (np.nan, np.nan))
            box_positions.append(position)
        else:
            detail = _wrong_field(annotation, "bbox", "[x, y, width, height]")
            problems.append(("bbox is not four finite numbers", detail))
        segmentation = annotation.get("segmentation")
        # Files with boxes only may have an empty one, which Detectron2 ignores.
        if segmentation:
            problems += check_segmentation(segmentation, size, position, coordinates)
        keypoints = annotation.get("keypoints")
        if keypoints:
            problems += _check_keypoints(keypoints)
        found += [(position, kind, detail) for kind, detail in problems]

    found += [(position, BAD_POLYGON, detail) for position, detail in coordinates.bad()]
    if boxes:
        arrays = (np.array(x, dtype=np.float64) for x in (boxes, box_sizes))
        for index, kind, detail in _check_boxes(*arrays):
            found.append((box_positions[index], kind, detail))
    return found


def _check_ids(
    annotation: dict,
    position: int,
    sizes: dict[int, Size],
    classes: dict[int, str],
    first_of_id: dict[int, int],
) -> list[KindAndDetail]:
    """Checks the ids and adds them to ``first_of_id``, the first position of each id."""
    problems = []
    annotation_id = annotation.get("id")
    image_id = annotation.get("image_id")
    category_id = annotation.get("category_id")
    wrong = []
    if not is_integer(annotation_id):
        wrong.append("id")
    else:
        first = first_of_id.setdefault(annotation_id, position)
        if first != position:
            detail = f"annotations[{first}] has the same id and is kept"
            problems.append(("annotation id is not unique", detail))
        if annotation_id <= 0:
            detail = "COCO's evaluation needs ids from 1; it counts a match with object 0 as false"
            problems.append(("annotation id is not positive", detail))
    if not is_integer(image_id):
        wrong.append("image_id")
    elif image_id not in sizes:
        problems.append(
            ("annotation of an unknown image", "expected the id of one of the file's images")
        )
    if not is_integer(category_id):
        wrong.append("category_id")
    elif category_id not in classes:
        known = f"{len(classes)} category ids, {min(classes)} to {max(classes)}"
        detail = f"category_id is {category_id}; expected one of the {known}"
        problems.append(("annotation of an unknown category", detail))
    if wrong:
        detail = "; ".join(_wrong_field(annotation, x, "an integer") for x in wrong)
        problems.append(("annotation without a valid id, image_id or category_id", detail))
    return problems


def _check_flags(annotation: dict) -> list[KindAndDetail]:
    """``ignore``, ``iscrowd`` and ``area``."""
    problems = []
    ignore, iscrowd = annotation.get("ignore", 0), annotation.get("iscrowd")
    if ignore != 0:
        detail = f"it is {shown(ignore)}; Detectron2 raises an error unless it is 0"
        problems.append(("ignore is not 0", detail))
    if "iscrowd" not in annotation:
        detail = "training uses it as an object, COCO's evaluation fails without it; add 0 or 1"
        problems.append(("no iscrowd", detail))
    elif not (iscrowd == 0 or iscrowd == 1):
        problems.append(("iscrowd is not 0 or 1", _wrong_field(annotation, "iscrowd", "0 or 1")))
    area = annotation.get("area")
    if not (is_number(area) and area >= 0):
        detail = _wrong_field(annotation, "area", "a number of pixels")
        problems.append(
            ("no valid area", f"{detail}. COCO's evaluation needs it, training does not")
        )
    return problems


def _check_keypoints(keypoints: Any) -> list[KindAndDetail]:
    if isinstance(keypoints, list) and len(keypoints) % 3 == 0 and all(map(is_number, keypoints)):
        return []
    detail = f"they are {shown(keypoints)}; expected a list of x, y, visibility, ..."
    return [("invalid keypoints", detail)]


def _check_boxes(boxes: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[int, str, str]]:
    """Checks all boxes at once.

    Args:
        boxes: (A, 4) float64, finite.
        sizes: (A, 2) float64, (height, width) of the box's image; NaN if unknown.

    Returns:
        Index of the box, kind and detail of each problem.
    """
    tl, sides, limits = boxes[:, :2], boxes[:, 2:], sizes[:, ::-1]
    known = ~np.isnan(limits).any(axis=1)
    # A comparison with NaN is false.
    with np.errstate(invalid="ignore", over="ignore"):
        br = tl + sides
        empty = (br <= tl).any(axis=1)
        outside = ((tl >= limits) | (br <= 0)).any(axis=1) & ~empty & known
        beyond = np.maximum(-tl, br - limits).max(axis=1)
    over = (beyond > OUTSIDE_TOLERANCE) & ~empty & ~outside
    negative = (sides < 0).any(axis=1)
    for kind, flags, consequence in (
        ("box of negative size", negative, "width and height must be positive"),
        ("box without an area", empty & ~negative, "it gives no training target"),
    ):
        for index in np.flatnonzero(flags):
            yield index, kind, f"bbox is {_box_text(boxes[index])}; {consequence}"
    for kind, flags in (
        ("box outside its image", outside),
        ("box reaches outside its image", over),
    ):
        for index in np.flatnonzero(flags):
            height, width = sizes[index]
            detail = f"bbox is {_box_text(boxes[index])} in an image of {width:g} x {height:g}"
            if flags is over:
                detail += f"; {beyond[index]:.4g} pixels are clipped"
            yield index, kind, detail


def _box_text(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{x:.8g}" for x in box) + "]"


def _class_counts(annotations: list[dict], classes: dict[int, str]) -> dict[str, tuple[int, int]]:
    counts = Counter(
        (x["category_id"], x.get("iscrowd") == 1)
        for x in annotations
        if is_integer(x.get("category_id"))
    )
    return {name: (counts[i, False], counts[i, True]) for i, name in classes.items()}


def _is_side(value: Any) -> bool:
    # Pillow's limit.
    return is_integer(value) and 0 < value < 2**31


def _leads_outside(file_name: str) -> bool:
    first = os.path.normpath(file_name).split(os.sep)[0]
    return os.path.isabs(file_name) or first == os.pardir


def _integer_or_none(value: Any) -> Optional[int]:
    return value if is_integer(value) else None


def _wrong_field(entry: dict, name: str, expected: str) -> str:
    seen = f"{name} is {shown(entry[name])}" if name in entry else f"there is no {name}"
    return f"{seen}; expected {expected}"
