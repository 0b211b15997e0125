import math

import pytest
import torch

from centripetalnet.modeling import CentripetalShiftMatching, EmbeddingMatching
from centripetalnet.modeling.centripetal_shift import CornerShifts
from centripetalnet.modeling.corner_matching import (
    find_peaks,
    locate_corners,
    match_corners,
    mean_offset,
)
from centripetalnet.modeling.embedding import CornerEmbeddings, EmbeddingOutcome
from centripetalnet.modeling.selection import (
    SelectionOptions,
    best_candidates,
    select_detections,
    stack_candidates,
)
from centripetalnet.structures import Candidates, Corners, Peaks


def decode(head, canvas_size, border):
    """Candidates from the reference's dense maps."""
    corners = []
    for corner, inwards in (("tl", +1), ("br", -1)):
        heatmap = head[f"{corner}_heat"]
        peaks = find_peaks(heatmap, CentripetalShiftMatching())
        offset, shift = (
            head[f"{corner}_{name}"].permute(0, 2, 3, 1).reshape(-1, 2)[peaks.cell]
            for name in ("off", "centripetal_shift")
        )
        map_size = tuple(heatmap.shape[-2:])
        corners.append(
            locate_corners(
                peaks,
                offset,
                CornerShifts(None, None, shift),
                CentripetalShiftMatching(),
                inwards,
                map_size,
                canvas_size,
            )
        )
    return match_corners(*corners, border, CentripetalShiftMatching())


def pair(tl, br, tl_center, br_center, scores=(0.5, 0.5), classes=(0, 0)):
    """One corner of each kind."""

    def corners(position, center, score, cls):
        return Corners(
            torch.tensor([[score]]),
            torch.tensor([[cls]]),
            torch.tensor([[position]], dtype=torch.float),
            torch.tensor([[center]], dtype=torch.float),
        )

    return (
        corners(tl, tl_center, scores[0], classes[0]),
        corners(br, br_center, scores[1], classes[1]),
    )


def is_box(*args, **kwargs):
    candidates = match_corners(
        *pair(*args, **kwargs), torch.zeros(1, 2), CentripetalShiftMatching()
    )
    return bool(candidates.scores[0, 0] >= 0)


@pytest.mark.parametrize("name", ["decode.pt", "decode_dense.pt"])
def test_gives_the_reference_boxes_before_and_after_soft_nms(golden, name):
    numbers = golden(name)
    top, _, left, _ = numbers["border"].tolist()

    candidates = decode(numbers["head"], numbers["input_size"], torch.tensor([[left, top]]))
    raw = best_candidates(candidates, 1000)
    final = select_detections(candidates, SelectionOptions())

    for found, expected in ((raw, numbers["raw"]), (final, numbers["nms"])):
        valid = found.scores[0] >= 0
        torch.testing.assert_close(found.boxes[0][valid], expected["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores[0][valid], expected["scores"], atol=1e-5, rtol=0)
        assert torch.equal(found.classes[0][valid], expected["classes"])


def test_embeddings_give_the_reference_boxes(golden):
    numbers, matching = golden("cornernet_decode.pt"), EmbeddingMatching()
    top, _, left, _ = numbers["border"].tolist()
    corners = []
    for corner, inwards in (("tl", +1), ("br", -1)):
        heatmap = numbers["head"][f"{corner}_heat"]
        peaks = find_peaks(heatmap, matching)
        offset, embedding = (
            numbers["head"][f"{corner}_{name}"].permute(0, 2, 3, 1).flatten(0, 2)[peaks.cell]
            for name in ("off", "emb")
        )
        sizes = tuple(heatmap.shape[-2:]), numbers["input_size"]
        predictions = CornerEmbeddings(None, embedding)
        corners.append(locate_corners(peaks, offset, predictions, matching, inwards, *sizes))

    found = best_candidates(match_corners(*corners, torch.tensor([[left, top]]), matching), 1000)

    valid, expected = found.scores[0] >= 0, numbers["raw"]
    torch.testing.assert_close(found.boxes[0][valid], expected["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores[0][valid], expected["scores"], atol=1e-5, rtol=0)
    assert torch.equal(found.classes[0][valid], expected["classes"])


@pytest.mark.parametrize(
    "br, distance, classes, reason",
    [
        ((90, 90), 0.5, (0, 0), None),
        ((90, 90), 0.51, (0, 0), EmbeddingOutcome.EMBEDDING_DIFFERS),
        ((90, 90), -0.51, (0, 0), EmbeddingOutcome.EMBEDDING_DIFFERS),
        ((90, 5), 0.0, (0, 0), EmbeddingOutcome.NO_EXTENT),
        ((90, 90), 0.0, (0, 1), EmbeddingOutcome.OTHER_CLASS),
    ],
)
def test_corners_of_similar_embeddings_are_a_box(br, distance, classes, reason):
    tl, br = pair((10, 10), br, (0, 0), (0, 0), classes=classes)
    tl, br = (x._replace(key=torch.full((1, 1, 1), key)) for x, key in ((tl, 0.0), (br, distance)))

    conditions = EmbeddingMatching().pairs(tl, br, torch.zeros(1, 2)).conditions

    failed = [outcome for outcome, holds in zip(EmbeddingOutcome, conditions) if not holds]
    assert failed == ([] if reason is None else [reason])


def test_corners_of_different_classes_are_no_box():
    centers = ((50, 50), (50, 50))
    assert is_box((0, 0), (100, 100), *centers, classes=(1, 1))
    assert not is_box((0, 0), (100, 100), *centers, classes=(1, 0))


@pytest.mark.parametrize("br", [(0, 100), (100, 0), (-10, 100)])
def test_a_pair_without_extent_is_no_box(br):
    assert not is_box((0, 0), br, (0, 0), (0, 0))


@pytest.mark.parametrize("side, mu", [(60, 1 / 2.1), (50, 1 / 2.4)], ids=["large box", "small box"])
def test_both_centers_must_lie_strictly_inside_the_central_region(side, mu):
    middle, edge = side / 2, side / 2 * (1 + mu)
    inside, outside = (edge * 0.999, middle), (edge * 1.001, middle)
    assert is_box((0, 0), (side, side), inside, (middle, middle))
    assert is_box((0, 0), (side, side), (middle, middle), inside)
    assert not is_box((0, 0), (side, side), outside, (middle, middle))
    assert not is_box((0, 0), (side, side), (middle, middle), outside)


@pytest.mark.parametrize("area, mu", [(3510, 1 / 2.1), (3490, 1 / 2.4)])
def test_a_box_is_large_above_3500_pixels(area, mu):
    side = math.sqrt(area)
    middle = side / 2
    # Inside the region of a large box, outside that of a small one.
    between = side / 2 * (1 + (1 / 2.1 + 1 / 2.4) / 2)
    assert is_box((0, 0), (side, side), (between, middle), (middle, middle)) == (mu == 1 / 2.1)


def test_centers_must_lie_close_together():
    # The region of a 100 x 100 box is 100 / 2.1 wide; half of its area is the limit.
    limit = 100 / 2.1 * math.sqrt(0.5) / 2
    for factor, expected in ((0.999, True), (1.001, False)):
        low, high = 50 - limit * factor, 50 + limit * factor
        assert is_box((0, 0), (100, 100), (low, low), (high, high)) == expected


def test_border_is_subtracted_and_negative_coordinates_become_zero():
    tl, br = pair((10, 20), (110, 120), (59, 69), (61, 71))

    candidates = match_corners(tl, br, torch.tensor([[15.0, 20.0]]), CentripetalShiftMatching())

    assert candidates.boxes[0, 0].tolist() == [0, 0, 95, 100]
    assert candidates.scores[0, 0] == 0.5


def test_paper_weighting_lowers_the_score_by_the_spread_of_the_centers():
    corners = pair((0, 0), (100, 100), (45, 45), (55, 55), scores=(0.6, 0.8))
    spread = 10 * 10 / (100 / 2.1) ** 2

    plain, weighted = (
        match_corners(*corners, torch.zeros(1, 2), CentripetalShiftMatching(weight_scores=x))
        for x in (False, True)
    )

    assert plain.scores[0, 0].item() == pytest.approx(0.7)
    assert weighted.scores[0, 0].item() == pytest.approx(0.7 * math.exp(-spread))


def test_only_local_maxima_are_corners():
    heatmap = torch.full((2, 1, 8, 8), -9.0)
    heatmap[0, 0, 2, 2], heatmap[0, 0, 3, 3], heatmap[0, 0, 6, 6] = 2.0, 1.0, 0.0
    heatmap[1, 0, 0, 1], heatmap[1, 0, 7, 7] = 0.0, 1.0

    peaks = find_peaks(heatmap, CentripetalShiftMatching(topk=2))

    assert peaks.cell.tolist() == [[2 * 8 + 2, 6 * 8 + 6], [64 + 63, 64 + 1]]
    torch.testing.assert_close(peaks.score[0], torch.tensor([2.0, 0.0]).sigmoid())


def test_only_the_best_candidates_enter_soft_nms():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(1, 1500, 4, generator=generator) * 10
    boxes[..., 2:] += boxes[..., :2] + 1
    boxes += torch.arange(1500)[None, :, None] * 100
    scores = torch.linspace(0.9, 0.1, 1500)[None]
    candidates = Candidates(boxes, scores, torch.zeros(1, 1500, dtype=torch.long))

    options = SelectionOptions(max_detections=2000)
    final = select_detections(candidates, options)

    assert int((final.scores >= 0).sum()) == 1000
    assert torch.equal(final.boxes[0], boxes[0, :1000])


def random_candidates(count):
    boxes = torch.rand(1, count, 4) * 20
    boxes[..., 2:] += boxes[..., :2]
    return Candidates(boxes, torch.rand(1, count), torch.zeros(1, count, dtype=torch.long))


def test_images_with_different_numbers_of_candidates_are_independent():
    few, many = random_candidates(4), random_candidates(81)

    together = select_detections(stack_candidates([few, many]), SelectionOptions())

    for row, alone in enumerate((few, many)):
        expected = select_detections(alone, SelectionOptions())
        count = int((expected.scores[0] >= 0).sum())
        assert count and int((together.scores[row] >= 0).sum()) == count
        torch.testing.assert_close(together.boxes[row, :count], expected.boxes[0, :count])


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (13, 8)])
def test_corners_are_the_largest_of_their_neighbourhood(kernel, size):
    # All different.
    heatmap = torch.randperm(2 * size[0] * size[1]).view(2, 1, *size) / 100

    peaks = find_peaks(heatmap, CentripetalShiftMatching(topk=1000, local_maximum_kernel=kernel))

    largest = torch.nn.functional.max_pool2d(heatmap, kernel, stride=1, padding=kernel // 2)
    expected = (heatmap == largest).flatten().nonzero()[:, 0]
    assert sorted(peaks.cell[peaks.score > 0].tolist()) == expected.tolist()


@pytest.mark.parametrize("sigma", [0.0, -0.5, float("nan")])
def test_a_sigma_that_is_not_positive_is_an_error(sigma):
    with pytest.raises(ValueError, match=r"SOFT_NMS\.SIGMA must be positive"):
        SelectionOptions(sigma=sigma)


def test_mean_offset_is_the_centre_of_the_squared_probability_around_a_peak():
    probability = torch.full((1, 2, 5, 6), 1e-4)
    probability[0, 1, 2, 3:5] = torch.tensor([0.8, 0.4])
    # In the corner of the map only three neighbours count.
    probability[0, 0, 0, 0], probability[0, 0, 1, 0] = 0.6, 0.3
    peaks = Peaks(torch.tensor([[0.8, 0.6]]), torch.tensor([[1, 0]]), torch.tensor([[15, 0]]))

    offset = mean_offset(probability.logit(), peaks)

    expected = torch.tensor([[[0.5 + 0.4**2 / (0.8**2 + 0.4**2), 0.5], [0.5, 0.7]]])
    torch.testing.assert_close(offset, expected, atol=1e-4, rtol=0)
    # Very low probabilities have no NaN.
    assert mean_offset(torch.full((1, 2, 5, 6), -200.0), peaks).isfinite().all()
