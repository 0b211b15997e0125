"""The datasets of a config, looked at before anything is trained or evaluated on them."""

import json
import logging
import os
from functools import partial
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..files import complete_file
from .dataset_check import (
    Report,
    check_annotations,
    check_coco_categories,
    check_num_classes,
    check_records,
    missing_images,
    read_annotation_file,
    records_without,
    without_errors,
)

logger = logging.getLogger(__name__)

# Results of usable_datasets by its arguments, with the file or function that was looked at.
_usable_names: Dict[tuple, Tuple[tuple, str]] = {}


def ready_metadata(name: str) -> Metadata:
    """What is known of a dataset, which is built if that is done on first use.

    Args:
        name: of a registered dataset.

    Raises:
        LookupError: if no dataset of that name is registered.
    """
    if name not in DatasetCatalog.list():
        raise LookupError(
            f"no dataset {name!r} is registered; known are {', '.join(DatasetCatalog.list())}"
        )
    metadata = MetadataCatalog.get(name)
    prepare = metadata.get("prepare")
    if prepare is not None:
        prepare()
    return metadata


def check_datasets(names: Sequence[str], num_classes: int) -> None:
    """Builds datasets that are built on first use, and raises if one does not fit the config.

    Args:
        names: of registered datasets.
        num_classes: ``MODEL.CENTRIPETALNET.NUM_CLASSES``.

    Raises:
        LookupError: if no dataset of that name is registered.
        FileNotFoundError: if its annotation file is missing.
        ValueError: if that is not in COCO format, or has another number of classes.
    """
    for name in names:
        metadata = ready_metadata(name)
        json_file = metadata.get("json_file")
        if json_file is not None:
            classes = check_coco_categories(json_file)
        else:
            classes = metadata.get("thing_classes", [])
        check_num_classes(name, classes, num_classes)


def usable_datasets(names: Sequence[str], output_dir: str, skip_unusable: bool) -> List[str]:
    """Looks at datasets: all annotations, and whether the images are there.

    Each machine looks at its own files, once as long as they do not change; what a function returns
    is looked at once. What Detectron2 would change or pass over is logged, on a page for each
    dataset. A dataset that is neither in COCO format nor a list of records is not looked at, which
    is logged.

    Args:
        names: of datasets that passed :func:`check_datasets`.
        output_dir: folder for copies of annotation files.
        skip_unusable: whether what cannot be used is left out.

    Returns:
        The names; of a dataset with something left out that of a copy without it, which is
        registered here. One in COCO format has its annotation file in
        ``output_dir/usable_annotations``.

    Raises:
        ValueError: if there is something that cannot be used, and it is not to be left out; gives
            a page of what it is.
    """
    return [_usable_dataset(name, output_dir, skip_unusable) for name in names]


def _is_coco(metadata: Metadata) -> bool:
    # Others, such as LVIS, are in a format of their own; of those the records are checked. An
    # evaluator gives the dataset of a function a json_file, but no image_root.
    keys = (metadata.get("json_file"), metadata.get("image_root"))
    return metadata.get("evaluator_type") == "coco" and None not in keys


def _usable_dataset(name: str, output_dir: str, skip_unusable: bool) -> str:
    metadata = MetadataCatalog.get(name)
    if _is_coco(metadata):
        json_file = PathManager.get_local_path(metadata.json_file)
        source: tuple = (json_file, os.path.getmtime(json_file))
    else:
        source = (DatasetCatalog[name],)
    asked = (name, output_dir, skip_unusable)
    looked_at, usable = _usable_names.get(asked, (None, name))
    if looked_at != source:
        usable = _look_at(name, metadata, output_dir, skip_unusable)
        _usable_names[asked] = (source, usable)
    return usable


def _look_at(name: str, metadata: Metadata, output_dir: str, skip_unusable: bool) -> str:
    copy = os.path.join(output_dir, "usable_annotations", f"{name}.json")
    is_coco = _is_coco(metadata)
    error: Optional[Exception] = None
    left_out: Set[Tuple[str, int]] = set()
    if comm.get_local_rank() == 0:
        try:
            if is_coco:
                left_out = _check_file(name, metadata, copy, skip_unusable)
            else:
                left_out = _check_function(name, metadata, skip_unusable)
        # Whatever the function raises, the other processes wait for this one.
        except Exception as problem:
            error = problem
    # If one process stops, so do the others.
    found = comm.all_gather((None if error is None else str(error), left_out))
    if error is not None:
        raise error
    for problem, _ in found:
        if problem is not None:
            raise ValueError(problem)
    left_out = set().union(*(x for _, x in found))
    if not left_out:
        return name
    usable = f"{name}_usable"
    if usable in DatasetCatalog.list():
        DatasetCatalog.remove(usable)
        MetadataCatalog.remove(usable)
    if is_coco:
        register_coco_instances(usable, {}, copy, metadata.image_root)
    else:
        DatasetCatalog.register(usable, partial(_usable_records, DatasetCatalog[name], left_out))
        # Its annotation file, if it has one, still has what is left out.
        dropped = ("name", "json_file", "image_root")
        kept = {key: value for key, value in metadata.as_dict().items() if key not in dropped}
        MetadataCatalog.get(usable).set(**kept)
    return usable


def _usable_records(
    function: Callable[[], List[dict]], left_out: Set[Tuple[str, int]]
) -> List[dict]:
    # Detectron2 asks that a function return the same in the same order each time.
    return records_without(function(), left_out)


def _check_file(
    name: str, metadata: Metadata, copy: str, skip_unusable: bool
) -> Set[Tuple[str, int]]:
    """Section and position of what is left out; if that is anything, ``copy`` was written."""
    content = read_annotation_file(metadata.json_file)
    report = check_annotations(content, metadata.json_file)
    report += missing_images(content, metadata.image_root, metadata.json_file)
    advice = (
        "Mend the annotation file (centripetalnet-check lists every problem, and can write a "
        "file without them)"
    )
    left_out = _unusable(name, report, skip_unusable, advice)
    if left_out:
        usable = without_errors(content, report)
        PathManager.mkdirs(os.path.dirname(copy))
        with complete_file(copy) as file:
            json.dump(usable, file)
        _log_left_out(name, report, len(usable["images"]), len(usable.get("annotations", [])))
    return left_out


def _check_function(name: str, metadata: Metadata, skip_unusable: bool) -> Set[Tuple[str, int]]:
    """Section and position of what is left out of what the function returns."""
    records = DatasetCatalog.get(name)
    if not isinstance(records, (list, tuple)):
        kind = type(records).__name__
        logger.warning("The dataset %s is a %s, not a list of records: not checked", name, kind)
        return set()
    path = f"records of {name} (annotations of each counted from 0, boxes as x, y, width, height)"
    report = check_records(records, metadata.get("thing_classes", []), path)
    advice = "Mend the function that returns the dataset"
    left_out = _unusable(name, report, skip_unusable, advice)
    if left_out:
        usable = records_without(records, left_out)
        num_annotations = sum(len(x.get("annotations", [])) for x in usable)
        _log_left_out(name, report, len(usable), num_annotations)
    return left_out


def _unusable(name: str, report: Report, skip_unusable: bool, advice: str) -> Set[Tuple[str, int]]:
    """Says what was found; returns the errors."""
    if report.problems:
        logger.warning("What was found in the dataset %s:\n%s", name, report.format())
    if report.errors and not skip_unusable:
        raise ValueError(
            f"the dataset {name} has what cannot be used:\n\n{report.format()}\n\n{advice}, or "
            "have it left out with DATALOADER.SKIP_UNUSABLE True"
        )
    return {(x.section, x.position) for x in report.errors}


def _log_left_out(name: str, report: Report, num_images: int, num_annotations: int) -> None:
    for section, before, after in (
        ("images", report.num_images, num_images),
        ("annotations", report.num_annotations, num_annotations),
    ):
        logger.warning("Left out %d of %d %s of %s", before - after, before, section, name)
