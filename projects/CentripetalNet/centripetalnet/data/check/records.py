"""Checks the records of a dataset that a function returns, in Detectron2's dataset format."""

import os
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
from detectron2.structures import BoxMode

from .annotations import check_annotations
from .images import missing_images
from .reading import file_name_of, is_integer, is_number, seen, shown
from .report import (
    BAD_RUN_LENGTHS,
    LEADS_OUTSIDE,
    NO_IMAGE_FIELDS,
    KindAndDetail,
    Problem,
    Report,
    image_problem,
)

# Inside any image, so that an unknown box gives no further problem.
UNKNOWN_BOX = [0, 0, 0.5, 0.5]


def check_records(
    records: Sequence[dict], classes: Sequence[str], path: str, evaluated: bool = True
) -> Report:
    """Finds all entries of a list of records that training or evaluation would fail on.

    Args:
        records: images in Detectron2's dataset format; other fields are ignored.
        path: name of the list in messages.
        evaluated: whether each image needs ``image_id``, ``height`` and ``width``. Training does
            not; without a size, objects are not compared with it.

    Returns:
        All problems except those inside the image files, and the records in COCO format. An
        annotation's position counts over all records, its id within its record, from 0.

    Raises:
        ValueError: if a record or an annotation is not a dict, or a class name is not unique.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    problems: list[Problem] = []
    image_ids: list[Union[int, str, None]] = []
    # Of each annotation the index of its record, and its number within it.
    places: list[tuple[int, int]] = []
    # COCO has integer ids only.
    numbers: dict[Any, int] = {}
    for index, record in enumerate(records):
        entries = _entries_of(record, index, path)
        image = {x: _plain(record[x]) for x in ("file_name", "height", "width") if x in record}
        image_id = _plain(record.get("image_id"))
        if not (is_integer(image_id) or isinstance(image_id, str)):
            image_id = None
            if evaluated or "image_id" in record:
                detail = f"{seen(record, 'image_id')}; expected an integer or a string"
                problems.append(image_problem(image, index, NO_IMAGE_FIELDS, detail))
        image_ids.append(image_id)
        key = ("unknown", index) if image_id is None else image_id
        image["id"] = numbers.setdefault(key, index)
        # Images with the same id are equal only if their objects are.
        image["objects"] = []
        images.append(image)
        for number, entry in enumerate(entries):
            annotation, found = _coco_annotation(entry)
            image["objects"].append(annotation)
            where = ("annotations", len(annotations), None, None, None)
            problems += [Problem(kind, *where, detail) for kind, detail in found]
            annotations.append({**annotation, "id": len(places) + 1, "image_id": image["id"]})
            places.append((index, number))
    categories = [{"id": i, "name": str(x)} for i, x in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    report = check_annotations(content, path, needs_sizes=evaluated)
    problems += report.problems + missing_images(images, "")
    report.problems = []
    for problem in problems:
        of_image = problem.section == "images"
        index, number = (problem.position, None) if of_image else places[problem.position]
        ids = {"image_id": image_ids[index], "annotation_id": number}
        # A record has the full path of its file.
        if problem.kind != LEADS_OUTSIDE:
            file_name = file_name_of(images[index])
            report.problems.append(problem._replace(file_name=file_name, **ids))
    return report


def records_without(records: Sequence[dict], left_out: set[tuple[str, int]]) -> list[dict]:
    """Copies without the errors of :func:`check_records`, given by section and position."""
    kept = []
    position = 0
    for index, record in enumerate(records):
        entries = record.get("annotations", [])
        valid = [x for i, x in enumerate(entries, position) if ("annotations", i) not in left_out]
        position += len(entries)
        if ("images", index) not in left_out:
            kept.append(record if len(valid) == len(entries) else {**record, "annotations": valid})
    return kept


def _entries_of(record: Any, index: int, path: str) -> Sequence[dict]:
    if not isinstance(record, dict):
        raise ValueError(f"{path}: record {index} is {shown(record)}; expected a dict")
    # A test set has no annotations.
    entries = record.get("annotations", [])
    if not isinstance(entries, (list, tuple)) or not all(isinstance(x, dict) for x in entries):
        problem = f"the annotations of record {index} are {shown(entries)}"
        raise ValueError(f"{path}: {problem}; expected a list of dicts")
    return entries


def _coco_annotation(entry: dict) -> tuple[dict, list[KindAndDetail]]:
    """An annotation in COCO format, with kinds and details of problems outside that format."""
    problems = []
    # Both are optional: Detectron2 passes them to COCO's evaluation.
    annotation = {"area": 0, "iscrowd": _plain(entry.get("iscrowd", 0))}
    if "category_id" in entry:
        annotation["category_id"] = _plain(entry["category_id"])
    mode = entry.get("bbox_mode")
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        problems.append(("bbox_mode is not XYXY_ABS or XYWH_ABS", seen(entry, "bbox_mode")))
        annotation["bbox"] = UNKNOWN_BOX
    elif "bbox" in entry:
        annotation["bbox"] = _coco_box(entry["bbox"], mode)
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, (dict, list)):
        segmentation = _plain(segmentation)
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        detail = "its counts are a list; Detectron2 needs compressed counts, a string or bytes"
        problems.append((BAD_RUN_LENGTHS, detail))
    elif segmentation is not None:
        annotation["segmentation"] = segmentation
    return annotation, problems


def _coco_box(box: Any, mode: int) -> Any:
    """Converts a box to x, y, width, height; returns other values unchanged."""
    # Detectron2 cannot convert a single box in an array.
    if isinstance(box, (list, tuple)) or mode == BoxMode.XYXY_ABS:
        box = _plain(box)
    is_box = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
    if mode == BoxMode.XYXY_ABS and is_box:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return box


def _plain(value: Any, depth: int = 1) -> Any:
    """Converts NumPy values, tuples, bytes and paths to JSON types, also those in lists."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    # Not deeper: the coordinates of polygons are many.
    if isinstance(value, (list, tuple)) and depth:
        return [_plain(x, 0) for x in value]
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict) and depth:
        return {key: _plain(x, 0) for key, x in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value
