"""Small annotation files for the tests of the dataset checks."""

import json
import tempfile
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools import mask as mask_util

PATH = "annotations.json"
HEIGHT, WIDTH = 8, 10


def rle(height: int = HEIGHT, width: int = WIDTH) -> dict:
    """The compressed run-length encoding of a small mask."""
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[1:4, 2:6] = 1
    code = mask_util.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def annotation(annotation_id: int, **changes) -> dict:
    """A valid annotation with the given changes; ... removes a field."""
    fields = {
        "id": annotation_id,
        "image_id": 1,
        "category_id": 3,
        "bbox": [2, 1, 4.0, 3.0],
        "area": 12.0,
        "iscrowd": 0,
        "segmentation": [[2, 1, 6, 1, 6, 4.0, 2, 4]],
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not ...}


def image(image_id: int, **changes) -> dict:
    fields = {"id": image_id, "file_name": f"{image_id}.png", "height": HEIGHT, "width": WIDTH}
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not ...}


def coco(annotations=(), images=None) -> dict:
    return {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "cow"}, {"id": 7, "name": "bear"}],
    }


def sound() -> dict:
    """A valid file with every form of annotation."""
    counts = {"size": [HEIGHT, WIDTH], "counts": [10, 20, 50]}
    return coco(
        [
            annotation(1),
            annotation(2, segmentation=...),
            annotation(3, segmentation=counts, iscrowd=1, image_id=2, category_id=7),
            annotation(4, segmentation=rle(), ignore=0),
            annotation(5, segmentation=[], keypoints=[1, 2, 2, 0, 0, 0]),
        ]
    )


def load(content: dict) -> list:
    """Detectron2's records of the content."""
    name = "dataset_check_test"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_text(json.dumps(content))
        try:
            return load_coco_json(str(path), folder, name)
        finally:
            MetadataCatalog.remove(name)
