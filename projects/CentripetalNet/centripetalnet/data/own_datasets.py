"""Configs, and the datasets that they register."""

import os
from collections.abc import Sequence
from contextlib import suppress

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..config import read_config
from .check.reading import check_coco_categories


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """As ``config.read_config``; also registers the datasets of ``DATASETS.COCO_FORMAT``.

    Args: see there.

    Raises:
        ValueError: also if an entry of ``DATASETS.COCO_FORMAT`` is invalid.
    """
    cfg = read_config(config_file, opts)
    register_own_datasets(cfg.DATASETS.COCO_FORMAT)
    return cfg


def register_own_datasets(datasets: Sequence[Sequence[str]]) -> None:
    """Registers the datasets of ``DATASETS.COCO_FORMAT`` that are not registered yet.

    Args:
        datasets: name, annotation file and image folder of each. Paths may be remote ones that
            Detectron2's PathManager handles.

    Raises:
        ValueError: if an entry has another form, or its name belongs to another dataset.
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
                    f"{registered[0]}. Choose another name."
                )
            continue
        register_coco_instances(name, {}, json_file, image_root)
        # Class names for drawings, before the dataset is loaded. A file that cannot be read is an
        # error when the dataset is used.
        with suppress(OSError):
            MetadataCatalog.get(name).thing_classes = check_coco_categories(json_file)


def metadata_of_tests(cfg: CfgNode) -> Metadata:
    """That of the first of ``DATASETS.TEST``, with the names of the classes; empty without one."""
    return MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__unused")
