"""Boxes to targets and back: decoding perfect predictions gives the ground-truth boxes.

Conditions: no two corners of one kind on one cell of an image (a cell has one offset and one
shift), at most K corners of each kind, and boxes larger than ``SMALLEST`` pixels.
"""

import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from centripetalnet.modeling import CentripetalShiftMatching
from centripetalnet.modeling.centripetal_shift import CornerShifts
from centripetalnet.modeling.corner_matching import (
    find_peaks,
    locate_corners,
    match_corners,
)
from centripetalnet.modeling.corner_targets import corner_targets
from centripetalnet.modeling.selection import SelectionOptions, select_detections

# Smallest side in pixels, limited by float32: both predicted centres must be within side / 4.8 of
# the box's centre. Coordinates near 1400 pixels are rounded by 1e-4; some boxes of 0.001 pixels are
# lost there, none of 0.002. On a canvas of 511 pixels some boxes of 0.0001 pixels are lost, none of
# 0.0003. The size of a cell does not matter.
SMALLEST = 0.01
TOLERANCE = 0.01
NUM_CLASSES = 2
SURE = 12.0


def map_size_of(canvas):
    """(H, W) of the feature map: a quarter of the canvas, rounded up."""
    return tuple(-(-size // 4) for size in canvas)


def cells_of(boxes, canvas):
    """(2, M) cell indices of the top-left and bottom-right corners."""
    none = torch.zeros(len(boxes), dtype=torch.long)
    targets = corner_targets(boxes, none, none, 1, 1, canvas, map_size_of(canvas))
    return torch.stack((targets.tl.cell, targets.br.cell))


def perfect_candidates(boxes, classes, image_index, num_images, canvas):
    """Candidates before soft-NMS from predictions that equal the targets of these boxes."""
    map_size = map_size_of(canvas)
    height, width = map_size
    targets = corner_targets(boxes, classes, image_index, num_images, NUM_CLASSES, canvas, map_size)
    options = CentripetalShiftMatching(topk=max(len(boxes), 1))
    corners = []
    for target, inwards in ((targets.tl, +1), (targets.br, -1)):
        plane = image_index * NUM_CLASSES + classes
        heatmap = torch.full((num_images * NUM_CLASSES, height * width), -SURE)
        heatmap[plane, target.cell % (height * width)] = SURE
        maps = torch.zeros(2, num_images * height * width, 2)
        maps[:, target.cell] = torch.stack((target.offset, target.centripetal_shift))
        # Corners on neighbouring cells have equal scores, so all are local maxima.
        peaks = find_peaks(heatmap.view(num_images, NUM_CLASSES, height, width), options)
        offset, shift = maps[0][peaks.cell], maps[1][peaks.cell]
        shifts = CornerShifts(None, None, shift)
        corners.append(locate_corners(peaks, offset, shifts, options, inwards, map_size, canvas))
    return match_corners(*corners, torch.zeros(num_images, 2), options)


def found(candidates, image, cls):
    """(F, 4) boxes of one image and class with a score above 0.9."""
    sure = (candidates.scores[image] > 0.9) & (candidates.classes[image] == cls)
    return candidates.boxes[image][sure]


def distances(boxes, others):
    """(M, F) largest difference of a coordinate."""
    return (boxes[:, None] - others[None]).abs().amax(dim=-1)


# Inference has multiples of 128 minus 1; users may set any size.
SIZES = st.one_of(st.sampled_from((127, 255, 511)), st.integers(16, 300), st.integers(300, 1407))


@st.composite
def scenes(draw, max_boxes=8):
    """Canvas, number of images, boxes without shared corner cells, classes, image indices."""
    canvas = draw(SIZES), draw(SIZES)
    limits = torch.tensor([canvas[1], canvas[0]] * 2, dtype=torch.float32)
    num_images = draw(st.integers(1, 2))
    kind = draw(st.sampled_from(("any", "any", "same centre", "neighbours", "tiny", "edge")))
    event(f"boxes: {kind}")
    fraction = st.floats(0, 1, width=32)

    def box():
        """x0, y0, x1, y1 in pixels."""
        x, y = draw(fraction) * canvas[1], draw(fraction) * canvas[0]
        if kind == "tiny":
            w, h = (draw(st.floats(2 * SMALLEST, 5)) for _ in range(2))
            return [x, y, x + w, y + h]
        if kind == "edge":
            ends = [x, y, draw(fraction) * canvas[1], draw(fraction) * canvas[0]]
            for i in draw(st.sets(st.integers(0, 3), min_size=1)):
                ends[i] = 0.0 if i < 2 else float(canvas[3 - i])
            return ends
        return [x, y, draw(fraction) * canvas[1], draw(fraction) * canvas[0]]

    rows = [box()]
    for _ in range(draw(st.integers(0, max_boxes - 1))):
        if kind == "same centre":
            factor = draw(st.floats(0.05, 1))
            x0, y0, x1, y1 = rows[0]
            mid_x, mid_y = (x0 + x1) / 2, (y0 + y1) / 2
            w, h = (x1 - x0) * factor, (y1 - y0) * factor
            rows.append([mid_x - w / 2, mid_y - h / 2, mid_x + w / 2, mid_y + h / 2])
        elif kind == "neighbours":
            step = [4.5 * draw(st.integers(-2, 2)) for _ in range(4)]
            rows.append([a + b for a, b in zip(rows[-1], step)])
        else:
            rows.append(box())
    boxes = torch.tensor(rows, dtype=torch.float32)
    low, high = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    boxes = torch.minimum(torch.cat((low, high), dim=1).clamp(min=0), limits)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > SMALLEST).all(dim=1)]
    # No two corners of one kind on one cell, also after mirroring and across images.
    for view in (boxes, mirrored(boxes, canvas[1])):
        kept = []
        cells = cells_of(view, canvas)
        for i in range(len(boxes)):
            if all((cells[:, i] != cells[:, j]).all() for j in kept):
                kept.append(i)
        if view is boxes:
            first = set(kept)
    boxes = boxes[[i for i in kept if i in first]]
    assume(len(boxes))
    event(f"number of boxes: {len(boxes)}")
    count = len(boxes)
    classes = draw(st.lists(st.integers(0, NUM_CLASSES - 1), min_size=count, max_size=count))
    if draw(st.booleans()):
        classes = [classes[0]] * count
    images = draw(st.lists(st.integers(0, num_images - 1), min_size=count, max_size=count))
    return canvas, num_images, boxes, torch.tensor(classes), torch.tensor(images)


def mirrored(boxes, width):
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return torch.stack((width - x1, y0, width - x0, y1), dim=1)


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, **QUIET)
@given(scenes())
def test_no_box_is_lost_between_its_targets_and_the_candidates(scene):
    canvas, num_images, boxes, classes, images = scene

    candidates = perfect_candidates(boxes, classes, images, num_images, canvas)

    for i, box in enumerate(boxes):
        others = found(candidates, images[i], classes[i])
        assert len(others) and distances(box[None], others).min() <= TOLERANCE


@settings(max_examples=50, **QUIET)
@given(scenes())
def test_boxes_that_do_not_overlap_are_all_detected(scene):
    canvas, num_images, boxes, classes, images = scene
    apart = []
    for i, box in enumerate(boxes):
        low = torch.maximum(boxes[apart, :2], box[:2])
        high = torch.minimum(boxes[apart, 2:], box[2:])
        if not (high > low).all(dim=1).any():
            apart.append(i)
    boxes, classes, images = boxes[apart], classes[apart], images[apart]

    candidates = perfect_candidates(boxes, classes, images, num_images, canvas)
    detections = select_detections(candidates, SelectionOptions())

    for i, box in enumerate(boxes):
        others = found(detections, images[i], classes[i])
        assert len(others) and distances(box[None], others).min() <= TOLERANCE


@settings(max_examples=50, **QUIET)
@given(scenes())
def test_mirrored_boxes_are_decoded_to_mirrored_candidates(scene):
    canvas, num_images, boxes, classes, images = scene
    # With several boxes of one class, corners of different boxes may match, and mirroring changes
    # these pairs. So this test has one box per class and image.
    group = images * NUM_CLASSES + classes
    first = [i for i in range(len(group)) if group[i] not in group[:i]]
    boxes, classes, images = boxes[first], classes[first], images[first]

    plain = perfect_candidates(boxes, classes, images, num_images, canvas)
    flipped = perfect_candidates(mirrored(boxes, canvas[1]), classes, images, num_images, canvas)

    for image in range(num_images):
        for cls in range(NUM_CLASSES):
            expected = mirrored(found(plain, image, cls), canvas[1])
            actual = found(flipped, image, cls)
            assert len(actual) == len(expected)
            torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)
