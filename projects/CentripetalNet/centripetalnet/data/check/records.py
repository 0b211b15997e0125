"""Checks the records of a dataset that a function returns, in Detectron2's dataset format."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

import numpy as np
from detectron2.structures import BoxMode

from .annotations import check_annotations
from .images import missing_images
from .report import Problem, Report
from .segmentations import BAD_CODE
from .structure import is_integer, is_number, shown

BAD_MODE = "bbox_mode is not XYXY_ABS or XYWH_ABS"
NO_ID = "image without a valid id, file_name, height or width"
# A record has the full path.
FOREIGN_KIND = "file name leads outside the image folder"
# Inside any image, so that an unknown box gives no further problem.
UNKNOWN_BOX = [0, 0, 0.5, 0.5]


def check_records(
    records: Sequence[dict], classes: Sequence[str], path: str, evaluated: bool = True
) -> Report:
    """Finds all entries of a list of records that training or evaluation would fail on.

    Args:
        records: images in Detectron2's dataset format; other fields are ignored.
        classes: class names.
        path: name of the list in messages.
        evaluated: whether each image needs ``image_id``, ``height`` and ``width``. Training does
            not; without a size, objects are not compared with it.

    Returns:
        All problems except those inside the image files, and the number of objects of each class.
        An annotation's position counts over all records, its id within its record, from 0.

    Raises:
        ValueError: if a record or an annotation is not a dict, or a class name is not unique.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    owners: list[tuple[int, int]] = []
    found: list[tuple[str, int, str, str]] = []
    numbers: dict[Any, int] = {}
    for index, record in enumerate(records):
        entries = _annotations_of(record, index, path)
        image_id = _plain(record.get("image_id"))
        if not evaluated and "image_id" not in record:
            image_id = ("unknown", index)
        elif not (is_integer(image_id) or isinstance(image_id, str)):
            seen = f"image_id is {shown(image_id)}" if "image_id" in record else "no image_id"
            found.append(("images", index, NO_ID, f"{seen}; expected an integer or a string"))
            image_id = ("unknown", index)
        # COCO has integer ids only.
        number = numbers.setdefault(image_id, len(numbers))
        image = {x: _plain(record[x]) for x in ("file_name", "height", "width") if x in record}
        images.append({**image, "id": number})
        for position, entry in enumerate(entries):
            annotation, problems = _coco_annotation(entry)
            found += [("annotations", len(annotations), *x) for x in problems]
            owners.append((index, position))
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
    if len(numbers) < len(records):
        _add_objects(images, annotations, owners)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(x)} for i, x in enumerate(classes)],
    }
    report = check_annotations(content, path, needs_sizes=evaluated)
    report += missing_images(content, "", path)
    problems = [x for x in report.problems if x.kind != FOREIGN_KIND]
    problems += [Problem(kind, x, i, None, None, None, detail) for x, i, kind, detail in found]
    return replace(report, problems=[_located(x, records, owners) for x in problems])


def _add_objects(
    images: list[dict], annotations: list[dict], owners: list[tuple[int, int]]
) -> None:
    """Makes images with the same id equal only if their objects are equal."""
    for image in images:
        image["objects"] = []
    for annotation, (index, _) in zip(annotations, owners):
        images[index]["objects"].append({**annotation, "id": None})


def records_without(records: Sequence[dict], left_out: set[tuple[str, int]]) -> list[dict]:
    """Removes invalid records and annotations.

    Args:
        records: the checked records; they are not changed.
        left_out: section and position of each error, see :func:`check_records`.
    """
    kept = []
    position = 0
    for index, record in enumerate(records):
        annotations = record.get("annotations", [])
        usable = [
            x for i, x in enumerate(annotations, position) if ("annotations", i) not in left_out
        ]
        position += len(annotations)
        if ("images", index) not in left_out:
            all_usable = len(usable) == len(annotations)
            kept.append(record if all_usable else {**record, "annotations": usable})
    return kept


def _annotations_of(record: Any, index: int, path: str) -> Sequence[dict]:
    if not isinstance(record, dict):
        raise ValueError(
            f"{path}: record {index} is {shown(record)}; expected a dict in Detectron2's dataset "
            "format"
        )
    # A test set has no annotations.
    annotations = record.get("annotations", [])
    if not isinstance(annotations, (list, tuple)) or not all(
        isinstance(x, dict) for x in annotations
    ):
        raise ValueError(
            f"{path}: the annotations of record {index} are {shown(annotations)}; expected a list "
            "of dicts"
        )
    return annotations


def _coco_annotation(entry: dict) -> tuple[dict, list[tuple[str, str]]]:
    """An annotation in COCO format, with kinds and details of problems outside that format."""
    problems = []
    # Both are optional: Detectron2 passes them to COCO's evaluation.
    annotation = {"area": 0, "iscrowd": _plain(entry.get("iscrowd", 0))}
    if "category_id" in entry:
        annotation["category_id"] = _plain(entry["category_id"])
    mode = entry.get("bbox_mode")
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        seen = f"it is {shown(mode)}" if "bbox_mode" in entry else "there is none"
        problems.append((BAD_MODE, f"{seen}; expected one of detectron2.structures.BoxMode"))
        annotation["bbox"] = UNKNOWN_BOX
    elif "bbox" in entry:
        annotation["bbox"] = _coco_box(entry["bbox"], mode)
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        segmentation = {key: _plain(value) for key, value in segmentation.items()}
        if isinstance(segmentation.get("counts"), list):
            detail = "its counts are a list; Detectron2 needs compressed counts, a string or bytes"
            problems.append((BAD_CODE, detail))
            segmentation = None
    elif isinstance(segmentation, list):
        segmentation = [x if isinstance(x, list) else _plain(x) for x in segmentation]
    if segmentation is not None:
        annotation["segmentation"] = segmentation
    return annotation, problems


def _coco_box(box: Any, mode: int) -> Any:
    """Converts a box to x, y, width, height; returns other values unchanged."""
    # Detectron2 cannot convert a single box in an array.
    if isinstance(box, (list, tuple)) or mode == BoxMode.XYXY_ABS:
        box = _plain(box)
    if not isinstance(box, list):
        return box
    box = [_plain(x) for x in box]
    if mode == BoxMode.XYXY_ABS and len(box) == 4 and all(map(is_number, box)):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return box


def _plain(value: Any) -> Any:
    """Converts NumPy values, tuples, bytes and paths to JSON types."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _located(problem: Problem, records: Sequence[dict], owners: list[tuple[int, int]]) -> Problem:
    """The problem with ids and names of the record."""
    index, annotation_id = problem.position, None
    if problem.section == "annotations":
        index, annotation_id = owners[problem.position]
    record = records[index]
    image_id, file_name = _plain(record.get("image_id")), _plain(record.get("file_name"))
    named: Optional[str] = file_name if isinstance(file_name, str) and file_name else None
    if not (is_integer(image_id) or isinstance(image_id, str)):
        image_id = None
    return problem._replace(image_id=image_id, annotation_id=annotation_id, file_name=named)
