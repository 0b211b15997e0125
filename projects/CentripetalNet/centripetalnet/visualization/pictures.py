"""Ground truth, detections and heatmaps, drawn onto images with Detectron2's Visualizer."""

from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import Tensor

from ..modeling import CentripetalNet
from ..modeling.explanation import explain
from ..structures import Explanation
from .sheet import faded, heat_colors


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


def draw_training_sample(
    image: np.ndarray, gt_boxes: Tensor, explanation: Explanation, max_boxes: int = 20
) -> np.ndarray:
    """Draws ground truth, prediction, top-left and bottom-right heatmap side by side.

    Args:
        image: (h, w, 3) RGB uint8.
        gt_boxes: (M, 4) pixels of the image.
        explanation: of that image.
        max_boxes: limit of the predictions that are drawn, best first.

    Returns:
        (h, 4 w, 3) RGB uint8.
    """
    tl, br = explanation.detections[:max_boxes].unbind(dim=1)
    views = [
        Visualizer(image).overlay_instances(boxes=boxes.cpu()).get_image()
        for boxes in (gt_boxes, explanation.boxes[tl, br])
    ]
    views += [
        overlay_heatmap(image, seen.heatmap.numpy(), explanation.map_extent)
        for seen in (explanation.tl, explanation.br)
    ]
    return np.concatenate(views, axis=1)


def training_picture(
    model: CentripetalNet, batched_inputs: List[dict], max_images: int = 3
) -> Tuple[str, Tensor]:
    """Draws ground truth, prediction and heatmaps of some training samples, for TensorBoard.

    Args:
        model: in training mode, also afterwards.
        batched_inputs: see ``CentripetalNet.forward``.
        max_images: number of samples that are drawn, from the first.

    Returns:
        Name of the figure, and the figure (3, height, width) uint8, RGB.
    """
    samples = batched_inputs[:max_images]
    model.eval()
    explanations = [explain(model, x["image"]) for x in samples]
    model.train()
    rows = [
        draw_training_sample(
            convert_image_to_rgb(x["image"].permute(1, 2, 0), model.input_format),
            x["instances"].gt_boxes.tensor,
            explanation,
        )
        for x, explanation in zip(samples, explanations)
    ]
    picture = torch.as_tensor(tile([(row,) for row in rows], columns=1))
    name = "Left to right: ground truth; prediction; top-left corners; bottom-right corners"
    return name, picture.permute(2, 0, 1)


def overlay_heatmap(
    image: np.ndarray, heatmap: np.ndarray, extent: Tuple[float, float, float, float]
) -> np.ndarray:
    """Draws a heatmap over the image in grey.

    Args:
        image: (h0, w0, 3) RGB uint8.
        heatmap: (H, W) in [0, 1].
        extent: x0, y0, x1, y1 of the heatmap, integer pixels of the image, which it contains.

    Returns:
        (h0, w0, 3) RGB uint8.
    """
    x0, y0, x1, y1 = (int(x) for x in extent)
    height, width = image.shape[:2]
    # INTER_NEAREST gives each pixel the value of its cell.
    values = cv2.resize(
        np.ascontiguousarray(heatmap, dtype=np.float32),
        (x1 - x0, y1 - y0),
        interpolation=cv2.INTER_NEAREST,
    )[-y0 : height - y0, -x0 : width - x0]
    colors = heat_colors()(values)
    opacity = colors[:, :, 3:]
    mixed = colors[:, :, :3] * 255 * opacity + faded(image) * (1 - opacity)
    return mixed.round().astype(np.uint8)


def _color_mode(metadata: Optional[Metadata]) -> ColorMode:
    """One colour per class if the dataset defines colours."""
    has_colors = metadata is not None and metadata.get("thing_colors") is not None
    return ColorMode.SEGMENTATION if has_colors else ColorMode.IMAGE


def tile(
    cells: Sequence[Tuple[np.ndarray, ...]], columns: int, gap: int = 8, background: int = 255
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
    rows: List[np.ndarray] = []
    for start in range(0, len(groups), columns):
        rows.append(_row(groups[start : start + columns], gap, background))
        rows.append(np.full((gap, rows[0].shape[1], 3), background, np.uint8))
    return np.concatenate(rows[:-1])


def _row(pictures: Sequence[np.ndarray], gap: int, background: int) -> np.ndarray:
    height = max(picture.shape[0] for picture in pictures)
    parts: List[np.ndarray] = []
    for picture in pictures:
        parts.append(_placed(picture, height, picture.shape[1], background))
        parts.append(np.full((height, gap, 3), background, np.uint8))
    return np.concatenate(parts[:-1], axis=1)


def _placed(picture: np.ndarray, height: int, width: int, background: int) -> np.ndarray:
    canvas = np.full((height, width, 3), background, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas
