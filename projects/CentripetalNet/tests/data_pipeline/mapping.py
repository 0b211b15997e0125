"""What the tests of the dataset mapper share."""

import numpy as np
from pycocotools import mask as mask_util

from centripetalnet.data import CentripetalNetDatasetMapper


def mapper(*augmentations, is_train=True, masks=None):
    return CentripetalNetDatasetMapper(
        is_train,
        augmentations=augmentations,
        image_format="RGB",
        use_instance_mask=masks is not None,
        instance_mask_format=masks or "polygon",
    )


def square_mask(kind, x0, y0, x1, y1, size=(60, 80)):
    if kind == "polygon":
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask_util.encode(mask)
