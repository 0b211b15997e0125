"""Finds the corners of one kind in a feature map, with the layers of its branch.

Shapes: N images, C classes, H x W the feature map, K corners kept in each image.
"""

from typing import Callable, NamedTuple

from torch import Tensor

from ..structures import Corners, Peaks
from .corner_head import CornerBranch
from .corner_matching import Matching, find_peaks, locate_corners, mean_offset


class FoundCorners(NamedTuple):
    """The best corners of one kind, and what they were decoded from."""

    heatmap: Tensor
    """(N, C, H, W) logits."""
    pooled: Tensor
    """(N, channels, H, W), output of ``CornerBranch.pooling``."""
    peaks: Peaks
    """K of each image."""
    corners: Corners
    """K of each image."""


def find_corners(
    branch: CornerBranch,
    feature: Tensor,
    canvas_size: tuple[int, int],
    matching: Matching,
    find: Callable[[Tensor, Matching], Peaks] = find_peaks,
) -> FoundCorners:
    """Finds the corners of one kind; all but the heatmap is computed only there.

    Args:
        branch: of that kind.
        feature: (N, channels, H, W) of the backbone.
        canvas_size: (h, w) pixels that the feature map covers.
        matching: the way of matching.
        find: replaces ``find_peaks`` in an export.
    """
    pooled = branch.pooling(feature)
    return find_pooled_corners(branch, pooled, branch.heatmap(pooled), canvas_size, matching, find)


def find_pooled_corners(
    branch: CornerBranch,
    pooled: Tensor,
    heatmap: Tensor,
    canvas_size: tuple[int, int],
    matching: Matching,
    find: Callable[[Tensor, Matching], Peaks] = find_peaks,
) -> FoundCorners:
    """As :func:`find_corners`, after corner pooling and the heatmap.

    Args:
        pooled: (N, channels, H, W), output of ``branch.pooling``.
        heatmap: (N, C, H, W) logits.
        branch, canvas_size, matching, find: see :func:`find_corners`.
    """
    peaks = find(heatmap, matching)
    needs_offset = not matching.average_cells
    predictions = branch.at_cells(pooled, peaks.cell.flatten(), needs_offset)
    if needs_offset:
        offset = predictions.offset.float().view(*peaks.cell.shape, 2)
    else:
        offset = mean_offset(heatmap, peaks)
    corners = locate_corners(
        peaks, offset, predictions, matching, branch.inwards, pooled.shape[-2:], canvas_size
    )
    return FoundCorners(heatmap, pooled, peaks, corners)
