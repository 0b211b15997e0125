"""Datasets that a config brings along."""

import os
from contextlib import suppress
from typing import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .dataset_check import check_coco_categories


def register_own_datasets(datasets: Sequence[Sequence[str]]) -> None:
    """Registers datasets in COCO format; those that are registered so already are left alone.

    Args:
        datasets: of each its name, annotation file and image folder, ``DATASETS.COCO_FORMAT``;
            remote ones that Detectron2's PathManager knows, too.

    Raises:
        ValueError: if an entry has another form, or its name is that of another dataset.
    """
    for entry in datasets:
        if len(entry) != 3 or not all(isinstance(x, str) for x in entry):
            raise ValueError(
                "DATASETS.COCO_FORMAT has the entry "
                f"{list(entry)}; expected [name, annotation file, image folder]"
            )
        name, *paths = entry
        json_file, image_root = (x if "://" in x else os.path.abspath(x) for x in paths)
        if name in DatasetCatalog.list():
            metadata = MetadataCatalog.get(name)
            registered = metadata.get("json_file"), metadata.get("image_root")
            if registered != (json_file, image_root):
                raise ValueError(
                    f"DATASETS.COCO_FORMAT: there is another dataset of the name {name!r}, from "
                    f"{registered[0]}; take another name"
                )
            continue
        register_coco_instances(name, {}, json_file, image_root)
        # Names of the classes, for pictures, without all annotations being read; a file that cannot
        # be read is told by what needs it.
        with suppress(OSError):
            MetadataCatalog.get(name).thing_classes = check_coco_categories(json_file)
