"""Checks the datasets of a config before a training or evaluation."""

import json
import logging
import os
from collections.abc import Sequence, Sized
from typing import Any, Optional

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import Dataset

from ...io.errors import raise_in_all_processes
from ...io.files import atomic_file
from .annotations import check_annotations
from .images import missing_images
from .reading import check_coco_categories, read_annotation_file
from .records import check_records, records_without

logger = logging.getLogger(__name__)

# Section and position of each.
Entries = set[tuple[str, int]]

# The file or function that was checked last, and its usable dataset, by arguments.
_last_checked: dict[tuple, tuple[Any, str]] = {}


def ready_metadata(name: str) -> Metadata:
    """The metadata of a dataset, which is built if it is built on first use.

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

    Raises:
        LookupError: if no dataset of that name is registered.
        FileNotFoundError: if its annotation file is missing.
        ValueError: if the file is not in COCO format, or the dataset has no class names or another
            number of classes.
    """
    for name in names:
        metadata = ready_metadata(name)
        json_file = metadata.get("json_file")
        classes = metadata.get("thing_classes", [])
        if json_file is not None:
            classes = check_coco_categories(json_file)
        if not classes:
            raise ValueError(
                f"the dataset {name} has no class names. Set "
                f"MetadataCatalog.get({name!r}).thing_classes = [...]"
            )
        if len(classes) != num_classes:
            first = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
            raise ValueError(
                f"MODEL.CENTRIPETALNET.NUM_CLASSES is {num_classes}, but the dataset {name} has "
                f"{len(classes)} classes ({first}); set it to {len(classes)}"
            )


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
    usable_names = []
    for name in names:
        source, arguments = DatasetCatalog[name], (name, output_dir, skip_unusable, evaluated)
        if _is_coco(MetadataCatalog.get(name)):
            json_file = PathManager.get_local_path(MetadataCatalog.get(name).json_file)
            source = (json_file, os.path.getmtime(json_file))
            # One check for both uses.
            arguments = (name, output_dir, skip_unusable, True)
        if arguments not in _last_checked or _last_checked[arguments][0] != source:
            _last_checked[arguments] = (source, _usable_dataset(*arguments))
        usable_names.append(_last_checked[arguments][1])
    return usable_names


def _is_coco(metadata: Metadata) -> bool:
    # Of other formats, such as LVIS, the records are checked. An evaluator sets the json_file of a
    # function's dataset, but not the image_root.
    keys = (metadata.get("json_file"), metadata.get("image_root"))
    return metadata.get("evaluator_type") == "coco" and None not in keys


def _usable_dataset(name: str, output_dir: str, skip_unusable: bool, evaluated: bool) -> str:
    metadata = MetadataCatalog.get(name)
    copy = os.path.join(output_dir, "usable_annotations", f"{name}.json")
    error: Optional[Exception] = None
    left_out: Entries = set()
    if comm.get_local_rank() == 0:
        try:
            left_out = _invalid_entries(name, copy, skip_unusable, evaluated)
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
    if _is_coco(metadata):
        register_coco_instances(usable, {}, copy, metadata.image_root)
    else:
        function = DatasetCatalog[name]
        # Detectron2 requires the same records in the same order at each call.
        DatasetCatalog.register(usable, lambda: records_without(function(), left_out))
        # The annotation file, if any, still has the invalid entries.
        dropped = ("name", "json_file", "image_root")
        kept = {key: value for key, value in metadata.as_dict().items() if key not in dropped}
        MetadataCatalog.get(usable).set(**kept)
    return usable


def _invalid_entries(name: str, copy: str, skip_unusable: bool, evaluated: bool) -> Entries:
    """Logs invalid entries, and leaves those of a file out of the file ``copy``."""
    metadata = MetadataCatalog.get(name)
    if _is_coco(metadata):
        content = read_annotation_file(metadata.json_file)
        report = check_annotations(content, metadata.json_file)
        report.problems += missing_images(content["images"], metadata.image_root)
        advice = (
            "Fix the annotation file (centripetalnet-check lists all problems and can write a file "
            "without the invalid entries)"
        )
    else:
        records = DatasetCatalog.get(name)
        kind = type(records).__name__
        if not isinstance(records, (Sized, Dataset)):
            raise ValueError(
                f"the function of the dataset {name} returns a {kind}, which has no length. Return "
                "a list of records."
            )
        if not isinstance(records, (list, tuple)):
            logger.warning("The dataset %s is a %s, not a list of records: not checked", name, kind)
            return set()
        path = f"records of {name} (annotations counted from 0, boxes as x, y, width, height)"
        report = check_records(records, metadata.get("thing_classes", []), path, evaluated)
        advice = "Fix the function that returns the dataset"
    if report.problems:
        logger.warning("Problems of the dataset %s:\n%s", name, report.format())
    invalid = report.invalid
    if not invalid:
        return invalid
    if not skip_unusable:
        raise ValueError(
            f"the dataset {name} has invalid entries:\n\n{report.format()}\n\n{advice}, or set "
            "DATALOADER.SKIP_UNUSABLE True to train and evaluate without them."
        )
    if _is_coco(metadata):
        usable = report.without_errors()
        PathManager.mkdirs(os.path.dirname(copy))
        with atomic_file(copy) as file:
            json.dump(usable, file)
        images, num_annotations = usable["images"], len(usable.get("annotations", []))
    else:
        images = records_without(records, invalid)
        num_annotations = sum(len(x.get("annotations", [])) for x in images)
    for section, after in (("images", len(images)), ("annotations", num_annotations)):
        before = len(report.content.get(section, []))
        logger.warning("Left out %d of %d %s of %s", before - after, before, section, name)
    return invalid
