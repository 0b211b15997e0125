"""Checks of a COCO annotation file that Detectron2's loader passes over."""

import functools
import json
import os
from collections import Counter
from typing import List, Sequence, Tuple

from detectron2.utils.file_io import PathManager


def check_coco_categories(json_file: str) -> List[str]:
    """Raises if an annotation file is missing, is no COCO file, or names a category twice.

    Args:
        json_file: path of the annotation file.

    Returns:
        Names of the categories in the order of their ids.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not in COCO format or a category's id or name stands in it twice.
    """
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"there is no annotation file {json_file} (seen from {os.getcwd()}). Put the dataset "
            "there, or set the environment variable DETECTRON2_DATASETS to the folder it lies in."
        )
    return list(_categories(path, os.path.getmtime(path)))


@functools.lru_cache(maxsize=None)
def _categories(path: str, modified: float) -> Tuple[str, ...]:
    """Names in the order of their ids; a large file is not read again at each evaluation."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        categories = [(x["id"], x["name"]) for x in content["categories"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a COCO annotation file: {type(error).__name__}: {error}. Expected "
            "JSON with the lists 'images', 'annotations' and 'categories', each category with 'id' "
            "and 'name'."
        ) from error
    for what, values in zip(("id", "name"), zip(*categories)):
        twice = sorted((x for x, count in Counter(values).items() if count > 1), key=str)
        if twice:
            raise ValueError(
                f"{path} has more than one category with the {what} {twice[0]!r}; give each "
                f"category a {what} of its own"
            )
    return tuple(name for _, name in sorted(categories))


def check_num_classes(dataset_name: str, classes: Sequence[str], num_classes: int) -> None:
    """Raises if the config's number of classes is not the dataset's.

    Args:
        dataset_name: for the message.
        classes: names of the dataset's classes.
        num_classes: ``MODEL.CENTRIPETALNET.NUM_CLASSES``.

    Raises:
        ValueError: if they differ.
    """
    if len(classes) != num_classes:
        names = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
        raise ValueError(
            f"MODEL.CENTRIPETALNET.NUM_CLASSES is {num_classes}, but the dataset {dataset_name} "
            f"has {len(classes)} classes ({names}); set it to {len(classes)}"
        )
