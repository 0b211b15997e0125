"""What the parts of the detector hand to each other: plain tuples.

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch, K
corners kept of each kind in an image, P candidate boxes of an image. "tl" and "br" are the top-left
and the bottom-right corner.
"""

from enum import IntEnum
from typing import Dict, NamedTuple, Tuple

from torch import Tensor


class CornerMaps(NamedTuple):
    """What the head says of one corner (of a batch of N images)."""

    heatmap: Tensor
    """(N, C, H, W) logits."""
    offset: Tensor
    """(N, 2, H, W) cells, x then y: corner minus the cell it falls in."""
    guiding_shift: Tensor
    """(N, 2, H, W) cells, x then y, from the corner cell inwards to the object's centre."""
    centripetal_shift: Tensor
    """(N, 2, H, W) natural logarithm of cells, x then y, from the corner to the centre."""


class HeadOutput(NamedTuple):
    """Maps of the two corners of one stack."""

    tl: CornerMaps
    br: CornerMaps


class CornerShifts(NamedTuple):
    """What the head says of one corner at M cells, where that is asked instead of on whole maps."""

    offset: Tensor
    """(M, 2) cells, see :class:`CornerMaps`."""
    guiding_shift: Tensor
    """(M, 2) cells."""
    centripetal_shift: Tensor
    """(M, 2) natural logarithm of cells."""


class HeatmapBumps(NamedTuple):
    """What one corner's heat maps should be: Gaussian bumps around the corner cells.

    ``layers.gaussian_focal_loss`` says what a bump is, ``layers.render_bumps`` makes dense maps.
    """

    bumps: Tensor
    """(M, 4) int32 plane (image * C + class), y, x, radius; radius -1 for a box without target."""
    plane_start: Tensor
    """(N * C + 1,) int32, where the bumps of each plane begin."""
    num_positive: Tensor
    """Scalar, how many cells are the corner of a box, counted once for each class."""


class CornerTargets(NamedTuple):
    """What one corner's maps should say."""

    heatmap: HeatmapBumps
    cell: Tensor
    """(M,) index of the box's corner cell into the flattened (N, H, W)."""
    wins: Tensor
    """(M,) True where the box is the one its cell stands for: of several on one cell the last."""
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
    """How many cells the losses of one corner are the mean over."""

    heatmap: Tensor
    """Scalar, cells that are the corner of a box, counted once for each class."""
    shifts: Tensor
    """Scalar, cells that are the corner of a box, of whatever class."""


class Peaks(NamedTuple):
    """The best cells of one corner's heat map in each image."""

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
    """(N, K, 2) pixels of the canvas, x then y: the object's centre that the corner points to."""


class CornerPairs(NamedTuple):
    """Every top-left with every bottom-right corner of each image, as boxes in pixels of it.

    What depends on one corner alone has a single entry on the other's axis.
    """

    top_left: Tensor
    """(N, K, 1, 2) x0, y0, not negative."""
    bottom_right: Tensor
    """(N, 1, K, 2) x1, y1, not negative."""
    tl_center: Tensor
    """(N, K, 1, 2) the centre that the top-left corner points to, not negative."""
    br_center: Tensor
    """(N, 1, K, 2) that of the bottom-right corner."""
    region_low: Tensor
    """(N, K, K, 2) top-left corner of the box's central region."""
    region_high: Tensor
    """(N, K, K, 2) bottom-right corner of it."""
    has_extent: Tensor
    """(N, K, K) bool, whether the box has positive width and height."""
    spread: Tensor
    """(N, K, K) area spanned by the two centres over that of the region; 1 without extent."""


class PairConditions(NamedTuple):
    """What a pair must fulfil to be a box, in the order in which it is looked at.

    (N, K, K) bool each, top-left corners by bottom-right ones.
    """

    same_class: Tensor
    """The corners are of one class."""
    has_extent: Tensor
    """The box has positive width and height."""
    tl_points_inside: Tensor
    """The top-left corner points into the box's central region."""
    br_points_inside: Tensor
    """The bottom-right corner points into it."""
    centers_are_close: Tensor
    """The two centres lie close together for the size of the region."""


class PairOutcome(IntEnum):
    """What became of a pair of corners: the first condition that it fails, or that it is a box.

    The number is that of the conditions which come before.
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
    """All pairs of corners of each image, valid or not, P of them."""

    boxes: Tensor
    """(N, P, 4) pixels of the image, x0, y0, x1, y1, not clipped to it."""
    scores: Tensor
    """(N, P) in [0, 1]; -1 marks a pair that is not a box."""
    classes: Tensor
    """(N, P) integers in [0, C)."""


class Findings(NamedTuple):
    """What the network says of one image, before soft-NMS."""

    candidates: Candidates
    """One row, the best."""
    feature: Tensor
    """(1, channels, H, W) of the last stack."""
    canvas_size: Tuple[int, int]
    """(h, w) pixels of the canvas that the feature map covers."""
    border: Tuple[int, int]
    """Pixels of the canvas to the left of the image and above it."""


class SeenCorners(NamedTuple):
    """What the detector saw of one kind of corner in one image, in pixels of the image."""

    heatmap: Tensor
    """(H, W) probability of a corner, the largest of all classes."""
    score: Tensor
    """(K,) in (0, 1), best first."""
    cls: Tensor
    """(K,) integers in [0, C)."""
    position: Tensor
    """(K, 2) x, y."""
    center: Tensor
    """(K, 2) x, y of the centre that the corner points to."""
    sampling_points: Tensor
    """(K, 9, 2) x, y of what the cross-star deformable convolution reads for the corner's cell."""


class Explanation(NamedTuple):
    """What the detector saw in one image, and what became of each pair of corners.

    Pairs are top-left corners by bottom-right ones; all positions are pixels of the image.
    """

    tl: SeenCorners
    br: SeenCorners
    map_extent: Tuple[float, float, float, float]
    """x0, y0, x1, y1 of what the heat maps cover: the canvas, which reaches beyond the image."""
    boxes: Tensor
    """(K, K, 4) x0, y0, x1, y1."""
    regions: Tensor
    """(K, K, 4) x0, y0, x1, y1 of the central regions."""
    scores: Tensor
    """(K, K) of the pairs before soft-NMS, whatever became of them."""
    spread: Tensor
    """(K, K) see :class:`CornerPairs`."""
    outcome: Tensor
    """(K, K) int64, see :class:`PairOutcome`."""
    detections: Tensor
    """(D, 2) the pairs (tl, br) that became boxes, in the order of soft-NMS."""
    detection_scores: Tensor
    """(D,) their lowered scores."""

    def count_outcomes(self, min_score: float = 0.0) -> Dict[PairOutcome, int]:
        """The number of pairs with each outcome; with ``min_score`` 0 they add up to K * K.

        Args:
            min_score: pairs with a lower score, before soft-NMS, are not counted.
        """
        counts = self.outcome[self.scores >= min_score].bincount(minlength=len(PairOutcome))
        return dict(zip(PairOutcome, counts.tolist()))
