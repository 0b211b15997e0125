import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from centripetalnet.layers import render_bumps
from centripetalnet.modeling.corner_targets import corner_targets, gaussian_radii

CORNERS = (("tl", "topleft"), ("br", "bottomright"))
SHIFTS = ("offset", "guiding_shift", "centripetal_shift")


def targets_of(
    boxes,
    classes=None,
    image_index=None,
    num_images=1,
    num_classes=1,
    canvas=(64, 64),
    map_size=(16, 16),
):
    boxes = torch.as_tensor(boxes, dtype=torch.float).reshape(-1, 4)
    none = torch.zeros(len(boxes), dtype=torch.long)
    return corner_targets(
        boxes,
        none if classes is None else torch.as_tensor(classes),
        none if image_index is None else torch.as_tensor(image_index),
        num_images,
        num_classes,
        canvas,
        map_size,
    )


def dense(heatmap, num_images=1, num_classes=1, map_size=(16, 16)):
    return render_bumps(heatmap.bumps, (num_images, num_classes, *map_size))


def as_map(target, values, num_images, map_size):
    """Dense map, as in the reference, of the values of the boxes that win their cells."""
    height, width = map_size
    dense = torch.zeros(num_images * height * width, 2)
    dense[target.cell[target.wins]] = values[target.wins]
    return dense.view(num_images, height, width, 2).permute(0, 3, 1, 2)


def test_matches_the_reference_on_edge_cases(golden):
    numbers = golden("targets_edge.pt")
    counts = [len(boxes) for boxes in numbers["gt_boxes"]]
    image_index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    targets = corner_targets(
        torch.cat(numbers["gt_boxes"]),
        torch.cat(numbers["gt_classes"]),
        image_index,
        len(counts),
        numbers["num_classes"],
        numbers["input_size"],
        numbers["map_size"],
    )

    for corner, name in CORNERS:
        target = getattr(targets, corner)
        heatmap = numbers["targets"][f"{name}_heatmap"].to_dense()
        ours = render_bumps(target.heatmap.bumps, tuple(heatmap.shape))
        torch.testing.assert_close(ours, heatmap, atol=1e-6, rtol=0)
        assert torch.equal(ours.eq(1), heatmap.eq(1))
        assert target.heatmap.num_positive == heatmap.eq(1).sum()
        planes = target.heatmap.bumps[:, 0].bincount(minlength=len(heatmap.flatten(0, 1)))
        assert torch.equal(target.heatmap.plane_start.diff(), planes)
        for shift in SHIFTS:
            torch.testing.assert_close(
                as_map(target, getattr(target, shift), len(counts), numbers["map_size"]),
                numbers["targets"][f"{name}_{shift}"].to_dense(),
                atol=1e-5,
                rtol=0,
            )


def test_of_two_boxes_on_one_cell_the_later_wins():
    boxes = [[8.0, 8, 40, 40], [9.0, 9, 60, 60], [8.0, 8, 60, 60]]

    targets = targets_of(boxes, classes=[0, 1, 0], num_classes=2)

    assert targets.tl.wins.tolist() == [False, False, True]
    assert targets.br.wins.tolist() == [True, False, True]
    assert dense(targets.tl.heatmap, num_classes=2)[0, :, 2, 2].tolist() == [1, 1]
    assert targets.tl.heatmap.num_positive == 2


def test_the_same_cell_of_two_images_is_two_cells():
    targets = targets_of([[8.0, 8, 40, 40]] * 2, image_index=[0, 1], num_images=2)

    assert targets.tl.wins.all()
    assert dense(targets.tl.heatmap, num_images=2).eq(1).sum() == 2
    assert targets.tl.heatmap.num_positive == 2


@pytest.mark.parametrize(
    "box", [[8.0, 8, 8, 40], [8.0, 8, 40, 8], [40.0, 40, 8, 8], [5.0, 5, 5, 5]]
)
def test_a_box_without_extent_gives_no_target(box):
    other = [8.0, 8.0, 40.0, 40.0]

    targets = targets_of([other, box])

    for corner, _ in CORNERS:
        target, alone = getattr(targets, corner), getattr(targets_of([other]), corner)
        assert target.wins.tolist() == [True, False]
        assert torch.equal(dense(target.heatmap), dense(alone.heatmap))
        assert target.heatmap.num_positive == 1
        assert all(torch.isfinite(getattr(target, shift)).all() for shift in SHIFTS)


def test_no_boxes_give_empty_targets():
    targets = targets_of([], num_images=2)

    assert not dense(targets.tl.heatmap, num_images=2).any()
    assert targets.tl.heatmap.num_positive == 0
    assert targets.tl.heatmap.plane_start.tolist() == [0, 0, 0]
    assert len(targets.br.cell) == 0


def test_each_radius_gives_exactly_the_overlap():
    height, width = torch.tensor([10.0, 40, 7]), torch.tensor([10.0, 12, 90])
    h, w, area = height.double(), width.double(), (height * width).double()

    shifted, inside, outside = gaussian_radii(height, width, 0.3)

    common = (h - shifted) * (w - shifted)
    overlaps = (
        common / (2 * area - common),
        (h - 2 * inside) * (w - 2 * inside) / area,
        area / ((h + 2 * outside) * (w + 2 * outside)),
    )
    for overlap in overlaps:
        torch.testing.assert_close(overlap, torch.full_like(overlap, 0.3))


@st.composite
def boxes_on_canvas(draw):
    size = draw(st.integers(4, 200)), draw(st.integers(4, 200))
    boxes = []
    for _ in range(draw(st.integers(0, 12))):
        y = sorted(draw(st.floats(0, size[0], width=32)) for _ in range(2))
        x = sorted(draw(st.floats(0, size[1], width=32)) for _ in range(2))
        boxes.append([x[0], y[0], x[1], y[1]])
    return size, boxes


@settings(deadline=None, max_examples=100)
@given(boxes_on_canvas())
def test_targets_are_finite_and_decode_to_the_box(canvas_and_boxes):
    canvas, boxes = canvas_and_boxes
    map_size = math.ceil(canvas[0] / 4), math.ceil(canvas[1] / 4)

    targets = targets_of(boxes, canvas=canvas, map_size=map_size)

    boxes = torch.as_tensor(boxes, dtype=torch.float).reshape(-1, 4)
    pixels_per_cell = torch.tensor([canvas[1] / map_size[1], canvas[0] / map_size[0]])
    for corner, sides, inwards in (("tl", slice(0, 2), 1), ("br", slice(2, 4), -1)):
        target = getattr(targets, corner)
        heatmap = dense(target.heatmap, map_size=map_size)
        assert torch.isfinite(heatmap).all() and heatmap.le(1).all()
        assert ((target.cell >= 0) & (target.cell < map_size[0] * map_size[1])).all()
        cell = torch.stack((target.cell % map_size[1], target.cell // map_size[1]), dim=1)
        position = (cell + target.offset) * pixels_per_cell
        torch.testing.assert_close(position, boxes[:, sides], atol=2e-3, rtol=0)
        for name in SHIFTS:
            assert torch.isfinite(getattr(target, name)).all()
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        pointed_to = position + inwards * target.centripetal_shift.exp() * pixels_per_cell
        torch.testing.assert_close(pointed_to[target.wins], center[target.wins], atol=2e-3, rtol=0)
