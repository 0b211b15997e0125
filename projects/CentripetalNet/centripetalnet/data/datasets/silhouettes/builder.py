"""Builds and registers the dataset."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import tempfile
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .painting import compose_image
from .sources import CLASSES, SEED, SPLITS, load_outlines, load_regions

logger = logging.getLogger(__name__)

# Incremented when the same spec gives other files, so that older datasets are not reused.
_BUILDER_VERSION = 1
_SPEC_FILE = "spec.json"
# RGB, easy to tell apart.
_CLASS_COLORS = [(255, 127, 14), (44, 160, 44), (214, 39, 40), (31, 119, 180), (148, 103, 189)]


@dataclasses.dataclass(frozen=True)
class SilhouettesSpec:
    """The number of images of the two splits. Fewer are the first ones of the default dataset."""

    num_train: int = 4000
    num_val: int = 300


def build_silhouettes(root: str, spec: SilhouettesSpec = SilhouettesSpec()) -> None:
    """Writes the dataset unless it exists.

    The result has `{train,val}/*.png`, `annotations/{train,val}.json` in COCO format (boxes tight
    around the visible mask, masks as RLE, each with the `outline` it was painted from), and
    `spec.json`. It is written atomically, to a folder next to `root` that is then renamed. Of
    processes that build at the same time, all use the dataset that was ready first.

    Args:
        root: the folder to create, with its parents.
        spec: the same spec gives the same bytes with the same library versions.

    Raises:
        FileExistsError: `root` holds something else, or a dataset of another spec.
        ModuleNotFoundError: a package with the outlines or photographs is missing.
    """
    root = os.path.realpath(os.path.expanduser(root))
    record = {"builder_version": _BUILDER_VERSION, **dataclasses.asdict(spec)}
    if _is_built(root, record):
        return
    logger.info("Building the silhouettes dataset in %s", root)
    parent, name = os.path.split(root)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
        # A subfolder, since the temporary folder itself is only readable for this user.
        staged = os.path.join(scratch, name)
        os.mkdir(staged)
        _write_images(staged, spec)
        with open(os.path.join(staged, _SPEC_FILE), "w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)
        try:
            os.replace(staged, root)
        except OSError:
            if not _is_built(root, record):
                raise
            logger.info("Another process has already built %s", root)


def register_silhouettes(
    root: str | None = None, spec: SilhouettesSpec = SilhouettesSpec()
) -> None:
    """Registers `silhouettes_train` and `silhouettes_val`, replacing earlier registrations.

    The first `DatasetCatalog.get` builds the dataset if it is missing. An evaluator reads the
    annotation file, so it has to be created after that, as Detectron2's trainers do.

    Args:
        root: the dataset's folder; by default `silhouettes` in `$DETECTRON2_DATASETS`, or in
            `datasets` if that is not set. The first use decides for a relative one.
        spec: the dataset to build.
    """
    for split in SPLITS:
        name = f"silhouettes_{split}"
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(_load_split, root, spec, split))
        MetadataCatalog.get(name).set(
            thing_classes=list(CLASSES),
            thing_colors=_CLASS_COLORS,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASSES))},
            evaluator_type="coco",
            # For code that reads the annotation file before the dataset is loaded.
            prepare=functools.partial(_prepare, root, spec),
        )


def _prepare(root: str | None, spec: SilhouettesSpec) -> str:
    """Builds the dataset if it is missing; returns its folder, that of the first use."""
    if MetadataCatalog.get("silhouettes_train").get("image_root") is None:
        root = root or os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "silhouettes")
        root = os.path.abspath(os.path.expanduser(root))
        for split in SPLITS:
            metadata = MetadataCatalog.get(f"silhouettes_{split}")
            metadata.image_root = os.path.join(root, split)
            # An evaluator created before the first use has set a file of its own.
            if metadata.get("json_file") is None:
                metadata.json_file = os.path.join(root, "annotations", f"{split}.json")
    root = os.path.dirname(MetadataCatalog.get("silhouettes_train").image_root)
    build_silhouettes(root, spec)
    return root


def _load_split(root: str | None, spec: SilhouettesSpec, split: str) -> list[dict[str, Any]]:
    root = _prepare(root, spec)
    file = os.path.join(root, "annotations", f"{split}.json")
    return load_coco_json(file, os.path.join(root, split), f"silhouettes_{split}")


def _is_built(root: str, record: dict[str, int]) -> bool:
    """Whether `root` holds the dataset; raises FileExistsError if it holds something else."""
    if not os.path.lexists(root) or (os.path.isdir(root) and not os.listdir(root)):
        return False
    try:
        with open(os.path.join(root, _SPEC_FILE), encoding="utf-8") as file:
            found = dict(json.load(file))
    except (OSError, TypeError, ValueError):
        raise FileExistsError(
            f"{root} exists but is no silhouettes dataset ({_SPEC_FILE} is missing or unreadable). "
            "Remove it or choose another root."
        ) from None
    differences = ", ".join(
        f"{key} is {found.get(key)!r}, expected {value!r}"
        for key, value in record.items()
        if found.get(key) != value
    )
    if differences:
        raise FileExistsError(
            f"{root} holds a silhouettes dataset of another spec ({differences}). "
            "Remove it or choose another root."
        )
    return True


def _write_images(root: str, spec: SilhouettesSpec) -> None:
    """Writes the images and the annotations of both splits."""
    regions, outlines = load_regions(), load_outlines()
    os.mkdir(os.path.join(root, "annotations"))
    for split_index, (split, num_images) in enumerate(zip(SPLITS, (spec.num_train, spec.num_val))):
        os.mkdir(os.path.join(root, split))
        images, annotations = [], []
        for image_id in range(1, num_images + 1):
            # A generator per image, so that images do not depend on the number of images.
            rng = np.random.default_rng([SEED, split_index, image_id])
            image, objects = compose_image(regions[split], outlines[split], rng)
            height, width = image.shape[:2]
            name = f"{image_id:06d}.png"
            if not cv2.imwrite(os.path.join(root, split, name), image):
                raise OSError(f"could not write {os.path.join(root, split, name)}")
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for painted in objects:
                number = len(annotations) + 1
                annotations.append({"id": number, "image_id": image_id, "iscrowd": 0, **painted})
        coco = {
            "info": {"description": f"silhouettes {split}"},
            "licenses": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
            "images": images,
            "annotations": annotations,
        }
        file_name = os.path.join(root, "annotations", f"{split}.json")
        with open(file_name, "w", encoding="utf-8") as file:
            json.dump(coco, file)
