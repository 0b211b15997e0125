"""Selects the final boxes among the candidates: the best, then soft-NMS.

Shapes: N images, P candidates of each image.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..layers import SOFT_NMS_METHODS, batched_soft_nms
from ..structures import Candidates


@dataclass(frozen=True)
class SelectionOptions:
    """Hyperparameters of soft-NMS; the defaults are the released model's."""

    max_candidates: int = 1000
    """Boxes per image that enter soft-NMS, the best by score."""
    max_detections: int = 100
    """Boxes per image after soft-NMS, at most."""
    method: str = "gaussian"
    """Decay function, "gaussian" or "linear"."""
    sigma: float = 0.5
    """Of the Gaussian decay."""
    iou_threshold: float = 0.5
    """Of the linear decay."""
    min_score: float = 0.001
    """Boxes with a lower score after the decay are dropped."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SelectionOptions":
        net = cfg.MODEL.CENTRIPETALNET
        return cls(
            max_candidates=net.MAX_CANDIDATES,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            method=net.SOFT_NMS.METHOD,
            sigma=net.SOFT_NMS.SIGMA,
            iou_threshold=net.SOFT_NMS.IOU_THRESHOLD,
            min_score=net.SOFT_NMS.MIN_SCORE,
        )

    def __post_init__(self):
        if self.method not in SOFT_NMS_METHODS:
            raise ValueError(
                f"MODEL.CENTRIPETALNET.SOFT_NMS.METHOD must be one of {SOFT_NMS_METHODS}, got "
                f"{self.method!r}"
            )
        if not self.sigma > 0:
            raise ValueError(
                f"MODEL.CENTRIPETALNET.SOFT_NMS.SIGMA must be positive, got {self.sigma}"
            )


def best_candidates(candidates: Candidates, max_candidates: int) -> Candidates:
    """The candidates of each image with the highest scores, best first.

    Args:
        candidates: P of each image.
        max_candidates: upper limit of candidates per image.

    Returns:
        min(P, max_candidates) of each image.
    """
    scores, index = _best(candidates, max_candidates)
    return _taken(candidates, index, scores)


def _best(candidates: Candidates, max_candidates: int) -> tuple[Tensor, Tensor]:
    """Scores and indices of the best candidates, each (N, min(P, max_candidates))."""
    return candidates.scores.topk(min(max_candidates, candidates.scores.shape[1]), dim=1)


def _taken(candidates: Candidates, index: Tensor, scores: Tensor) -> Candidates:
    """Candidates at (N, Q) indices, with new scores."""
    return Candidates(
        boxes=candidates.boxes.gather(1, index[..., None].expand(-1, -1, 4)),
        scores=scores,
        classes=candidates.classes.gather(1, index),
    )


def stack_candidates(candidates: list[Candidates]) -> Candidates:
    """Stacks the candidates of several images to one batch, with padding.

    Args:
        candidates: (1, P, ...) per image; P may differ.

    Returns:
        (N, largest P, ...); padding has score -1.
    """
    most = max(x.scores.shape[1] for x in candidates)

    def padded(tensors: Iterable[Tensor], value: float) -> Tensor:
        rows = []
        for x in tensors:
            rows.append(x.new_full((1, most, *x.shape[2:]), value))
            rows[-1][:, : x.shape[1]] = x
        return torch.cat(rows)

    boxes, scores, classes = zip(*candidates)
    return Candidates(padded(boxes, 0), padded(scores, -1), padded(classes, 0))


def select_detections(candidates: Candidates, options: SelectionOptions) -> Candidates:
    """Final boxes: the best candidates, then soft-NMS per class.

    Args:
        candidates: P of each image.
        options: see :class:`SelectionOptions`.

    Returns:
        At most ``max_detections`` of each image in the order of soft-NMS, with decayed scores;
        padding has score -1.
    """
    best = best_candidates(candidates, options.max_candidates)
    keep, scores = _soft_nms(best, options)
    return _taken(best, keep, scores)


def select_indices(
    candidates: Candidates, options: SelectionOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the candidates that :func:`select_detections` selects.

    Args:
        candidates: P of each image.
        options: see :class:`SelectionOptions`.

    Returns:
        Indices (N, min(P, ``max_candidates``)) of the candidates that enter soft-NMS, indices (N,
        D) of those that it selects, in the order of soft-NMS, and their decayed scores (N, D), -1
        for padding.
    """
    entered_scores, entered = _best(candidates, options.max_candidates)
    keep, scores = _soft_nms(_taken(candidates, entered, entered_scores), options)
    return entered, entered.gather(1, keep), scores


def _soft_nms(best: Candidates, options: SelectionOptions) -> tuple[Tensor, Tensor]:
    return batched_soft_nms(
        best.boxes,
        best.scores,
        best.classes,
        options.max_detections,
        method=options.method,
        sigma=options.sigma,
        iou_threshold=options.iou_threshold,
        min_score=options.min_score,
    )


def detections_of(
    candidates: list[Candidates], sizes: list[tuple[int, int]], options: SelectionOptions
) -> list[Instances]:
    """Final boxes of each image, from its candidates.

    Args:
        candidates: per image, (1, P, ...).
        sizes: (h0, w0) pixels of each image.
        options: see :class:`SelectionOptions`.

    Returns:
        For each image its boxes, best first, not yet clipped.
    """
    detections = select_detections(stack_candidates(candidates), options)
    results = []
    for boxes, scores, classes, size in zip(*detections, sizes):
        # A mask as index would wait for the GPU at each use.
        kept = (scores >= 0).nonzero()[:, 0]
        results.append(
            Instances(
                size,
                pred_boxes=Boxes(boxes[kept]),
                scores=scores[kept],
                pred_classes=classes[kept],
            )
        )
    return results


def scaled_to_output(
    results: list[Instances], batched_inputs: list[dict]
) -> list[dict[str, Instances]]:
    """Scales results to the ``height`` and ``width`` of each input and clips them."""
    return [
        {
            "instances": detector_postprocess(
                result,
                x.get("height", result.image_size[0]),
                x.get("width", result.image_size[1]),
            )
        }
        for result, x in zip(results, batched_inputs)
    ]
