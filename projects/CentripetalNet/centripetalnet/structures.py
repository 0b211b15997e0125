"""What the parts of the detector hand to each other: plain tuples.

Shapes: N images, C classes, H x W the feature map, M ground-truth boxes of the whole batch, K
corners kept of each kind in an image, P candidate boxes of an image. "tl" and "br" are the top-left
and the bottom-right corner.
"""

from typing import NamedTuple, Tuple

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
