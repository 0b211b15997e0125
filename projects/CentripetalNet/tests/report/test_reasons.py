"""Each reason of a missed object and each kind of false detection, with planted corners."""

import dataclasses

import pytest
import torch
from planting import objects_of, plant, planted_detector, scenes_of

from centripetalnet.modeling import EmbeddingMatching
from centripetalnet.report.figures import gather
from centripetalnet.report.reasons import FalseDetection, Miss, false_kinds
from centripetalnet.structures import pair_outcome

BOX = (20.0, 20.0, 80.0, 80.0)
TL, BR, MIDDLE = BOX[:2], BOX[2:], (50.0, 50.0)
# Too far for IoU 0.5 with the object.
FAR = (5.0, 60.0)
BETTER = (90.0, 90.0, 120.0, 120.0, 0, 0.9)


def reasons_of(model, objects):
    """Reasons of the objects of one image at IoU 0.5 and 0.75, None for those found."""
    data, _ = gather(objects, scenes_of(model, objects))
    return [[Miss(x) if x >= 0 else None for x in row] for row in data.reason.tolist()]


@pytest.mark.parametrize(
    "reason, tl, br",
    [
        (None, [(*TL, *MIDDLE, 0, 0.8)], [(*BR, *MIDDLE, 0, 0.8)]),
        (Miss.NEITHER_CORNER_FIRED, [(*FAR, 50.0, 70.0, 0, 0.8)], []),
        (Miss.TOP_LEFT_DID_NOT_FIRE, [(*FAR, 50.0, 70.0, 0, 0.8)], [(*BR, *MIDDLE, 0, 0.8)]),
        (Miss.BOTTOM_RIGHT_DID_NOT_FIRE, [(*TL, *MIDDLE, 0, 0.8)], []),
        (Miss.OTHER_CLASS, [(*TL, *MIDDLE, 1, 0.8)], [(*BR, *MIDDLE, 1, 0.8)]),
        (Miss.TOP_LEFT_CENTRE_OUTSIDE, [(*TL, 25.0, 25.0, 0, 0.8)], [(*BR, *MIDDLE, 0, 0.8)]),
        (Miss.BOTTOM_RIGHT_CENTRE_OUTSIDE, [(*TL, *MIDDLE, 0, 0.8)], [(*BR, 75.0, 75.0, 0, 0.8)]),
        (Miss.CENTRES_APART, [(*TL, 38.0, 38.0, 0, 0.8)], [(*BR, 62.0, 62.0, 0, 0.8)]),
    ],
)
def test_the_first_condition_that_fails_is_the_reason(reason, tl, br):
    model = planted_detector()
    model.heads[-1].tl.plant(tl)
    model.heads[-1].br.plant(br)

    assert reasons_of(model, objects_of([(*BOX, 0)])) == [[reason], [reason]]


@pytest.mark.parametrize("distance, reason", [(0.4, None), (0.6, Miss.EMBEDDINGS_DIFFER)])
def test_embeddings_that_differ_are_a_reason(distance, reason):
    model = planted_detector(detector="embedding")
    model.heads[-1].tl.plant([(*TL, *MIDDLE, 0, 0.8)])
    model.heads[-1].br.plant([(*BR, MIDDLE[0] + distance, MIDDLE[1], 0, 0.8)])

    assert reasons_of(model, objects_of([(*BOX, 0)])) == [[reason], [reason]]


class OtherMatching(EmbeddingMatching):
    outcomes = pair_outcome("OtherOutcome", TOO_FAR=("too far", "Rejected: too far"))


def test_another_way_of_matching_has_one_reason_for_its_conditions():
    model = planted_detector(detector="embedding")
    model.matching = OtherMatching(**vars(model.matching))
    model.heads[-1].tl.plant([(*TL, *MIDDLE, 0, 0.8)])
    model.heads[-1].br.plant([(*BR, MIDDLE[0] + 0.6, MIDDLE[1], 0, 0.8)])

    assert reasons_of(model, objects_of([(*BOX, 0)])) == [[Miss.CORNERS_DO_NOT_MATCH]] * 2


def test_corners_of_a_tiny_object_may_cross():
    model = planted_detector()
    model.heads[-1].tl.plant([(43.0, 43.0, 44.0, 44.0, 0, 0.8)])
    model.heads[-1].br.plant([(41.0, 41.0, 40.0, 40.0, 0, 0.8)])

    assert reasons_of(model, objects_of([(40, 40, 43, 43, 0)]))[0] == [Miss.CORNERS_CROSS]


@pytest.mark.parametrize(
    "reason, limit",
    [
        (Miss.BELOW_THE_CANDIDATES_LIMIT, {"max_candidates": 1}),
        (Miss.REMOVED_BY_SOFT_NMS, {"max_detections": 1}),
    ],
)
def test_a_good_pair_may_fail_because_others_are_better(reason, limit):
    model = planted_detector()
    model.selection = dataclasses.replace(model.selection, **limit)
    plant(model, BETTER, (*BOX, 0, 0.5))

    assert reasons_of(model, objects_of([(*BOX, 0)]))[0] == [reason]


def test_an_accepted_pair_may_be_localised_worse_than_the_iou():
    model = planted_detector()
    plant(model, (25.0, 25.0, 85.0, 85.0, 0, 0.8))

    assert reasons_of(model, objects_of([(*BOX, 0)])) == [[None], [Miss.BADLY_LOCALISED]]


def test_the_detection_of_an_object_may_match_another_one():
    model = planted_detector()
    plant(model, (*BOX, 0, 0.8))

    reasons = reasons_of(model, objects_of([(*BOX, 0), (21, 21, 81, 81, 0)]))

    assert reasons == [[None, Miss.DETECTION_MATCHED_ANOTHER_OBJECT]] * 2


def test_an_object_with_a_low_score_is_not_missed():
    model = planted_detector()
    objects = objects_of([(*BOX, 0)], [(*BOX, 0)], [(*BOX, 0)])
    boxes = {0: [(*BOX, 0, 0.9)], 1: [(*BOX, 0, 0.9)], 2: [(*BOX, 0, 0.2), BETTER[:5] + (0.3,)]}
    boxes[2] += [(5.0 + 30 * i, 95.0, 30.0 + 30 * i, 120.0, 0, 0.25) for i in range(3)]

    data, _ = gather(objects, scenes_of(model, objects, lambda i: plant(model, *boxes[i])))

    assert data.score_limit == pytest.approx(0.9)
    assert data.reason[0].tolist() == [-1, -1, -1]
    assert data.low_score[0].tolist() == [-1, -1, Miss.LOW_SCORE]


# The object is BOX of class 0; another one of class 0 lies right of it.
RIGHT = (85.0, 20.0, 115.0, 80.0)


@pytest.mark.parametrize(
    "kind, box",
    [
        (FalseDetection.DUPLICATE, (29.0, 20.0, 80.0, 80.0, 0, 0.4)),
        (FalseDetection.WRONG_CLASS, (24.0, 24.0, 80.0, 80.0, 1, 0.4)),
        (FalseDetection.WRONG_PAIR, (28.0, 28.0, 115.0, 75.0, 0, 0.4)),
        (FalseDetection.BADLY_LOCALISED, (20.0, 45.0, 80.0, 70.0, 0, 0.4)),
        (FalseDetection.WRONG_CLASS_BADLY_LOCALISED, (20.0, 45.0, 80.0, 70.0, 1, 0.4)),
        (FalseDetection.BACKGROUND, (10.0, 90.0, 40.0, 120.0, 0, 0.4)),
    ],
)
def test_a_false_detection_has_its_kind(kind, box):
    model = planted_detector()
    objects = objects_of([(*BOX, 0), (*RIGHT, 0)])
    plant(model, (*BOX, 0, 0.9), (*RIGHT, 0, 0.9), box)

    data, _ = gather(objects, scenes_of(model, objects))

    is_it = (data.detections[:, :4] == torch.tensor(box[:4]).numpy()).all(axis=1)
    false = [FalseDetection(x) for x in data.kind[0][is_it] if x >= 0]
    assert data.kind[0, :2].tolist() == [-1, -1]
    assert false == [kind]


def tide(iou_of_class, iou_of_others, iou_of_found, background=0.1, threshold=0.5):
    """The kind in the words of arXiv 2008.08115 with the order of its code."""
    if background <= iou_of_class <= threshold:
        return FalseDetection.BADLY_LOCALISED
    if iou_of_others >= threshold:
        return FalseDetection.WRONG_CLASS
    if iou_of_found >= threshold:
        return FalseDetection.DUPLICATE
    if max(iou_of_class, iou_of_others) <= background:
        return FalseDetection.BACKGROUND
    return FalseDetection.WRONG_CLASS_BADLY_LOCALISED


def test_without_wrong_pairs_the_kinds_are_those_of_tide():
    generator = torch.Generator().manual_seed(0)
    iou = torch.rand(2000, 3, generator=generator)
    iou = torch.where(torch.rand(iou.shape, generator=generator) < 0.5, iou * 0.2, iou)
    same = torch.rand(iou.shape, generator=generator) < 0.5
    is_found = torch.tensor([True, False, True])
    # A detection with such an IoU with an object that is not found would have matched it.
    iou = torch.where(same & ~is_found, iou * 0.49, iou)

    kinds = false_kinds(iou, same, is_found, torch.zeros(2000, dtype=torch.bool), 0.5)

    columns = [(iou * x).amax(dim=1).tolist() for x in (same, ~same, same & is_found)]
    assert kinds.tolist() == [tide(*row) for row in zip(*columns)]
    assert set(kinds.tolist()) == set(FalseDetection) - {FalseDetection.WRONG_PAIR}


def test_detections_of_an_image_without_objects_are_background():
    none = torch.zeros(4, 0)

    kinds = false_kinds(none, none > 0, torch.zeros(0) > 0, torch.zeros(4) > 0, 0.5)

    assert kinds.tolist() == [FalseDetection.BACKGROUND] * 4
