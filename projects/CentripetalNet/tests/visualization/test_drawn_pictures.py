import subprocess
import sys

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances

from centripetalnet.explain import overlay_heatmap
from centripetalnet.visualization import draw_detections, draw_ground_truth, tile


def test_only_boxes_with_enough_score_are_drawn():
    image = np.zeros((60, 80, 3), np.uint8)
    instances = Instances(
        (60, 80),
        pred_boxes=Boxes(torch.tensor([[5.0, 5, 30, 30], [40, 30, 70, 50]])),
        scores=torch.tensor([0.9, 0.2]),
        pred_classes=torch.tensor([0, 0]),
    )

    none = draw_detections(image, instances, min_score=0.95)
    one = draw_detections(image, instances, min_score=0.5)
    both = draw_detections(image, instances, min_score=0.1, scale=2)

    # The second box's lower edge, where no label is drawn.
    second_edge = (slice(49, 52), slice(45, 65))
    assert not none.any()
    assert one.any() and not one[second_edge].any()
    assert both.shape == (120, 160, 3) and both[97:104, 90:130].any()


def test_masks_are_drawn_where_every_object_has_one():
    image, square = np.zeros((40, 60, 3), np.uint8), [[10, 10, 30, 10, 30, 30, 10, 30]]
    box = {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    metadata = Metadata(name="drawn", thing_classes=["thing"])

    def draw(*annotations, masks=True):
        record = {"annotations": list(annotations)}
        return draw_ground_truth(image, record, metadata, masks=masks)

    with_mask = {**box, "segmentation": square}
    boxes_alone = draw(box, masks=False)
    assert (draw(with_mask) != boxes_alone).any()
    for annotations in ([with_mask, box], [box, with_mask]):
        assert draw(*annotations).shape == image.shape


def test_tile_keeps_every_image_complete():
    sizes = [(5, 9), (8, 4), (3, 3)]

    sheet = tile([np.full((*x, 3), i, np.uint8) for i, x in enumerate(sizes)], columns=2)

    assert sheet.shape == (2 * 8 + 8, 2 * 9 + 8, 3)
    assert [int((sheet == i).all(axis=2).sum()) for i in range(3)] == [45, 32, 9]


def test_a_heatmap_is_drawn_over_the_cells_of_the_canvas_that_the_image_covers():
    image = np.full((20, 30, 3), 255, np.uint8)
    heatmap = np.zeros((8, 10), np.float32)
    heatmap[3, 4] = 1

    # The canvas is 40 x 32 pixels, its cells 4 x 4; the image begins at (5, 6) of it.
    drawn = overlay_heatmap(image, heatmap, (-5, -6, 35, 26))

    rows, columns = np.nonzero((drawn != 255).any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 9, 11, 14)


def test_only_what_draws_loads_matplotlib():
    code = "import sys, centripetalnet.engine.trainer; sys.exit('matplotlib' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
