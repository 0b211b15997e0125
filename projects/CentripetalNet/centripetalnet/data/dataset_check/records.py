"""The checks for a dataset that a function returns, in Detectron2's dataset format."""

import os
from dataclasses import replace
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np
from detectron2.structures import BoxMode

from .annotations import check_annotations
from .images import missing_images
from .report import Problem, Report
from .segmentations import BAD_CODE
from .structure import is_integer, is_number, shown

BAD_MODE = "bbox_mode is not XYXY_ABS or XYWH_ABS"
NO_ID = "image without a usable id, file_name, height or width"
# A record has the whole path.
FOREIGN_KIND = "file name leads outside the image folder"
# In any image, so that nothing is said about a box that is not known.
UNKNOWN_BOX = [0, 0, 0.5, 0.5]


def check_records(records: Sequence[dict], classes: Sequence[str], path: str) -> Report:
    """Looks for everything in a list of records that training or evaluation would fail on.

    Args:
        records: images in Detectron2's dataset format; other fields are passed over.
        classes: names of the classes.
        path: what the messages call the list.

    Returns:
        All problems but those inside the image files, and the number of objects of each class. The
        position of an annotation counts those of all records, its id those of its own, from 0.

    Raises:
        ValueError: if a record or an annotation is not a dict, or a class is named twice.
    """
    images: List[dict] = []
    annotations: List[dict] = []
    owners: List[Tuple[int, int]] = []
    found: List[Tuple[str, int, str, str]] = []
    numbers: Dict[Any, int] = {}
    for index, record in enumerate(records):
        entries = _annotations_of(record, index, path)
        image_id = _plain(record.get("image_id"))
        if not (is_integer(image_id) or isinstance(image_id, str)):
            seen = f"image_id is {shown(image_id)}" if "image_id" in record else "no image_id"
            found.append(("images", index, NO_ID, f"{seen}; expected an integer or a text"))
            image_id = ("unknown", index)
        # COCO knows integers only.
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
    report = check_annotations(content, path) + missing_images(content, "", path)
    problems = [x for x in report.problems if x.kind != FOREIGN_KIND]
    problems += [Problem(kind, x, i, None, None, None, detail) for x, i, kind, detail in found]
    return replace(report, problems=[_located(x, records, owners) for x in problems])


def _add_objects(
    images: List[dict], annotations: List[dict], owners: List[Tuple[int, int]]
) -> None:
    """Makes images of one id equal only if their objects are."""
    for image in images:
        image["objects"] = []
    for annotation, (index, _) in zip(annotations, owners):
        images[index]["objects"].append({**annotation, "id": None})


def records_without(records: Sequence[dict], left_out: Set[Tuple[str, int]]) -> List[dict]:
    """The records without what cannot be used.

    Args:
        records: as they were checked; they are not changed.
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
    # A test set has none.
    annotations = record.get("annotations", [])
    if not isinstance(annotations, (list, tuple)) or not all(
        isinstance(x, dict) for x in annotations
    ):
        raise ValueError(
            f"{path}: the annotations of record {index} are {shown(annotations)}; expected a list "
            "of dicts"
        )
    return annotations


def _coco_annotation(entry: dict) -> Tuple[dict, List[Tuple[str, str]]]:
    """As COCO writes it, with kinds and details of what COCO cannot say."""
    problems = []
    # Neither is needed: COCO's evaluation gets them from Detectron2.
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
            detail = "its counts are a list; Detectron2 needs the compressed code, text or bytes"
            problems.append((BAD_CODE, detail))
            segmentation = None
    elif isinstance(segmentation, list):
        segmentation = [x if isinstance(x, list) else _plain(x) for x in segmentation]
    if segmentation is not None:
        annotation["segmentation"] = segmentation
    return annotation, problems


def _coco_box(box: Any, mode: int) -> Any:
    """x, y, width, height; what is no box is left as it is."""
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
    """As JSON has it; functions also return NumPy's values, tuples, bytes and paths."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _located(problem: Problem, records: Sequence[dict], owners: List[Tuple[int, int]]) -> Problem:
    """With the names that the records themselves have."""
    index, annotation_id = problem.position, None
    if problem.section == "annotations":
        index, annotation_id = owners[problem.position]
    record = records[index]
    image_id, file_name = _plain(record.get("image_id")), _plain(record.get("file_name"))
    named: Optional[str] = file_name if isinstance(file_name, str) and file_name else None
    if not (is_integer(image_id) or isinstance(image_id, str)):
        image_id = None
    return problem._replace(image_id=image_id, annotation_id=annotation_id, file_name=named)
