"""Training targets from boxes: heatmaps and shifts of both corners (pure functions).

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch. Targets
are sparse: shifts at the M corner cells, and heatmaps as at most M Gaussian bumps.
"""

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..structures import BoxTargets, CornerTargets, HeatmapBumps
from .feature_maps import as_xy


def gaussian_radii(height: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """How far both corners may move while the IoU with the true box is at least ``min_overlap``.

    Args:
        height, width: (M,) size of the boxes in cells.
        min_overlap: least IoU, in (0, 1).

    Returns:
        (3, M) radii in cells, float64: both corners moved in the same direction, both inwards, both
        outwards. The bump's radius is the smallest.

    Source: arXiv 1808.01244, section 3.2, with the roots as corrected after the first code release.
    """
    height, width = height.double(), width.double()
    total, area = height + width, height * width

    shifted = total - (total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)).sqrt()
    inside = 2 * total - (4 * total**2 - 16 * (1 - min_overlap) * area).sqrt()
    outside = -2 * min_overlap * total
    outside = outside + (outside**2 + 16 * min_overlap * (1 - min_overlap) * area).sqrt()
    return torch.stack((shifted / 2, inside / 8, outside / (8 * min_overlap)))


def heatmap_bumps(
    plane: Tensor,
    cell_xy: Tensor,
    radius: Tensor,
    usable: Tensor,
    num_planes: int,
    map_size: tuple[int, int],
) -> HeatmapBumps:
    """Gaussian bumps of one corner's heatmaps, sorted as :func:`gaussian_focal_loss` expects.

    Args:
        plane: (M,) integers, image * C + class.
        cell_xy: (M, 2) integers, x then y.
        radius: (M,) cells.
        usable: (M,) False for boxes without target.
        num_planes: N * C.
        map_size: (H, W) cells.

    Returns:
        The bumps; those of boxes without target come first, with radius -1.

    Source: arXiv 1808.01244, section 3.2.
    """
    height, width = map_size
    x, y = cell_xy.unbind(dim=1)
    peak = ((plane * height + y) * width + x).masked_fill(~usable, -1)
    peak, order = peak.sort()
    bumps = torch.stack(
        (plane.masked_fill(~usable, 0), y, x, radius.long().masked_fill(~usable, -1)), dim=1
    )[order]
    plane_start = torch.searchsorted(
        bumps[:, 0].contiguous(), torch.arange(num_planes + 1, device=plane.device)
    )
    # Several boxes of one class with the same corner cell count once.
    num_positive = (peak.diff(prepend=peak.new_full((1,), -1)) > 0).sum()
    return HeatmapBumps(bumps.int(), plane_start.int(), num_positive)


def _corner_targets(
    corner: Tensor,
    center: Tensor,
    inwards: int,
    radius: Tensor,
    usable: Tensor,
    classes: Tensor,
    image_index: Tensor,
    num_images: int,
    num_classes: int,
    map_size: tuple[int, int],
) -> CornerTargets:
    """Targets of one corner; ``inwards`` is +1 for top-left, -1 for bottom-right corners."""
    height, width = map_size
    last_cell = as_xy((height - 1, width - 1), corner)
    cell_xy = torch.minimum(corner, last_cell).clamp(min=0).floor()
    cell_x, cell_y = cell_xy.long().unbind(dim=1)
    cell = (image_index * height + cell_y) * width + cell_x
    # 0 means "no box", so that an unusable box never wins a cell.
    order = torch.arange(1, len(cell) + 1, device=cell.device) * usable
    winner = order.new_zeros(num_images * height * width).scatter_reduce_(0, cell, order, "amax")

    # Unusable boxes have no weight in the loss, but log(0) would still make it NaN.
    to_center = torch.where(usable[:, None], (center - corner) * inwards, torch.ones_like(center))
    return CornerTargets(
        heatmap=heatmap_bumps(
            image_index * num_classes + classes,
            cell_xy.long(),
            radius,
            usable,
            num_images * num_classes,
            map_size,
        ),
        cell=cell,
        wins=usable & (winner[cell] == order),
        offset=corner - cell_xy,
        guiding_shift=(center - cell_xy) * inwards,
        centripetal_shift=to_center.log(),
    )


def corner_targets(
    boxes: Tensor,
    classes: Tensor,
    image_index: Tensor,
    num_images: int,
    num_classes: int,
    canvas_size: tuple[int, int],
    map_size: tuple[int, int],
    min_overlap: float = 0.3,
) -> BoxTargets:
    """Targets of both corners for the boxes of a whole batch.

    Args:
        boxes: (M, 4) x0, y0, x1, y1 in pixels of the canvas, inside it. Boxes without positive
            width and height have no target.
        classes: (M,) integers in [0, C).
        image_index: (M,) integers in [0, N), the image of each box.
        num_images: N.
        num_classes: C.
        canvas_size: (h, w) pixels.
        map_size: (H, W) cells.
        min_overlap: IoU that sets the radius of the Gaussian bumps, see :func:`gaussian_radii`.

    Returns:
        Targets of both corners, on the device of ``boxes``.

    Source: arXiv 2003.09119, sections 3.1 (centripetal shift) and 3.2 (guiding shift); heatmap
    and offset arXiv 1808.01244, section 3.2.
    """
    scale = as_xy(map_size, boxes) / as_xy(canvas_size, boxes)
    tl, br = boxes[:, :2] * scale, boxes[:, 2:] * scale
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 * scale
    width, height = (br - tl).ceil().unbind(dim=1)
    # Stricter than positive width and height: half of 1e-45 pixels rounds to 0, whose log is -inf.
    usable = ((tl < center) & (center < br)).all(dim=1)
    radius = gaussian_radii(height, width, min_overlap).amin(dim=0).clamp(min=0).floor()
    radius = radius.to(boxes.dtype)
    shared = (usable, classes, image_index, num_images, num_classes, map_size)
    return BoxTargets(
        tl=_corner_targets(tl, center, +1, radius, *shared),
        br=_corner_targets(br, center, -1, radius, *shared),
        image_index=image_index,
        usable=usable,
    )


def batch_targets(
    instances: list[Instances],
    canvas_size: tuple[int, int],
    map_size: tuple[int, int],
    num_classes: int,
    min_overlap: float,
) -> BoxTargets:
    """:func:`corner_targets` of a batch.

    Args:
        instances: ``gt_boxes`` and ``gt_classes`` of each image.
        canvas_size, map_size, num_classes, min_overlap: see :func:`corner_targets`.
    """
    return corner_targets(
        boxes=torch.cat([x.gt_boxes.tensor for x in instances]),
        classes=torch.cat([x.gt_classes for x in instances]),
        image_index=torch.cat([torch.full_like(x.gt_classes, i) for i, x in enumerate(instances)]),
        num_images=len(instances),
        num_classes=num_classes,
        canvas_size=canvas_size,
        map_size=map_size,
        min_overlap=min_overlap,
    )
