import math

import pytest
import torch
from conftest import config, each_detector, finding_detector
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st

from centripetalnet.explain import choose_pair, explain, pair_outcomes
from centripetalnet.layers import CrossStarDeformConv, deform_conv3x3
from centripetalnet.modeling import CentripetalShiftMatching
from centripetalnet.modeling.centripetal_shift import ShiftOutcome
from centripetalnet.modeling.corner_matching import match_corners
from centripetalnet.structures import Corners

NARROW = {
    "MODEL__HOURGLASS__STEM_CHANNELS": 4,
    "MODEL__HOURGLASS__CHANNELS": [8, 8, 12],
    "MODEL__HOURGLASS__BLOCKS": [1, 1, 1],
    "MODEL__HOURGLASS__OUT_CHANNELS": 8,
    "MODEL__CENTRIPETALNET__POOL_CHANNELS": 8,
    "MODEL__CENTRIPETALNET__HEAD_CHANNELS": 8,
    "MODEL__CENTRIPETALNET__NUM_CLASSES": 2,
}


@pytest.fixture(scope="module")
def model():
    """A narrow model that detects boxes of two classes, about eight cells wide."""
    torch.manual_seed(0)
    model = build_model(config(**NARROW)).eval()
    for branch in (model.heads[-1].tl, model.heads[-1].br):
        branch.heatmap[-1].weight.data *= 20
        branch.centripetal_shift[-1].bias.data[:] = math.log(4)
    return model


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 90, 117), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def explanation(model, image):
    return explain(model, image)


def corners(position, center, cls, score=None):
    score = torch.full((1, len(cls)), 0.5) if score is None else score
    return Corners(score, torch.tensor([cls]), position[None], center[None])


def outcome_of(tl, br, tl_center, br_center, classes=(0, 0)):
    """Outcome of a single pair that does not enter soft-NMS."""
    positions = [torch.tensor([x], dtype=torch.float) for x in (tl, tl_center, br, br_center)]
    tl = corners(positions[0], positions[1], classes[:1])
    br = corners(positions[2], positions[3], classes[1:])
    conditions = CentripetalShiftMatching().pairs(tl, br, torch.zeros(1, 2)).conditions
    nothing = torch.zeros(1, 1, 1, dtype=torch.bool)
    return ShiftOutcome(int(pair_outcomes(conditions, nothing, nothing)))


# A box of 100 x 100 with its middle at (50, 50); its central region is 47.6 wide.
@pytest.mark.parametrize(
    "pair, expected",
    [
        (((0, 0), (100, 100), (50, 50), (50, 50), (0, 1)), ShiftOutcome.OTHER_CLASS),
        (((100, 0), (0, 100), (50, 50), (50, 50)), ShiftOutcome.NO_EXTENT),
        (((0, 0), (100, 100), (80, 50), (50, 50)), ShiftOutcome.TL_OUTSIDE),
        (((0, 0), (100, 100), (50, 50), (50, 20)), ShiftOutcome.BR_OUTSIDE),
        (((0, 0), (100, 100), (28, 28), (72, 72)), ShiftOutcome.FAR_APART),
        (((0, 0), (100, 100), (50, 50), (50, 50)), ShiftOutcome.SCORE_TOO_LOW),
        # If several conditions fail, the first counts.
        (((100, 0), (0, 100), (500, 50), (50, 500), (0, 1)), ShiftOutcome.OTHER_CLASS),
        (((0, 0), (100, 100), (80, 50), (20, 10)), ShiftOutcome.TL_OUTSIDE),
    ],
)
def test_the_reason_is_the_first_condition_that_fails(pair, expected):
    assert outcome_of(*pair) == expected


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(
            st.tuples(*[st.integers(-20, 120)] * 4, st.integers(0, 1)),
            min_size=2 * k,
            max_size=2 * k,
        )
    )
)
@settings(deadline=None, max_examples=100)
def test_every_pair_is_a_box_or_has_one_reason(numbers):
    kinds = []
    for rows in (numbers[::2], numbers[1::2]):
        values = torch.tensor(rows, dtype=torch.float)
        kinds.append(corners(values[:, :2], values[:, 2:4], [row[4] for row in rows]))
    tl, br = kinds
    border, matching = torch.zeros(1, 2), CentripetalShiftMatching()

    conditions = matching.pairs(tl, br, border).conditions
    is_box = match_corners(tl, br, border, matching).scores.view(1, len(numbers) // 2, -1) >= 0
    outcome = pair_outcomes(conditions, is_box, is_box)

    assert torch.equal(outcome == ShiftOutcome.ACCEPTED, is_box)
    first_failed = torch.full_like(outcome, ShiftOutcome.ACCEPTED)
    for reason in reversed(range(len(conditions))):
        first_failed[~conditions[reason]] = reason
    assert torch.equal(outcome, first_failed)


@given(st.lists(st.tuples(*[st.booleans()] * 7), min_size=1, max_size=30))
@settings(deadline=None)
def test_outcomes_add_up_to_all_pairs(rows):
    *conditions, entered, taken = torch.tensor(rows).unbind(dim=1)

    outcome = pair_outcomes(conditions, entered, taken)

    expected = [row.index(False) if False in row else ShiftOutcome.ACCEPTED for row in rows]
    assert outcome.tolist() == expected
    assert outcome.bincount(minlength=len(ShiftOutcome)).sum() == len(rows)


@each_detector
def test_explanation_agrees_with_detection(detector, image):
    model = finding_detector(detector)
    explanation = explain(model, image)
    with torch.no_grad():
        found = model([{"image": image}])[0]["instances"]

    tl, br = explanation.detections.unbind(dim=1)
    boxes = explanation.boxes[tl, br]
    boxes[:, 0::2] = boxes[:, 0::2].clamp(max=117)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(max=90)
    # Boxes outside the image are not detections.
    seen = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    assert len(found) > 10
    torch.testing.assert_close(boxes[seen], found.pred_boxes.tensor)
    torch.testing.assert_close(explanation.detection_scores[seen], found.scores)
    assert torch.equal(explanation.tl.cls[tl][seen], found.pred_classes)


def test_counts_add_up_and_agree_with_the_detections(explanation):
    counts = explanation.count_outcomes()

    assert sum(counts.values()) == 100 * 100
    assert counts[ShiftOutcome.ACCEPTED] == len(explanation.detections)
    assert sum(count > 0 for count in counts.values()) >= 5
    best = explanation.count_outcomes(min_score=0.5)
    assert sum(best.values()) == int((explanation.scores >= 0.5).sum())
    assert all(best[x] <= counts[x] for x in ShiftOutcome)


def test_boxes_beyond_max_candidates_have_too_low_a_score(model, image, explanation):
    object.__setattr__(model.selection, "max_candidates", 5)
    try:
        few = explain(model, image).count_outcomes()
    finally:
        object.__setattr__(model.selection, "max_candidates", 1000)

    all_boxes = sum(explanation.count_outcomes()[x] for x in list(ShiftOutcome)[5:])
    assert few[ShiftOutcome.SCORE_TOO_LOW] == all_boxes - 5
    assert few[ShiftOutcome.ACCEPTED] + few[ShiftOutcome.SUPPRESSED] == 5


def test_positions_are_pixels_of_the_image(explanation):
    # The canvas is 127 x 127, with the image in the middle.
    assert explanation.map_extent == (-5, -18, 122, 109)
    for seen in (explanation.tl, explanation.br):
        assert (seen.position > -20).all() and (seen.position < 130).all()
        assert seen.heatmap.max() == seen.score[0]


def test_the_best_rejected_pair_is_chosen_by_default(explanation):
    pair = choose_pair(explanation)

    could_be = explanation.outcome > ShiftOutcome.NO_EXTENT
    rejected = could_be & (explanation.outcome != ShiftOutcome.ACCEPTED)
    assert rejected[pair]
    assert explanation.scores[pair] == explanation.scores[rejected].max()


@pytest.mark.parametrize("cls", [None, 0, 1])
def test_a_pair_is_chosen_by_place_and_class(explanation, cls):
    point = torch.tensor([60.0, 45.0])

    pair = choose_pair(explanation, tuple(point.tolist()), cls)

    low, high = explanation.regions[..., :2], explanation.regions[..., 2:]
    around = ((low < point) & (point < high)).all(dim=-1)
    around &= explanation.outcome > ShiftOutcome.NO_EXTENT
    if cls is not None:
        around &= (explanation.tl.cls == cls)[:, None]
    assert around[pair]
    assert explanation.scores[pair] == explanation.scores[around].max()


def test_where_no_pair_is_around_a_point_the_nearest_is_chosen(explanation):
    pair = choose_pair(explanation, (-500.0, -500.0))

    middle = (explanation.regions[..., :2] + explanation.regions[..., 2:]) / 2
    could_be = explanation.outcome > ShiftOutcome.NO_EXTENT
    distance = (middle + 500).norm(dim=-1).masked_fill(~could_be, math.inf)
    assert distance[pair] == distance.min()


def test_a_class_without_pairs_is_an_error(explanation):
    with pytest.raises(ValueError, match=r"top-left corners is above .* same class \(7\)"):
        choose_pair(explanation, (5, 5), cls=7)


def test_sampling_points_are_what_the_convolution_reads():
    torch.manual_seed(0)
    cross_star = CrossStarDeformConv(2)
    feature = torch.randn(1, 2, 12, 15, requires_grad=True)
    shift = torch.rand(1, 2, 12, 15) * 8
    offset = cross_star.sampling_offset(shift)

    output = deform_conv3x3(feature, offset, cross_star.deform_conv.weight)
    (read,) = torch.autograd.grad(output[0, :, 5, 6].sum(), feature)
    points = cross_star.sampling_points(
        feature[:, :, 4:7, 5:8], shift[:, :, 5:6, 6:7], torch.tensor([5]), torch.tensor([6])
    ).detach()

    # Bilinear sampling reads the four cells around each point.
    expected = torch.zeros(12, 15, dtype=torch.bool)
    for x, y in points[0].floor().long().tolist():
        expected[max(y, 0) : max(y + 2, 0), max(x, 0) : max(x + 2, 0)] = True
    assert points.shape == (1, 9, 2)
    assert torch.equal(read[0].abs().sum(dim=0) > 0, expected)


def test_positions_are_in_pixels_of_the_output_size(model, image, explanation):
    # Three times as high, twice as wide.
    scaled = explain(model, image, (270, 234))

    factor = torch.tensor([2.0, 3.0])
    for seen, plain in ((scaled.tl, explanation.tl), (scaled.br, explanation.br)):
        for name in ("position", "key", "sampling_points"):
            torch.testing.assert_close(getattr(seen, name), getattr(plain, name) * factor)
    torch.testing.assert_close(scaled.boxes, explanation.boxes * factor.repeat(2))
    torch.testing.assert_close(scaled.regions, explanation.regions * factor.repeat(2))
    x0, y0, x1, y1 = explanation.map_extent
    assert scaled.map_extent == (2 * x0, 3 * y0, 2 * x1, 3 * y1)
    assert torch.equal(scaled.outcome, explanation.outcome)
    low, high = explanation.regions[tuple(explanation.detections[3])].view(2, 2)
    x, y = ((low + high) / 2).tolist()
    assert choose_pair(scaled, near=(2 * x, 3 * y)) == choose_pair(explanation, near=(x, y))
