"""Checks the datasets of a config before a training or evaluation."""

import json
import logging
import os
from collections.abc import Sequence, Sized
from functools import partial
from typing import Callable, Optional

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import Dataset

from ...io.errors import raise_in_all_processes
from ...io.files import atomic_file
from . import (
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

# Results of usable_datasets by its arguments, with the file or function that was checked.
_usable_names: dict[tuple, tuple[tuple, str]] = {}


def ready_metadata(name: str) -> Metadata:
    """Returns the metadata of a dataset and builds it if it is built on first use.

    Args:
        name: a registered dataset.

    Raises:
        LookupError: if no dataset of that name is registered.
    """
    if name not in DatasetCatalog.list():
        raise LookupError(
            f"no dataset {name!r} is registered. Registered: {', '.join(DatasetCatalog.list())}"
        )
    metadata = MetadataCatalog.get(name)
    prepare = metadata.get("prepare")
    if prepare is not None:
        prepare()
    return metadata


def check_datasets(names: Sequence[str], num_classes: int) -> None:
    """Builds datasets that are built on first use, and compares their classes with the config.

    Args:
        names: registered datasets.
        num_classes: ``MODEL.CENTRIPETALNET.NUM_CLASSES``.

    Raises:
        LookupError: if no dataset of that name is registered.
        FileNotFoundError: if its annotation file is missing.
        ValueError: if the file is not in COCO format, or has another number of classes.
    """
    for name in names:
        metadata = ready_metadata(name)
        json_file = metadata.get("json_file")
        if json_file is not None:
            classes = check_coco_categories(json_file)
        else:
            classes = metadata.get("thing_classes", [])
        check_num_classes(name, classes, num_classes)


def usable_datasets(
    names: Sequence[str], output_dir: str, skip_unusable: bool, evaluated: bool = True
) -> list[str]:
    """Checks all annotations of datasets, and that the image files exist.

    Each machine checks its own files, again only after they change. The result of a function is
    checked once. For each dataset a report of its problems is logged. A torch dataset or another
    sequence that is not a list is not checked; a warning says so.

    Args:
        names: datasets that passed :func:`check_datasets`.
        output_dir: folder for copies of annotation files.
        skip_unusable: whether invalid entries are left out.
        evaluated: whether a function's records need ``image_id``, ``height`` and ``width``, as for
            COCO's evaluation. Training needs none of them.

    Returns:
        The names. A dataset with invalid entries is replaced by a copy without them, which is
        registered here; one in COCO format has its annotation file in
        ``output_dir/usable_annotations``.

    Raises:
        ValueError: if there are invalid entries and ``skip_unusable`` is False; has the report. If
            a function returns an iterator.
    """
    return [_usable_dataset(name, output_dir, skip_unusable, evaluated) for name in names]


def _is_coco(metadata: Metadata) -> bool:
    # Of other formats, such as LVIS, the records are checked. An evaluator sets the json_file of a
    # function's dataset, but not the image_root.
    keys = (metadata.get("json_file"), metadata.get("image_root"))
    return metadata.get("evaluator_type") == "coco" and None not in keys


def _usable_dataset(name: str, output_dir: str, skip_unusable: bool, evaluated: bool) -> str:
    metadata = MetadataCatalog.get(name)
    if _is_coco(metadata):
        json_file = PathManager.get_local_path(metadata.json_file)
        source: tuple = (json_file, os.path.getmtime(json_file))
        # A COCO file has one check for both uses.
        evaluated = True
    else:
        source = (DatasetCatalog[name],)
    arguments = (name, output_dir, skip_unusable, evaluated)
    checked, usable = _usable_names.get(arguments, (None, name))
    if checked != source:
        usable = _check(name, metadata, *arguments[1:])
        _usable_names[arguments] = (source, usable)
    return usable


def _check(
    name: str, metadata: Metadata, output_dir: str, skip_unusable: bool, evaluated: bool
) -> str:
    copy = os.path.join(output_dir, "usable_annotations", f"{name}.json")
    is_coco = _is_coco(metadata)
    error: Optional[Exception] = None
    left_out: set[tuple[str, int]] = set()
    if comm.get_local_rank() == 0:
        try:
            if is_coco:
                left_out = _check_file(name, metadata, copy, skip_unusable)
            else:
                left_out = _check_function(name, metadata, skip_unusable, evaluated)
        # After any error of the function the other processes would wait for this one.
        except Exception as problem:
            error = problem
    raise_in_all_processes(error)
    left_out = set().union(*comm.all_gather(left_out))
    if not left_out:
        return name
    usable = f"{name}_usable" if evaluated else f"{name}_usable_train"
    if usable in DatasetCatalog.list():
        DatasetCatalog.remove(usable)
        MetadataCatalog.remove(usable)
    if is_coco:
        register_coco_instances(usable, {}, copy, metadata.image_root)
    else:
        DatasetCatalog.register(usable, partial(_usable_records, DatasetCatalog[name], left_out))
        # The annotation file, if any, still has the invalid entries.
        dropped = ("name", "json_file", "image_root")
        kept = {key: value for key, value in metadata.as_dict().items() if key not in dropped}
        MetadataCatalog.get(usable).set(**kept)
    return usable


def _usable_records(
    function: Callable[[], list[dict]], left_out: set[tuple[str, int]]
) -> list[dict]:
    # Detectron2 requires the same records in the same order at each call.
    return records_without(function(), left_out)


def _check_file(
    name: str, metadata: Metadata, copy: str, skip_unusable: bool
) -> set[tuple[str, int]]:
    """Section and position of each invalid entry; writes ``copy`` if there are any."""
    content = read_annotation_file(metadata.json_file)
    report = check_annotations(content, metadata.json_file)
    report += missing_images(content, metadata.image_root, metadata.json_file)
    advice = (
        "Fix the annotation file (centripetalnet-check lists all problems and can write a file "
        "without the invalid entries)"
    )
    left_out = _unusable(name, report, skip_unusable, advice)
    if left_out:
        usable = without_errors(content, report)
        PathManager.mkdirs(os.path.dirname(copy))
        with atomic_file(copy) as file:
            json.dump(usable, file)
        _log_left_out(name, report, len(usable["images"]), len(usable.get("annotations", [])))
    return left_out


def _check_function(
    name: str, metadata: Metadata, skip_unusable: bool, evaluated: bool
) -> set[tuple[str, int]]:
    """Section and position of each invalid entry in the function's result."""
    records = DatasetCatalog.get(name)
    if not isinstance(records, (list, tuple)):
        kind = type(records).__name__
        if not isinstance(records, (Sized, Dataset)):
            raise ValueError(
                f"the function of the dataset {name} returns a {kind}, which has no length. Return "
                "a list of records."
            )
        logger.warning("The dataset %s is a %s, not a list of records: not checked", name, kind)
        return set()
    path = f"records of {name} (annotations of each counted from 0, boxes as x, y, width, height)"
    report = check_records(records, metadata.get("thing_classes", []), path, evaluated)
    advice = "Fix the function that returns the dataset"
    left_out = _unusable(name, report, skip_unusable, advice)
    if left_out:
        usable = records_without(records, left_out)
        num_annotations = sum(len(x.get("annotations", [])) for x in usable)
        _log_left_out(name, report, len(usable), num_annotations)
    return left_out


def _unusable(name: str, report: Report, skip_unusable: bool, advice: str) -> set[tuple[str, int]]:
    """Logs the report; returns section and position of the errors."""
    if report.problems:
        logger.warning("Problems of the dataset %s:\n%s", name, report.format())
    if report.errors and not skip_unusable:
        raise ValueError(
            f"the dataset {name} has invalid entries:\n\n{report.format()}\n\n{advice}, or set "
            "DATALOADER.SKIP_UNUSABLE True to train and evaluate without them."
        )
    return {(x.section, x.position) for x in report.errors}


def _log_left_out(name: str, report: Report, num_images: int, num_annotations: int) -> None:
    for section, before, after in (
        ("images", report.num_images, num_images),
        ("annotations", report.num_annotations, num_annotations),
    ):
        logger.warning("Left out %d of %d %s of %s", before - after, before, section, name)
