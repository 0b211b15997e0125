"""Checks the records of a dataset that a function returns, in Detectron2's dataset format."""

import os
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
from detectron2.structures import BoxMode

from .annotations import check_image_entries, check_values, class_counts, size_of
from .images import missing_images
from .reading import class_names, file_name_of, is_integer, is_number, shown, wrong_field
from .report import BAD_RUN_LENGTHS, LEADS_OUTSIDE, NO_IMAGE_FIELDS, KindAndDetail, Problem, Report

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
        All problems except those inside the image files, and the number of objects of each class.
        An annotation's position counts over all records, its id within its record, from 0.

    Raises:
        ValueError: if a record or an annotation is not a dict, or a class name is not unique.
    """
    categories = [{"id": i, "name": str(x)} for i, x in enumerate(classes)]
    names = class_names({"categories": categories}, path)
    images: list[dict] = []
    image_ids: list[Union[int, str, None]] = []
    problems: list[Problem] = []
    position = 0
    numbers: dict[Any, int] = {}
    for index, record in enumerate(records):
        entries = _entries_of(record, index, path)
        image = {x: _plain(record[x]) for x in ("file_name", "height", "width") if x in record}
        file_name, image_id = file_name_of(image), _plain(record.get("image_id"))
        if not (is_integer(image_id) or isinstance(image_id, str)):
            image_id = None
            if evaluated or "image_id" in record:
                detail = wrong_field(record, "image_id", "an integer or a string")
                where = ("images", index, None, None, file_name)
                problems.append(Problem(NO_IMAGE_FIELDS, *where, detail))
        image_ids.append(image_id)
        # COCO has integer ids only.
        key = ("unknown", index) if image_id is None else image_id
        image["id"] = numbers.setdefault(key, len(numbers))
        # Images with the same id are equal only if their objects are.
        image["objects"] = []
        for number, entry in enumerate(entries):
            annotation, found = _coco_annotation(entry)
            found += check_values(annotation, size_of(image), names)
            where = ("annotations", position, image_id, number, file_name)
            problems += [Problem(kind, *where, detail) for kind, detail in found]
            image["objects"].append(annotation)
            position += 1
        images.append(image)
    for problem in check_image_entries(images, evaluated) + missing_images(images, ""):
        # A record has the full path of its file.
        if problem.kind != LEADS_OUTSIDE:
            problems.append(problem._replace(image_id=image_ids[problem.position]))
    counts = class_counts((x for image in images for x in image["objects"]), names)
    return Report(path, problems, len(images), position, counts)


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
        seen = f"the annotations of record {index} are {shown(entries)}"
        raise ValueError(f"{path}: {seen}; expected a list of dicts")
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
        detail = wrong_field(entry, "bbox_mode", "one of detectron2.structures.BoxMode")
        problems.append(("bbox_mode is not XYXY_ABS or XYWH_ABS", detail))
        annotation["bbox"] = UNKNOWN_BOX
    elif "bbox" in entry:
        annotation["bbox"] = _coco_box(entry["bbox"], mode)
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        segmentation = {key: _plain(value) for key, value in segmentation.items()}
        if isinstance(segmentation.get("counts"), list):
            detail = "its counts are a list; Detectron2 needs compressed counts, a string or bytes"
            problems.append((BAD_RUN_LENGTHS, detail))
            segmentation = None
    elif isinstance(segmentation, list):
        segmentation = [_plain(x) for x in segmentation]
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
