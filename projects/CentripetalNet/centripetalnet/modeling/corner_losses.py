"""Predictions and targets to losses (pure functions).

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch.
"""

from typing import Dict

import torch.nn.functional as F
from torch import Tensor

from ..layers import gaussian_focal_loss
from ..structures import CornerShifts, CornerTargets, HeatmapBumps


def heatmap_loss(
    logits: Tensor, target: HeatmapBumps, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Focal loss of one corner's heat map, per positive cell.

    Args:
        logits: (N, C, H, W).
        target: the bumps that it should show.
        alpha, beta: exponents, see :func:`gaussian_focal_loss`.

    Returns:
        A scalar: the sum over the batch divided by the number of cells whose target is 1, or by 1.
    """
    loss = gaussian_focal_loss(logits, target.bumps, target.plane_start, alpha, beta)
    return loss / target.num_positive.clamp(min=1)


def shift_loss(prediction: Tensor, target: Tensor, wins: Tensor, beta: float) -> Tensor:
    """Smooth L1 loss of one shift at the corner cells.

    Args:
        prediction: (M, 2) at each box's cell.
        target: (M, 2) what it should be.
        wins: (M,) whether the box is the one that its cell stands for.
        beta: where the loss turns from quadratic to linear.

    Returns:
        A scalar: the sum over cells, x and y, divided by the number of corner cells, or by 1.
    """
    loss = F.smooth_l1_loss(prediction.float(), target, beta=beta, reduction="none").sum(dim=1)
    return (loss * wins).sum() / wins.sum().clamp(min=1)


def corner_losses(
    heatmap: Tensor,
    shifts: CornerShifts,
    targets: CornerTargets,
    focal_alpha: float = 2.0,
    focal_beta: float = 4.0,
    smooth_l1_beta: float = 1.0,
) -> Dict[str, Tensor]:
    """The four losses of one corner of one stack, not yet weighted.

    Args:
        heatmap: (N, C, H, W) logits.
        shifts: at the cells of the targets.
        targets: of the corner.
        focal_alpha, focal_beta: exponents of the heat-map loss.
        smooth_l1_beta: of the three shift losses.

    Returns:
        Scalars ``heatmap``, ``offset``, ``guiding_shift``, ``centripetal_shift``.

    Source: arXiv 2003.09119, sections 3.2 and 3.3; heat map and offset arXiv 1808.01244, 3.2.
    """
    losses = {"heatmap": heatmap_loss(heatmap, targets.heatmap, focal_alpha, focal_beta)}
    for name in shifts._fields:
        losses[name] = shift_loss(
            getattr(shifts, name), getattr(targets, name), targets.wins, smooth_l1_beta
        )
    return losses
