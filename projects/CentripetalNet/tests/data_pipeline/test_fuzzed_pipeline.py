"""Targets of random images and boxes after the released training recipe."""

import numpy as np
import pytest
import torch
from conftest import config
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from centripetalnet.data import CentripetalNetDatasetMapper
from centripetalnet.layers import render_bumps
from centripetalnet.modeling.corner_targets import corner_targets

NUM_CLASSES = 3
SHIFTS = ("offset", "guiding_shift", "centripetal_shift")
# Half of the boxes are ordinary ones.
KINDS = st.sampled_from(("inside",) * 5 + ("any", "ordered", "no width", "a point", "hair"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@st.composite
def records(draw):
    """Image size and boxes, also degenerate, huge, and partly or completely outside."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    size = max(height, width)
    coordinate = st.one_of(
        st.floats(-2 * size, 3 * size),
        st.integers(-1, size + 1).map(float),
        st.sampled_from((0.0, float(width), float(height), 1e-30, -1e6, 1e6, 1e30, -1e30)),
    )
    boxes = []
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(KINDS)
        event(f"box: {kind}")
        if kind == "inside":
            box = [draw(st.floats(0, side)) for side in (width, height) * 2]
        else:
            box = [draw(coordinate) for _ in range(4)]
        if kind in ("inside", "ordered", "hair"):
            box = sorted(box[::2]) + sorted(box[1::2])
            box = [box[0], box[2], box[1], box[3]]
        if kind == "hair":
            box[2] = float(np.nextafter(box[0], np.inf))
        elif kind in ("no width", "a point"):
            box[2] = box[0]
            if kind == "a point":
                box[3] = box[1]
        boxes.append((box, draw(st.integers(0, NUM_CLASSES - 1)), draw(st.booleans())))
    return (height, width), boxes


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    record=records(),
    canvas=st.tuples(st.integers(4, 140), st.integers(4, 140)),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_target_is_on_the_map_and_finite(folder, record, canvas, seed):
    (height, width), boxes = record
    path = folder / "image.png"
    Image.fromarray(np.full((height, width, 3), 100, np.uint8)).save(path)
    annotations = [
        {
            "bbox": box if not as_size else [*box[:2], box[2] - box[0], box[3] - box[1]],
            "bbox_mode": BoxMode.XYWH_ABS if as_size else BoxMode.XYXY_ABS,
            "category_id": cls,
        }
        for box, cls, as_size in boxes
    ]
    cfg = config(INPUT__CENTER_CROP_PAD__SIZE=list(canvas), INPUT__CENTER_CROP_PAD__BORDER=30)
    mapper = CentripetalNetDatasetMapper(cfg, is_train=True)
    np.random.seed(seed)

    mapped = mapper({"file_name": str(path), "annotations": annotations})
    instances = mapped["instances"]
    map_size = tuple(-(-size // 4) for size in canvas)
    targets = corner_targets(
        instances.gt_boxes.tensor,
        instances.gt_classes,
        torch.zeros(len(instances), dtype=torch.long),
        1,
        NUM_CLASSES,
        canvas,
        map_size,
    )

    assert mapped["image"].shape == (3, *canvas) and instances.image_size == canvas
    event(f"boxes kept: {len(instances)}")
    x0, y0, x1, y1 = instances.gt_boxes.tensor.unbind(dim=1)
    assert ((x0 >= 0) & (y0 >= 0) & (x1 <= canvas[1]) & (y1 <= canvas[0])).all()
    assert ((x1 >= x0) & (y1 >= y0)).all()
    for target in (targets.tl, targets.br):
        assert ((target.cell >= 0) & (target.cell < map_size[0] * map_size[1])).all()
        _, y, x, radius = target.heatmap.bumps.unbind(dim=1)
        assert ((y >= 0) & (y < map_size[0]) & (x >= 0) & (x < map_size[1])).all()
        assert target.heatmap.plane_start[-1] == len(instances)
        heatmap = render_bumps(target.heatmap.bumps, (1, NUM_CLASSES, *map_size))
        assert heatmap.isfinite().all() and heatmap.eq(1).sum() == target.heatmap.num_positive
        for name in SHIFTS:
            assert getattr(target, name).isfinite().all()
