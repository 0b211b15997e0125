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
    drawer = Visualizer(image, metadata, scale=scale, instance_mode=_color_mode(metadata))
    return drawer.draw_instance_predictions(instances).get_image()


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
    drawer = Visualizer(image, metadata, scale=scale, instance_mode=_color_mode(metadata))
    return drawer.draw_dataset_dict({**record, "annotations": annotations}).get_image()


def _color_mode(metadata: Optional[Metadata]) -> ColorMode:
    """One colour per class if the dataset defines colours."""
    has_colors = metadata is not None and metadata.get("thing_colors") is not None
    return ColorMode.SEGMENTATION if has_colors else ColorMode.IMAGE


def tile(
    cells: Sequence[tuple[np.ndarray, ...]], columns: int, gap: int = 8, background: int = 255
) -> np.ndarray:
    """Arranges images in rows.

    Args:
        cells: groups of images that belong together, each (h, w, 3) uint8 of any size.
        columns: groups in a row.
        gap: pixels between groups; half of it between the images of a group.
        background: grey level around them.

    Returns:
        One image, RGB uint8.
    """
    groups = [_row(group, gap // 2, background) for group in cells]
    height = max(group.shape[0] for group in groups)
    width = max(group.shape[1] for group in groups)
    groups = [_placed(group, height, width, background) for group in groups]
    while len(groups) % columns:
        groups.append(np.full((height, width, 3), background, np.uint8))
    rows: list[np.ndarray] = []
    for start in range(0, len(groups), columns):
        rows.append(_row(groups[start : start + columns], gap, background))
        rows.append(np.full((gap, rows[0].shape[1], 3), background, np.uint8))
    return np.concatenate(rows[:-1])


def _row(pictures: Sequence[np.ndarray], gap: int, background: int) -> np.ndarray:
    height = max(picture.shape[0] for picture in pictures)
    parts: list[np.ndarray] = []
    for picture in pictures:
        parts.append(_placed(picture, height, picture.shape[1], background))
        parts.append(np.full((height, gap, 3), background, np.uint8))
    return np.concatenate(parts[:-1], axis=1)


def _placed(picture: np.ndarray, height: int, width: int, background: int) -> np.ndarray:
    canvas = np.full((height, width, 3), background, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas
