"""Why objects (G) were missed, what false detections (D) are; K corners of each kind."""

from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.corner_targets import gaussian_radii

_IOU_IN_REACH, _BACKGROUND_IOU = 0.5, 0.1  # the second is TIDE's
# The first condition that failed for an object, for the pair of its corners that came furthest.
# LOW_SCORE: accepted, not missed.
Miss = IntEnum(
    "Miss",
    "NEITHER_CORNER_FIRED TOP_LEFT_DID_NOT_FIRE BOTTOM_RIGHT_DID_NOT_FIRE OTHER_CLASS "
    "CORNERS_CROSS TOP_LEFT_CENTRE_OUTSIDE BOTTOM_RIGHT_CENTRE_OUTSIDE CENTRES_APART "
    "EMBEDDINGS_DIFFER CORNERS_DO_NOT_MATCH BELOW_THE_CANDIDATES_LIMIT REMOVED_BY_SOFT_NMS "
    "BADLY_LOCALISED DETECTION_MATCHED_ANOTHER_OBJECT LOW_SCORE",
    start=0,
)
# Of the best pair of an object's corners, by the pair's outcome; both are in this order.
_OUTCOMES = "OTHER_CLASS NO_EXTENT TL_OUTSIDE BR_OUTSIDE FAR_APART EMBEDDING_DIFFERS UNKNOWN "
_OUTCOMES += "SCORE_TOO_LOW SUPPRESSED ACCEPTED"
_MISS_OF_OUTCOME = dict(zip(_OUTCOMES.split(), list(Miss)[Miss.OTHER_CLASS :]))
# TIDE's kinds (arXiv 2008.08115, section 2.2), and boxes from corners of two objects.
FalseDetection = IntEnum(
    "FalseDetection",
    "DUPLICATE WRONG_CLASS WRONG_PAIR BADLY_LOCALISED WRONG_CLASS_BADLY_LOCALISED BACKGROUND",
    start=0,
)


def corner_reach(boxes: Tensor, cell: Tensor) -> Tensor:
    """(G, 2) how far a corner may be from an object's, in x and y, to count as its.

    A box of such corners has IoU 0.5 with the object (G, 4). At least a cell (2,) of the heatmap.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).unbind(dim=1)
    radius = gaussian_radii(height, width, _IOU_IN_REACH).amin(dim=0).to(boxes)
    return torch.maximum(radius[:, None], cell.to(boxes))


def near_corners(position: Tensor, truth: Tensor, reach: Tensor) -> Tensor:
    """(G, K) bool, which of the corners (K, 2) are within reach (G, 2) of which object's (G, 2)."""
    return ((position - truth[:, None]).abs() <= reach[:, None]).all(dim=-1)


def miss_stages(near: tuple, corners: tuple, classes: Tensor, outcome: Tensor, names) -> Tensor:
    """(G,) :data:`Miss`, how far objects came.

    ``near`` (G, K) and :class:`Corners` of both kinds; ``outcome`` (K, K), with ``names``.
    """
    has_tl, has_br = (x.any(dim=1) for x in near)
    tl, br = (x & (found.cls == classes[:, None]) for x, found in zip(near, corners))
    of_outcome = [_MISS_OF_OUTCOME.get(x, Miss.CORNERS_DO_NOT_MATCH) for x in names]
    miss = outcome.new_tensor(of_outcome)[outcome]
    miss = torch.where(tl[:, :, None] & br[:, None], miss, Miss.OTHER_CLASS)
    furthest = miss.flatten(1).amax(dim=1)
    one = has_tl * Miss.BOTTOM_RIGHT_DID_NOT_FIRE + has_br * Miss.TOP_LEFT_DID_NOT_FIRE
    return torch.where(has_tl & has_br, furthest, one)


def wrong_pairs(detections: Tensor, same: Tensor, boxes: Tensor, reach: Tensor) -> Tensor:
    """(D,) bool: top-left corner of one object, bottom-right one of another, not both of one.

    Of the objects (G, 4) only those of the ``same`` class (D, G) as the detection (D, 4) count.
    """
    halves = slice(0, 2), slice(2, 4)
    tl, br = (near_corners(detections[:, x], boxes[:, x], reach).T & same for x in halves)
    return tl.any(dim=1) & br.any(dim=1) & ~(tl & br).any(dim=1)


def false_kinds(
    iou: Tensor, same: Tensor, is_found: Tensor, is_wrong_pair: Tensor, threshold: float
) -> Tensor:
    """The kinds of detections that match no object: (D,) :data:`FalseDetection`.

    The order is that of TIDE's code: near an object of its class is badly localised, even on one of
    another class. Wrong pairs are taken out of TIDE's badly localised, both, and background.
    ``same`` (D, G): of equal class; ``is_found`` (G,): matched with an IoU of ``threshold``.
    """
    # A column of zeros, so that an image without objects is not a case of its own.
    iou, same, is_found = (F.pad(x, (0, 1)) for x in (iou, same, is_found))
    of_class = (iou * same).amax(dim=1)
    kind = torch.full_like(of_class, FalseDetection.WRONG_CLASS_BADLY_LOCALISED, dtype=torch.long)
    kind[iou.amax(dim=1) <= _BACKGROUND_IOU] = FalseDetection.BACKGROUND
    kind[(iou * same * is_found).amax(dim=1) >= threshold] = FalseDetection.DUPLICATE
    kind[(iou * ~same).amax(dim=1) >= threshold] = FalseDetection.WRONG_CLASS
    is_near = (of_class >= _BACKGROUND_IOU) & (of_class <= threshold)
    kind[is_near] = FalseDetection.BADLY_LOCALISED
    kind[is_wrong_pair & (kind >= FalseDetection.BADLY_LOCALISED)] = FalseDetection.WRONG_PAIR
    return kind
