"""Finds the corners of one kind in a feature map, with the layers of its branch.

Shapes: N images, C classes, H x W the feature map, K corners kept in each image.
"""

from typing import Callable, NamedTuple

from torch import Tensor

from ..structures import Corners, CornerShifts, Peaks
from .corner_head import CornerBranch
from .corner_matching import MatchingOptions, find_peaks, locate_corners, mean_offset


class FoundCorners(NamedTuple):
    """The best corners of one kind, and what they were decoded from."""

    heatmap: Tensor
    """(N, C, H, W) logits."""
    peaks: Peaks
    """K of each image."""
    shifts: CornerShifts
    """At the N * K peaks, in their order."""
    corners: Corners
    """K of each image."""


def find_corners(
    branch: CornerBranch,
    feature: Tensor,
    canvas_size: tuple[int, int],
    options: MatchingOptions,
    find: Callable[[Tensor, MatchingOptions], Peaks] = find_peaks,
) -> FoundCorners:
    """Finds the corners of one kind; shifts are computed only there.

    Args:
        branch: of that kind.
        feature: (N, channels, H, W) of the backbone.
        canvas_size: (h, w) pixels that the feature map covers.
        options: see :class:`MatchingOptions`.
        find: replaces ``find_peaks`` in an export.
    """
    pooled = branch.pooling(feature)
    return find_pooled_corners(branch, pooled, branch.heatmap(pooled), canvas_size, options, find)


def find_pooled_corners(
    branch: CornerBranch,
    pooled: Tensor,
    heatmap: Tensor,
    canvas_size: tuple[int, int],
    options: MatchingOptions,
    find: Callable[[Tensor, MatchingOptions], Peaks] = find_peaks,
) -> FoundCorners:
    """As :func:`find_corners`, after corner pooling and the heatmap.

    Args:
        pooled: (N, channels, H, W), output of ``branch.pooling``.
        heatmap: (N, C, H, W) logits.
        branch, canvas_size, options, find: see :func:`find_corners`.
    """
    peaks = find(heatmap, options)
    shifts = branch.shifts_at(pooled, peaks.cell.flatten(), needs_offset=not options.average_cells)
    if options.average_cells:
        offset = mean_offset(heatmap, peaks)
    else:
        offset = shifts.offset.float().view(*peaks.cell.shape, 2)
    corners = locate_corners(
        peaks,
        offset,
        shifts.centripetal_shift.float().view(*peaks.cell.shape, 2),
        branch.inwards,
        pooled.shape[-2:],
        canvas_size,
    )
    return FoundCorners(heatmap, peaks, shifts, corners)
