"""Small annotation files for the tests of the dataset checks."""

import numpy as np
from pycocotools import mask as mask_util

PATH = "annotations.json"
HEIGHT, WIDTH = 8, 10


def rle() -> dict:
    """The compressed run-length encoding of a small mask."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[1:4, 2:6] = 1
    code = mask_util.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def changed(fields: dict, changes: dict) -> dict:
    """The fields with changes; ... removes one."""
    return {key: value for key, value in {**fields, **changes}.items() if value is not ...}


def annotation(annotation_id: int, **changes) -> dict:
    """A valid annotation with the given changes."""
    fields = {"id": annotation_id, "image_id": 1, "category_id": 3, "area": 12.0, "iscrowd": 0}
    shape = {"bbox": [2, 1, 4.0, 3.0], "segmentation": [[2, 1, 6, 1, 6, 4.0, 2, 4]]}
    return changed({**fields, **shape}, changes)


def image(image_id: int, **changes) -> dict:
    fields = {"id": image_id, "file_name": f"{image_id}.png", "height": HEIGHT, "width": WIDTH}
    return changed(fields, changes)


def coco(annotations=(), images=None) -> dict:
    return {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "cow"}, {"id": 7, "name": "bear"}],
    }
