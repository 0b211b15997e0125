"""Named tuples that the parts of the detector exchange.

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch, K
corners kept of each kind in an image, P candidate boxes of an image. "tl" and "br" are the top-left
and the bottom-right corner.
"""

from enum import IntEnum
from typing import NamedTuple, Optional

from torch import Tensor


class CornerMaps(NamedTuple):
    """Predicted maps of one corner."""

    heatmap: Tensor
    """(N, C, H, W) logits."""
    offset: Tensor
    """(N, 2, H, W) cells, x then y: corner minus its cell."""
    guiding_shift: Tensor
    """(N, 2, H, W) cells, x then y, from the corner cell inwards to the box's centre."""
    centripetal_shift: Tensor
    """(N, 2, H, W) natural logarithm of cells, x then y, from the corner to the box's centre."""


class HeadOutput(NamedTuple):
    """Maps of the two corners of one stack."""

    tl: CornerMaps
    br: CornerMaps


class CornerShifts(NamedTuple):
    """Predicted shifts of one corner at M cells."""

    offset: Optional[Tensor]
    """(M, 2) cells, see :class:`CornerMaps`; None if it is not needed."""
    guiding_shift: Tensor
    """(M, 2) cells."""
    centripetal_shift: Tensor
    """(M, 2) natural logarithm of cells."""


class HeatmapBumps(NamedTuple):
    """Heatmap targets of one corner: Gaussian bumps around the corner cells.

    ``layers.gaussian_focal_loss`` defines a bump, ``layers.render_bumps`` renders dense maps.
    """

    bumps: Tensor
    """(M, 4) int32 plane (image * C + class), y, x, radius; radius -1 for a box without target."""
    plane_start: Tensor
    """(N * C + 1,) int32: the bumps of plane i are ``bumps[plane_start[i]:plane_start[i + 1]]``."""
    num_positive: Tensor
    """Scalar, number of corner cells, counted once per class."""


class CornerTargets(NamedTuple):
    """Targets of one corner, at the corner cells of the M boxes."""

    heatmap: HeatmapBumps
    cell: Tensor
    """(M,) index of the box's corner cell into the flattened (N, H, W)."""
    wins: Tensor
    """(M,) bool: the cell is assigned to this box. Of several boxes on one cell, the last wins."""
    offset: Tensor
    """(M, 2) cells, x then y: corner minus its cell."""
    guiding_shift: Tensor
    """(M, 2) cells, x then y, from the cell inwards to the box's centre."""
    centripetal_shift: Tensor
    """(M, 2) natural logarithm of cells, x then y, from the corner to the box's centre."""


class BoxTargets(NamedTuple):
    """Targets of the two corners."""

    tl: CornerTargets
    br: CornerTargets


class CornerCounts(NamedTuple):
    """Numbers of cells by which the losses of one corner are divided."""

    heatmap: Tensor
    """Scalar, number of corner cells, counted once per class."""
    shifts: Tensor
    """Scalar, number of corner cells of any class."""


class StepCounts(NamedTuple):
    """Normalizers of the losses of several batches whose gradients are accumulated."""

    tl: CornerCounts
    br: CornerCounts
    num_boxes: Tensor
    """Scalar, ground-truth boxes, per process."""


class Peaks(NamedTuple):
    """The K best local maxima of one corner's heatmap in each image."""

    score: Tensor
    """(N, K) in (0, 1)."""
    cls: Tensor
    """(N, K) integers in [0, C)."""
    cell: Tensor
    """(N, K) index into the flattened (N, H, W)."""


class Corners(NamedTuple):
    """The best corners of one kind of each image."""

    score: Tensor
    """(N, K) in (0, 1)."""
    cls: Tensor
    """(N, K) integers in [0, C)."""
    position: Tensor
    """(N, K, 2) pixels of the canvas, x then y."""
    center: Tensor
    """(N, K, 2) pixels of the canvas, x then y: the centre that the corner points to."""


class CornerPairs(NamedTuple):
    """All top-left x bottom-right pairs of each image, as boxes in pixels of the image.

    Values that depend on one corner only have size 1 on the other's axis, for broadcasting.
    """

    top_left: Tensor
    """(N, K, 1, 2) x0, y0, not negative."""
    bottom_right: Tensor
    """(N, 1, K, 2) x1, y1, not negative."""
    tl_center: Tensor
    """(N, K, 1, 2) the centre that the top-left corner points to, not negative."""
    br_center: Tensor
    """(N, 1, K, 2) the centre that the bottom-right corner points to, not negative."""
    region_low: Tensor
    """(N, K, K, 2) top-left corner of the box's central region."""
    region_high: Tensor
    """(N, K, K, 2) bottom-right corner of the region."""
    has_extent: Tensor
    """(N, K, K) bool, whether the box has positive width and height."""
    spread: Tensor
    """(N, K, K) area spanned by the two centres over area of the region; 1 without extent."""


class PairConditions(NamedTuple):
    """Conditions for a pair to be a box, in the order of evaluation.

    (N, K, K) bool each, top-left x bottom-right corners.
    """

    same_class: Tensor
    """Both corners have the same class."""
    has_extent: Tensor
    """The box has positive width and height."""
    tl_points_inside: Tensor
    """The top-left corner points into the box's central region."""
    br_points_inside: Tensor
    """The bottom-right corner points into the box's central region."""
    centers_are_close: Tensor
    """The spread is at most ``MatchingOptions.max_center_area``."""


class PairOutcome(IntEnum):
    """Outcome of a pair of corners: the first condition that fails, or ACCEPTED.

    The value is the number of conditions before it, all of which hold.
    """

    OTHER_CLASS = 0
    NO_EXTENT = 1
    TL_OUTSIDE = 2
    BR_OUTSIDE = 3
    FAR_APART = 4
    SCORE_TOO_LOW = 5
    SUPPRESSED = 6
    ACCEPTED = 7


class Candidates(NamedTuple):
    """P candidate boxes of each image, valid or not."""

    boxes: Tensor
    """(N, P, 4) pixels of the image, x0, y0, x1, y1, not clipped to it."""
    scores: Tensor
    """(N, P) in [0, 1]; -1 for a pair that is not a box."""
    classes: Tensor
    """(N, P) integers in [0, C)."""


class Findings(NamedTuple):
    """Results of one image before soft-NMS."""

    candidates: Candidates
    """The best, with N = 1."""
    feature: Tensor
    """(1, channels, H, W) of the last stack."""
    canvas_size: tuple[int, int]
    """(h, w) pixels of the canvas that the feature map covers."""
    border: tuple[int, int]
    """(left, top) padding of the canvas in pixels."""


class SeenCorners(NamedTuple):
    """Detected corners of one kind in one image, in pixels of the image."""

    heatmap: Tensor
    """(H, W) probability of a corner, maximum over classes."""
    score: Tensor
    """(K,) in (0, 1), best first."""
    cls: Tensor
    """(K,) integers in [0, C)."""
    position: Tensor
    """(K, 2) x, y."""
    center: Tensor
    """(K, 2) x, y of the centre that the corner points to."""
    sampling_points: Tensor
    """(K, 9, 2) x, y of the cross-star deformable convolution's sampling points."""


class Explanation(NamedTuple):
    """Detected corners of one image and the outcome of each pair.

    Pairs are top-left x bottom-right corners; all positions are in pixels of the image.
    """

    tl: SeenCorners
    br: SeenCorners
    map_extent: tuple[float, float, float, float]
    """x0, y0, x1, y1 of the canvas, which the heatmaps cover; it is larger than the image."""
    boxes: Tensor
    """(K, K, 4) x0, y0, x1, y1."""
    regions: Tensor
    """(K, K, 4) x0, y0, x1, y1 of the central regions."""
    scores: Tensor
    """(K, K) scores of all pairs before soft-NMS, boxes or not."""
    spread: Tensor
    """(K, K) see :class:`CornerPairs`."""
    outcome: Tensor
    """(K, K) int64, see :class:`PairOutcome`."""
    detections: Tensor
    """(D, 2) indices (tl, br) of the accepted pairs, in the order of soft-NMS."""
    detection_scores: Tensor
    """(D,) scores of the accepted pairs after soft-NMS."""

    def count_outcomes(self, min_score: float = 0.0) -> dict[PairOutcome, int]:
        """Counts pairs by outcome; with ``min_score`` 0 the counts add up to K * K.

        Args:
            min_score: pairs with a lower score, before soft-NMS, are not counted.
        """
        counts = self.outcome[self.scores >= min_score].bincount(minlength=len(PairOutcome))
        return dict(zip(PairOutcome, counts.tolist()))
