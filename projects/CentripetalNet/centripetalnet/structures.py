"""Named tuples that the parts of the detector exchange.

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch, K
corners kept of each kind in an image, P candidate boxes of an image. "tl" and "br" are the top-left
and the bottom-right corner.
"""

from enum import IntEnum
from typing import NamedTuple, Optional

from torch import Tensor


class HeadOutput(NamedTuple):
    """Maps of the two corners of one stack, named tuples of the way of matching."""

    tl: tuple[Tensor, ...]
    br: tuple[Tensor, ...]


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
    image_index: Tensor
    """(M,) integers in [0, N), the image of each box."""
    usable: Tensor
    """(M,) bool: the box has positive width and height. Others have no target."""


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
    key: Tensor
    """(N, K, D) what the way of matching compares: with centripetal shifts the centre that the
    corner points to, in pixels of the canvas, x then y; with embeddings the embedding, D = 1."""


class PairOutcome(IntEnum):
    """Outcome of a pair of corners: the first condition that fails, or ACCEPTED.

    Each way of matching has its own, from :func:`pair_outcome`. The value is the number of
    conditions before it, all of which hold.
    """

    label: str
    sentence: str

    def __new__(cls, label: str, sentence: str):
        value = len(cls.__members__)
        member = int.__new__(cls, value)
        member._value_, member.label, member.sentence = value, label, sentence
        return member


def pair_outcome(name: str, **reasons: tuple[str, str]) -> type[PairOutcome]:
    """The outcomes of a way of matching: the common ones, and its own in between.

    Args:
        name: of the class.
        reasons: for each condition of its own, in the order of evaluation, the label, and the
            sentence for a pair that it rejects, with ``{distance}`` for its distance.
    """
    members = {
        "OTHER_CLASS": ("other class", "Rejected: the corners are of different classes"),
        "NO_EXTENT": ("no extent", "Rejected: bottom-right is not below and right of top-left"),
        **reasons,
        "SCORE_TOO_LOW": ("score too low", "Rejected: too many boxes have higher scores"),
        "SUPPRESSED": ("removed by soft-NMS", "Removed by soft-NMS, overlaps better boxes"),
        "ACCEPTED": ("accepted", "Accepted, score {score:.2f} after soft-NMS"),
    }
    return PairOutcome(name, members)


class CornerPairs(NamedTuple):
    """All top-left x bottom-right pairs of each image, as boxes in pixels of the image.

    Values that depend on one corner only have size 1 on the other's axis, for broadcasting.
    """

    top_left: Tensor
    """(N, K, 1, 2) x0, y0, not negative."""
    bottom_right: Tensor
    """(N, 1, K, 2) x1, y1, not negative."""
    scores: Tensor
    """(N, K, K) in (0, 1), of boxes and of pairs that are none."""
    conditions: tuple[Tensor, ...]
    """(N, K, K) bool each, in the order of the way's :class:`PairOutcome`. A pair is a box if all
    hold."""
    distance: Tensor
    """(N, K, K) what the way of matching limits: with centripetal shifts the area spanned by both
    centres over that of the central region, 1 without extent; with embeddings their difference."""
    region: Optional[tuple[Tensor, Tensor]]
    """(N, K, K, 2) low and high corner of the central region, if the way of matching has one."""


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
    key: Tensor
    """(K, D) see :class:`Corners`; the centre that a corner points to is in pixels of the image."""
    sampling_points: Optional[Tensor]
    """(K, 9, 2) x, y of the sampling points of the deformable convolution; None without one."""


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
    regions: Optional[Tensor]
    """(K, K, 4) x0, y0, x1, y1 of the central regions, if the way of matching has them."""
    scores: Tensor
    """(K, K) scores of all pairs before soft-NMS, boxes or not."""
    distance: Tensor
    """(K, K) see :class:`CornerPairs`."""
    outcomes: type[PairOutcome]
    """Of the way of matching."""
    outcome: Tensor
    """(K, K) int64 of ``outcomes``."""
    detections: Tensor
    """(D, 2) indices (tl, br) of the accepted pairs, in the order of soft-NMS."""
    detection_scores: Tensor
    """(D,) scores of the accepted pairs after soft-NMS."""

    def count_outcomes(self, min_score: float = 0.0) -> dict[PairOutcome, int]:
        """Counts pairs by outcome; with ``min_score`` 0 the counts add up to K * K.

        Args:
            min_score: pairs with a lower score, before soft-NMS, are not counted.
        """
        counts = self.outcome[self.scores >= min_score].bincount(minlength=len(self.outcomes))
        return dict(zip(self.outcomes, counts.tolist()))
