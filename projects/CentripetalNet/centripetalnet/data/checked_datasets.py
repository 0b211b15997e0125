"""The datasets of a config, looked at before anything is trained or evaluated on them."""

import json
import logging
import os
from typing import Dict, List, Optional, Sequence

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
    missing_images,
    read_annotation_file,
    without_errors,
)

logger = logging.getLogger(__name__)

# Results of usable_datasets, by all that they depend on.
_usable_names: Dict[tuple, str] = {}


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
    """Looks at datasets in COCO format: all annotations, and whether the images are there.

    Each machine looks at its own files, once as long as they do not change. What Detectron2 would
    change or pass over is logged, on a page for each dataset.

    Args:
        names: of datasets that passed :func:`check_datasets`.
        output_dir: folder for copies of annotation files.
        skip_unusable: whether what cannot be used is left out.

    Returns:
        The names; of a dataset with something left out that of a copy without it, which is
        registered here and has its annotation file in ``output_dir/usable_annotations``.

    Raises:
        ValueError: if there is something that cannot be used, and it is not to be left out; gives
            a page of what it is.
    """
    return [_usable_dataset(name, output_dir, skip_unusable) for name in names]


def _is_coco(metadata: Metadata) -> bool:
    # Others, such as LVIS, are in a format of their own.
    return metadata.get("evaluator_type") == "coco" and metadata.get("json_file") is not None


def _usable_dataset(name: str, output_dir: str, skip_unusable: bool) -> str:
    metadata = MetadataCatalog.get(name)
    if not _is_coco(metadata):
        return name
    json_file = PathManager.get_local_path(metadata.json_file)
    looked_at = (name, json_file, os.path.getmtime(json_file), output_dir, skip_unusable)
    if looked_at not in _usable_names:
        _usable_names[looked_at] = _look_at(name, metadata, output_dir, skip_unusable)
    return _usable_names[looked_at]


def _look_at(name: str, metadata: Metadata, output_dir: str, skip_unusable: bool) -> str:
    copy = os.path.join(output_dir, "usable_annotations", f"{name}.json")
    error: Optional[str] = None
    has_copy = False
    if comm.get_local_rank() == 0:
        try:
            has_copy = _check(name, metadata, copy, skip_unusable)
        except ValueError as problem:
            error = str(problem)
    # If one process stops, so do the others.
    found = comm.all_gather((error, has_copy))
    for problem, _ in found:
        if problem is not None:
            raise ValueError(problem)
    if not any(x for _, x in found):
        return name
    usable = f"{name}_usable"
    if usable in DatasetCatalog.list():
        DatasetCatalog.remove(usable)
        MetadataCatalog.remove(usable)
    register_coco_instances(usable, {}, copy, metadata.image_root)
    return usable


def _check(name: str, metadata: Metadata, copy: str, skip_unusable: bool) -> bool:
    """Looks at a dataset and says what there is; returns whether ``copy`` was written."""
    content = read_annotation_file(metadata.json_file)
    report = check_annotations(content, metadata.json_file)
    report += missing_images(content, metadata.image_root, metadata.json_file)
    if report.problems:
        logger.warning("What was found in the dataset %s:\n%s", name, report.format())
    if not report.errors:
        return False
    if not skip_unusable:
        raise ValueError(_refusal(name, report))
    usable = without_errors(content, report)
    PathManager.mkdirs(os.path.dirname(copy))
    with complete_file(copy) as file:
        json.dump(usable, file)
    for section in ("images", "annotations"):
        before, after = len(content.get(section, [])), len(usable.get(section, []))
        logger.warning("Left out %d of %d %s of %s", before - after, before, section, name)
    return True


def _refusal(name: str, report: Report) -> str:
    return (
        f"the dataset {name} has what cannot be used:\n\n{report.format()}\n\n"
        "Mend the annotation file (centripetalnet-check lists every problem, and can write a "
        "file without them), or have it left out with DATALOADER.SKIP_UNUSABLE True"
    )
