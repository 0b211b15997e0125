"""Why an object was missed and what a false detection is (pure functions).

Shapes: G objects of an image, crowds left out, D detections of it, K corners kept of each kind.
"""

from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.corner_targets import gaussian_radii
from ..structures import Corners

# A box whose corners are within reach of an object's has at least this IoU with it.
_IOU_IN_REACH = 0.5
# What is less overlaps no object, as in TIDE.
_BACKGROUND_IOU = 0.1


class Miss(IntEnum):
    """The first condition that failed for an object, for the pair of its corners that came furthest.

    From NO_EXTENT to ACCEPTED the values are those of ``structures.PairOutcome`` plus 3.
    """

    NO_CORNER = 0
    NO_TOP_LEFT = 1
    NO_BOTTOM_RIGHT = 2
    OTHER_CLASS = 3
    NO_EXTENT = 4
    TL_OUTSIDE = 5
    BR_OUTSIDE = 6
    FAR_APART = 7
    SCORE_TOO_LOW = 8
    SUPPRESSED = 9
    ACCEPTED = 10
    """But localised worse than the IoU."""
    OTHER_OBJECT = 11
    """A detection is exact enough, but matched another object."""
    LOW_SCORE = 12
    """Not missed: its own corners make a detection, with a low score."""


class FalseDetection(IntEnum):
    """TIDE's kinds (arXiv 2008.08115, section 2.2), and boxes from corners of two objects."""

    DUPLICATE = 0
    OTHER_CLASS = 1
    WRONG_PAIR = 2
    BADLY_LOCALISED = 3
    CLASS_AND_LOCATION = 4
    BACKGROUND = 5


def corner_reach(boxes: Tensor, cell: Tensor) -> Tensor:
    """How far a corner may be from an object's, in x and in y, to count as its.

    Args:
        boxes: (G, 4) of the objects.
        cell: (2,) width and height of a cell of the heatmap, in the same pixels.

    Returns:
        (G, 2) in x and y: the distance at which a box still has IoU 0.5, but at least a cell.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).unbind(dim=1)
    radius = gaussian_radii(height, width, _IOU_IN_REACH).amin(dim=0).to(boxes)
    return torch.maximum(radius[:, None], cell.to(boxes))


def near_corners(position: Tensor, truth: Tensor, reach: Tensor) -> Tensor:
    """(G, K) bool, which of the corners (K, 2) are within reach (G, 2) of which object's (G, 2)."""
    return ((position - truth[:, None]).abs() <= reach[:, None]).all(dim=-1)


def miss_stages(
    near: tuple[Tensor, Tensor], corners: tuple[Corners, Corners], classes: Tensor, outcome: Tensor
) -> Tensor:
    """How far each object came, whether it was found in the end or not.

    Args:
        near: (G, K) for both kinds, see :func:`near_corners`.
        corners: of both kinds, with N = 1.
        classes: (G,) of the objects.
        outcome: (K, K) ``structures.PairOutcome`` of each pair.

    Returns:
        (G,) :class:`Miss`, at most ACCEPTED.
    """
    has_tl, has_br = (x.any(dim=1) for x in near)
    tl, br = (x & (found.cls == classes[:, None]) for x, found in zip(near, corners))
    # Pairs of one class have an outcome of at least 1, NO_EXTENT.
    furthest = (outcome * (tl[:, :, None] & br[:, None])).flatten(1).amax(dim=1)
    one = has_tl * Miss.NO_BOTTOM_RIGHT + has_br * Miss.NO_TOP_LEFT
    return torch.where(has_tl & has_br, Miss.OTHER_CLASS + furthest, one)


def wrong_pairs(detections: Tensor, same: Tensor, boxes: Tensor, reach: Tensor) -> Tensor:
    """Which detections have the top-left corner of one object and the bottom-right one of another.

    Args:
        detections: (D, 4) boxes.
        same: (D, G) bool, whether detection and object have the same class; others do not count.
        boxes, reach: of the objects, see :func:`corner_reach`.

    Returns:
        (D,) bool; False if both corners are also those of one object.
    """
    tl = near_corners(detections[:, :2], boxes[:, :2], reach).T & same
    br = near_corners(detections[:, 2:], boxes[:, 2:], reach).T & same
    return tl.any(dim=1) & br.any(dim=1) & ~(tl & br).any(dim=1)


def false_kinds(
    iou: Tensor, same: Tensor, is_found: Tensor, is_wrong_pair: Tensor, threshold: float
) -> Tensor:
    """The kinds of detections that match no object.

    Args:
        iou: (D, G) of detections and objects.
        same: (D, G) bool, whether they have the same class.
        is_found: (G,) bool, whether another detection matched the object.
        is_wrong_pair: (D,) see :func:`wrong_pairs`.
        threshold: IoU of a match.

    Returns:
        (D,) :class:`FalseDetection`. The order of the tests is that of TIDE's code: what is near an
        object of its class is badly localised even if it covers one of another class. Wrong pairs
        are taken out of what TIDE calls badly localised, both, and background.
    """
    # A column of zeros, so that an image without objects is not a case of its own.
    iou, same, is_found = (F.pad(x, (0, 1)) for x in (iou, same, is_found))
    of_class = (iou * same).amax(dim=1)
    kind = torch.full_like(of_class, FalseDetection.CLASS_AND_LOCATION, dtype=torch.long)
    kind[iou.amax(dim=1) <= _BACKGROUND_IOU] = FalseDetection.BACKGROUND
    kind[(iou * same * is_found).amax(dim=1) >= threshold] = FalseDetection.DUPLICATE
    kind[(iou * ~same).amax(dim=1) >= threshold] = FalseDetection.OTHER_CLASS
    is_near = (of_class >= _BACKGROUND_IOU) & (of_class <= threshold)
    kind[is_near] = FalseDetection.BADLY_LOCALISED
    kind[is_wrong_pair & (kind >= FalseDetection.BADLY_LOCALISED)] = FalseDetection.WRONG_PAIR
    return kind
