import numpy as np
import pytest
import torch
from detectron2.data.transforms import AugInput, AugmentationList
from fvcore.transforms.transform import HFlipTransform
from test_pair_sheet import is_near, pixels

from centripetalnet.data.transforms import CropPadTransform
from centripetalnet.explain import targets_figure
from centripetalnet.explain.target_sheet import corner_marks
from centripetalnet.modeling.corner_targets import corner_targets
from centripetalnet.visualization.sheet import TL_COLOR

CANVAS, MAP = (128, 128), (32, 32)


def targets_of(boxes, classes=None):
    classes = torch.zeros(len(boxes), dtype=torch.long) if classes is None else classes
    targets = corner_targets(boxes, classes, torch.zeros_like(classes), 1, 3, CANVAS, MAP)
    return classes, targets


def test_targets_lie_at_the_corners_of_a_box_after_a_known_crop_and_flip():
    picture = np.zeros((100, 150, 3), np.uint8)
    crop = CropPadTransform(20, -10, 128, 128, (100, 150), fill=0)
    sample = AugInput(picture, boxes=np.array([[40.0, 20, 100, 70]]))
    AugmentationList([crop, HFlipTransform(128)])(sample)
    _, targets = targets_of(torch.as_tensor(sample.boxes, dtype=torch.float32))

    tl = corner_marks(targets.tl, +1, MAP, CANVAS)
    br = corner_marks(targets.br, -1, MAP, CANVAS)

    # Cropped: 20, 30, 80, 80; mirrored: 48, 30, 108, 80, with the centre at 78, 55.
    assert tl.corner[0].tolist() == pytest.approx([48, 30])
    assert br.corner[0].tolist() == pytest.approx([108, 80])
    # Cells are 4 pixels wide.
    assert tl.cell[0].tolist() == [48, 28, 52, 32]
    assert br.cell[0].tolist() == [108, 80, 112, 84]
    for marks in (tl, br):
        assert marks.guided_center[0].tolist() == pytest.approx([78, 55], abs=1e-3)
        assert marks.centripetal_center[0].tolist() == pytest.approx([78, 55], abs=1e-3)


def test_bumps_and_arrows_are_drawn_there():
    boxes = torch.tensor([[33.0, 22, 97, 102]])
    classes, targets = targets_of(boxes)

    figure = targets_figure(np.full((*CANVAS, 3), 255, np.uint8), boxes, classes, targets, MAP)

    hot, beside, empty = pixels(figure, 1, np.array([(34, 22), (38, 22), (100, 100)]) / 128, CANVAS)
    # The peak is bright yellow, the next cell is not, and distant cells show the image.
    assert (hot[..., 0] > 200).all() and (hot[..., 1] > 200).all() and (hot[..., 2] < 200).all()
    assert (beside[..., 1] < 200).all()
    assert (empty == 255).all()
    # A quarter of the way from the corner to the centre (65, 62).
    (arrow,) = pixels(figure, 3, [(41 / 128, 32 / 128)], CANVAS)
    assert is_near(arrow, TL_COLOR).any()


def test_corners_overridden_by_a_later_box_are_counted():
    boxes = torch.tensor([[33.0, 22, 97, 102], [34, 23, 60, 60]])
    classes, targets = targets_of(boxes)

    figure = targets_figure(np.zeros((*CANVAS, 3), np.uint8), boxes, classes, targets, MAP)

    texts = [x.get_text() for legend in figure.legends for x in legend.get_texts()]
    assert "overridden by a later box: 1" in texts


def test_a_sample_without_objects_is_drawn_too():
    boxes = torch.zeros(0, 4)
    classes, targets = targets_of(boxes)

    figure = targets_figure(np.zeros((*CANVAS, 3), np.uint8), boxes, classes, targets, MAP)

    assert len(figure.axes) >= 6
