"""Losses from predictions and targets (pure functions).

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ..layers import gaussian_focal_loss
from ..structures import CornerCounts, CornerTargets, HeatmapBumps
from .object_counts import count_per_process


@dataclass(frozen=True)
class LossOptions:
    """Hyperparameters of the losses that all ways of matching share, as in the released models."""

    min_overlap: float = 0.3
    focal_alpha: float = 2.0
    focal_beta: float = 4.0
    smooth_l1_beta: float = 1.0
    heatmap_weight: float = 1.0
    offset_weight: float = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "LossOptions":
        net = cfg.MODEL.CENTRIPETALNET
        return cls(
            min_overlap=net.GAUSSIAN_MIN_OVERLAP,
            focal_alpha=net.FOCAL_ALPHA,
            focal_beta=net.FOCAL_BETA,
            smooth_l1_beta=net.SMOOTH_L1_BETA,
            heatmap_weight=net.HEATMAP_WEIGHT,
            offset_weight=net.OFFSET_WEIGHT,
        )


def corner_counts(targets: CornerTargets) -> CornerCounts:
    """Normalizers of the losses of one corner.

    Args:
        targets: of this process's images.

    Returns:
        Counts over all processes, divided by the number of processes, see
        :func:`count_per_process`.
    """
    return CornerCounts(*count_per_process(corner_sums(targets)))


def corner_sums(targets: CornerTargets) -> Tensor:
    """(2,) numbers of corner cells of one corner, in the order of CornerCounts.

    Args:
        targets: of this process's images.
    """
    return torch.stack((targets.heatmap.num_positive, targets.wins.sum()))


def heatmap_loss(
    logits: Tensor, target: HeatmapBumps, count: Tensor, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Focal loss of one corner's heatmap, divided by the number of positive cells.

    Args:
        logits: (N, C, H, W).
        target: Gaussian bumps.
        count: scalar, normalizer of the sum over the batch.
        alpha, beta: exponents, see :func:`gaussian_focal_loss`.

    Returns:
        A scalar.
    """
    return gaussian_focal_loss(logits, target.bumps, target.plane_start, alpha, beta) / count


def shift_loss(
    prediction: Tensor, target: Tensor, wins: Tensor, count: Tensor, beta: float
) -> Tensor:
    """Smooth L1 loss of one shift at the corner cells, divided by their number.

    Args:
        prediction: (M, 2) at each box's corner cell.
        target: (M, 2).
        wins: (M,) False for boxes whose corner cell is assigned to another box.
        count: scalar, normalizer of the sum over cells, x and y.
        beta: absolute error at which the loss changes from quadratic to linear.

    Returns:
        A scalar.
    """
    loss = F.smooth_l1_loss(prediction.float(), target, beta=beta, reduction="none").sum(dim=1)
    return (loss * wins).sum() / count
