"""Reads annotation files and compares their classes with the config."""

import functools
import json
import os
from collections.abc import Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from .structure import class_names


def read_annotation_file(json_file: str) -> Any:
    """Reads a JSON file.

    Args:
        json_file: path of the annotation file.

    Returns:
        Its value, of any type.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not JSON; names it.
    """
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"there is no annotation file {json_file} (seen from {os.getcwd()}). Put the dataset "
            "there, or set the environment variable DETECTRON2_DATASETS to its parent folder."
        )
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    # RecursionError: deeply nested lists.
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{json_file} is not a COCO annotation file: {type(error).__name__}: {error}. Expected "
            "JSON with the lists 'images', 'annotations' and 'categories'."
        ) from error


def check_coco_categories(json_file: str) -> list[str]:
    """Checks the categories of an annotation file.

    Args:
        json_file: path of the annotation file.

    Returns:
        Category names in the order of their ids.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not in COCO format, or an id or a name of a category is not unique.
    """
    path = PathManager.get_local_path(json_file)
    modified = os.path.getmtime(path) if os.path.isfile(path) else 0.0
    return list(_categories(json_file, modified))


@functools.cache
def _categories(json_file: str, modified: float) -> tuple[str, ...]:
    """Cached, since a large file would be read again at each evaluation."""
    return tuple(class_names(read_annotation_file(json_file), json_file).values())


def check_num_classes(dataset_name: str, classes: Sequence[str], num_classes: int) -> None:
    """Raises if the config's number of classes is not the dataset's.

    Args:
        dataset_name: for the message.
        classes: names of the dataset's classes.
        num_classes: ``MODEL.CENTRIPETALNET.NUM_CLASSES``.

    Raises:
        ValueError: if they differ, or the dataset has no class names.
    """
    if not classes:
        raise ValueError(
            f"the dataset {dataset_name} has no class names. Set "
            f"MetadataCatalog.get({dataset_name!r}).thing_classes = [...]"
        )
    if len(classes) != num_classes:
        names = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
        raise ValueError(
            f"MODEL.CENTRIPETALNET.NUM_CLASSES is {num_classes}, but the dataset {dataset_name} "
            f"has {len(classes)} classes ({names}); set it to {len(classes)}"
        )
