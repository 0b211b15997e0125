"""Ground truth, detections and heatmaps, drawn onto images with Detectron2's Visualizer."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    metadata: Optional[Metadata] = None,
    min_score: float = 0.5,
    scale: float = 1.0,
) -> np.ndarray:
    """Draws the boxes of one image with class and score, and the masks if the model has masks.

    Args:
        image: (h0, w0, 3) RGB uint8.
        instances: the model's output.
        metadata: of the dataset, for class names.
        min_score: boxes with lower scores are not drawn.
        scale: size of the result over that of the image.

    Returns:
        (h0 * scale, w0 * scale, 3) RGB uint8.
    """
    instances = instances[instances.scores >= min_score].to("cpu")
    return _visualizer(image, metadata, scale).draw_instance_predictions(instances).get_image()


def draw_ground_truth(
    image: np.ndarray, record: dict, metadata: Metadata, masks: bool = False, scale: float = 1.0
) -> np.ndarray:
    """Draws the annotated boxes of one image.

    Args:
        image: (h0, w0, 3) RGB uint8.
        record: of the image, in Detectron2's dataset format.
        metadata: of the dataset.
        masks: whether to draw the masks, too, if every object has one.
        scale: size of the result over that of the image.

    Returns:
        (h0 * scale, w0 * scale, 3) RGB uint8.
    """
    masks = masks and all(annotation.get("segmentation") for annotation in record["annotations"])
    drawn = {"bbox", "bbox_mode", "category_id"} | ({"segmentation"} if masks else set())
    annotations = [
        {key: value for key, value in annotation.items() if key in drawn}
        for annotation in record["annotations"]
    ]
    record = {**record, "annotations": annotations}
    return _visualizer(image, metadata, scale).draw_dataset_dict(record).get_image()


def _visualizer(image: np.ndarray, metadata: Optional[Metadata], scale: float) -> Visualizer:
    """Draws with one colour per class if the dataset defines colours."""
    has_colors = metadata is not None and metadata.get("thing_colors") is not None
    mode = ColorMode.SEGMENTATION if has_colors else ColorMode.IMAGE
    return Visualizer(image, metadata, scale=scale, instance_mode=mode)


def tile(pictures: Sequence[np.ndarray], columns: int, gap: int = 8) -> np.ndarray:
    """Arranges images in rows of equal cells on white.

    Args:
        pictures: (h, w, 3) uint8 each, of any size. They lie at the top left of their cells.
        columns: images in a row.
        gap: pixels between cells.

    Returns:
        One image, (height, width, 3) uint8.
    """
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0) + gap
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height - gap, columns * width - gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet
