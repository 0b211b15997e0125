"""Training samples with prediction and heatmaps, for TensorBoard."""

import cv2
import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from ..modeling import CentripetalNet
from ..structures import Explanation
from ..visualization.pictures import tile
from ..visualization.sheet import faded, heat_colors
from .pairs import explain


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
    model: CentripetalNet, batched_inputs: list[dict], max_images: int = 3
) -> tuple[str, Tensor]:
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
    picture = torch.as_tensor(tile(rows, columns=1))
    name = "Left to right: ground truth; prediction; top-left corners; bottom-right corners"
    return name, picture.permute(2, 0, 1)


def overlay_heatmap(
    image: np.ndarray, heatmap: np.ndarray, extent: tuple[float, float, float, float]
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
