"""Maps and targets to losses (pure functions).

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch.
"""

from typing import Dict

import torch.nn.functional as F
from torch import Tensor

from ..layers import gaussian_focal_loss
from ..structures import BoxTargets, CornerMaps, CornerTargets, HeadOutput

SHIFTS = ("offset", "guiding_shift", "centripetal_shift")


def heatmap_loss(logits: Tensor, targets: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Focal loss of one corner's heat map, per positive cell.

    Args:
        logits: (N, C, H, W).
        targets: (N, C, H, W) in [0, 1].
        alpha, beta: exponents, see :func:`gaussian_focal_loss`.

    Returns:
        A scalar: the sum over the batch divided by the number of cells whose target is 1, or by 1.
    """
    num_positive = targets.eq(1).sum().clamp(min=1)
    return gaussian_focal_loss(logits, targets, alpha, beta) / num_positive


def shift_loss(prediction: Tensor, target: Tensor, targets: CornerTargets, beta: float) -> Tensor:
    """Smooth L1 loss of one map of two channels at the corner cells.

    Args:
        prediction: (N, 2, H, W).
        target: (M, 2) what the map should say at each box's cell.
        targets: the cells, and which box each of them stands for.
        beta: where the loss turns from quadratic to linear.

    Returns:
        A scalar: the sum over cells, x and y, divided by the number of corner cells, or by 1.
    """
    num_images, _, height, width = prediction.shape
    at_cells = prediction.permute(0, 2, 3, 1).reshape(num_images * height * width, 2)[targets.cell]
    loss = F.smooth_l1_loss(at_cells.float(), target, beta=beta, reduction="none").sum(dim=1)
    return (loss * targets.wins).sum() / targets.wins.sum().clamp(min=1)


def corner_losses(
    output: HeadOutput,
    targets: BoxTargets,
    focal_alpha: float = 2.0,
    focal_beta: float = 4.0,
    smooth_l1_beta: float = 1.0,
) -> Dict[str, Tensor]:
    """The four losses of one stack, each the mean of its two corners, not yet weighted.

    Args:
        output: maps of both corners.
        targets: targets of both corners.
        focal_alpha, focal_beta: exponents of the heat-map loss.
        smooth_l1_beta: of the three shift losses.

    Returns:
        Scalars ``heatmap``, ``offset``, ``guiding_shift``, ``centripetal_shift``.

    Source: arXiv 2003.09119, equations 2 and 4, section 3.5.
    """

    def of_corner(maps: CornerMaps, target: CornerTargets) -> Dict[str, Tensor]:
        losses = {"heatmap": heatmap_loss(maps.heatmap, target.heatmap, focal_alpha, focal_beta)}
        for name in SHIFTS:
            losses[name] = shift_loss(
                getattr(maps, name), getattr(target, name), target, smooth_l1_beta
            )
        return losses

    tl, br = of_corner(output.tl, targets.tl), of_corner(output.br, targets.br)
    return {name: (tl[name] + br[name]) / 2 for name in tl}
