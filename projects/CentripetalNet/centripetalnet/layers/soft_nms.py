"""Soft non-maximum suppression (arXiv 1704.04503), for all classes and images at once.

Shapes: N images, M candidate boxes per image (padded), D boxes kept per image.
"""

import math

import torch
from torch import Tensor

from .extension import has_kernel

METHODS = ("gaussian", "linear")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _iou_with(boxes: Tensor, areas: Tensor, taken: Tensor, taken_area: Tensor) -> Tensor:
    """IoU (N, M) of boxes (N, M, 4) with one taken box per image (N, 1, 4)."""
    top_left = torch.maximum(boxes[..., :2], taken[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], taken[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    union = areas + taken_area - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    max_detections: int,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.5,
    min_score: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Per-class soft-NMS over padded batches, in the order in which the boxes are taken.

    Each round takes the box with the highest current score of an image, multiplies the scores of
    the remaining boxes of its class by ``exp(-IoU^2 / sigma)``, or by ``1 - IoU`` if the IoU
    exceeds ``iou_threshold``, and drops boxes below ``min_score``. Classes do not affect each
    other, so ``max_detections`` rounds over all classes give the order of each class. No gradient.

    Args:
        boxes: (N, M, 4) x0, y0, x1, y1 in pixels; float16, bfloat16, float32 or float64. Half
            precision is computed in float32; only the returned scores are rounded.
        scores: (N, M) in [0, 1], dtype of the boxes; a negative score or NaN marks padding.
        classes: (N, M) integers.
        max_detections: D, the most boxes taken per image.
        method: "gaussian" or "linear".
        sigma: of the Gaussian decay, positive.
        iou_threshold: of the linear decay.
        min_score: least lowered score. The box taken first keeps its score.

    Returns:
        keep (N, min(D, M)) indices into M in the order of taking, and their lowered scores, same
        shape, dtype of ``scores``, -1 if no box was left.

    Raises:
        TypeError: if a dtype is wrong.
        ValueError: if ``method`` is unknown, shapes do not match, ``max_detections`` is negative,
            ``sigma`` is not positive or ``min_score`` is NaN.

    Source: arXiv 1704.04503, figure 2.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if has_kernel("soft_nms", scores.device):
        return torch.ops.centripetalnet.soft_nms(
            boxes.detach(),
            scores.detach(),
            classes,
            max_detections,
            method == "gaussian",
            sigma,
            iou_threshold,
            min_score,
        )
    return soft_nms_reference(
        boxes, scores, classes, max_detections, method, sigma, iou_threshold, min_score
    )


def soft_nms_reference(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    max_detections: int,
    method: str,
    sigma: float,
    iou_threshold: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    """:func:`batched_soft_nms` in plain PyTorch, vectorised over images and boxes.

    Args, Returns, Raises: see :func:`batched_soft_nms`.
    """
    _check_arguments(boxes, scores, classes, max_detections, method, sigma, min_score)
    dtype = scores.dtype
    # Repeated rounding to half precision would change the order.
    if dtype in (torch.float16, torch.bfloat16):
        boxes, scores = boxes.float(), scores.float()
    # If sigma is rounded to 0, boxes that do not overlap give 0 / 0.
    sigma = max(sigma, torch.finfo(scores.dtype).tiny)
    scores = scores.masked_fill(~(scores >= 0), -1)
    num_images, num_boxes = scores.shape
    rounds = min(max_detections, num_boxes)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    keep = classes.new_zeros((num_images, rounds), dtype=torch.long)
    kept_scores = scores.new_full((num_images, rounds), -1)
    for i in range(rounds):
        best_score, best = scores.max(dim=1, keepdim=True)
        keep[:, i], kept_scores[:, i] = best[:, 0], best_score[:, 0]
        taken = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        iou = _iou_with(boxes, areas, taken, areas.gather(1, best))
        if method == "gaussian":
            decay = torch.exp(-iou.square() / sigma)
        else:
            decay = torch.where(iou > iou_threshold, 1 - iou, torch.ones_like(iou))
        decay = torch.where(classes == classes.gather(1, best), decay, torch.ones_like(decay))
        lowered = scores * decay
        dropped = (scores < 0) | ~(lowered >= min_score)
        scores = lowered.masked_fill(dropped, -1).scatter(1, best, -1)
    return keep, kept_scores.clamp(min=-1).to(dtype)


def _check_arguments(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    max_detections: int,
    method: str,
    sigma: float,
    min_score: float,
) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if scores.dim() != 2:
        raise ValueError(f"soft_nms expects scores of shape (N, M), got {tuple(scores.shape)}")
    if boxes.shape != (*scores.shape, 4):
        raise ValueError(
            f"soft_nms expects boxes of shape (N, M, 4) for scores of shape {tuple(scores.shape)}, "
            f"got {tuple(boxes.shape)}"
        )
    if classes.shape != scores.shape:
        raise ValueError(
            f"soft_nms expects classes of the shape of scores, {tuple(scores.shape)}, got "
            f"{tuple(classes.shape)}"
        )
    if not boxes.device == scores.device == classes.device:
        raise ValueError(
            f"soft_nms expects boxes, scores and classes on one device, got {boxes.device}, "
            f"{scores.device} and {classes.device}"
        )
    if classes.dtype != torch.int64:
        raise TypeError(f"soft_nms expects classes in int64, got {classes.dtype}")
    if scores.dtype not in _DTYPES or boxes.dtype != scores.dtype:
        raise TypeError(
            "soft_nms expects boxes and scores of one floating point dtype, float16, bfloat16, "
            f"float32 or float64, got {boxes.dtype} and {scores.dtype}"
        )
    if max_detections < 0:
        raise ValueError(f"soft_nms expects max_detections >= 0, got {max_detections}")
    if not sigma > 0:
        raise ValueError(f"soft_nms expects sigma > 0, got {sigma}")
    if math.isnan(min_score):
        raise ValueError("soft_nms expects min_score to be a number, got nan")
