import math

import pytest
import torch
from conftest import NARROW_104, config, each_detector, finding_detector, image
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from centripetalnet.checkpoint.names import mmdet_name
from centripetalnet.modeling import (
    MATCHING_REGISTRY,
    CentripetalNetWithTTA,
    CentripetalShiftMatching,
    EmbeddingMatching,
)
from centripetalnet.modeling.corner_losses import LossOptions
from centripetalnet.modeling.corner_matching import match_corners
from centripetalnet.modeling.selection import SelectionOptions, detections_of


@pytest.fixture(scope="module")
def model():
    """A narrow Hourglass-104 that detects boxes of two classes, about eight cells wide."""
    torch.manual_seed(0)
    model = build_model(config(**NARROW_104)).eval()
    for branch in (model.heads[-1].tl, model.heads[-1].br):
        branch.heatmap[-1].weight.data *= 20
        branch.centripetal_shift[-1].bias.data[:] = math.log(4)
    return model


def assert_same_instances(actual, expected):
    assert len(actual) == len(expected)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(actual.scores, expected.scores)
    assert torch.equal(actual.pred_classes, expected.pred_classes)


@pytest.mark.parametrize(
    "name, num_values", [("centripetalnet", 205_883_932), ("cornernet", 201_161_088)]
)
def test_hourglass_104_has_the_released_names_and_shapes(golden, name, num_values):
    file = {"centripetalnet": "centripetal_hg104", "cornernet": "cornernet_hg104"}[name]
    with torch.device("meta"):
        model = build_model(config(file, MODEL__DEVICE="meta"))
    ours = {mmdet_name(name, 2): list(x.shape) for name, x in model.state_dict().items()}

    assert ours == golden(f"mmdet_keys_{name}_hourglass104.json")
    assert sum(x.numel() for x in model.state_dict().values()) == num_values


def test_vis_period_stores_ground_truth_prediction_and_heatmaps():
    torch.manual_seed(0)
    model = build_model(config(**NARROW_104, VIS_PERIOD=2)).train()
    instances = Instances(
        (255, 200), gt_boxes=Boxes(torch.tensor([[10.0, 20, 50, 60]])), gt_classes=torch.tensor([1])
    )
    inputs = [{"image": image(255, 200), "instances": instances}]

    with EventStorage(start_iter=0) as storage:
        for _ in range(3):
            model(inputs)
            storage.step()

    # At iterations 0 and 2, four figures side by side.
    assert [(step, figure.shape) for _, figure, step in storage._vis_data] == [
        (0, (3, 255, 800)),
        (2, (3, 255, 800)),
    ]
    assert model.training


@torch.no_grad()
def test_image_position_on_the_canvas_equals_the_reference(model, golden, monkeypatch):
    seen = {}

    def look(canvas):
        seen["canvas"] = canvas
        return {name: torch.zeros(1, 8, 2, 2) for name in model.feature_names}

    def note_border(tl, br, border, options):
        seen["border"] = border
        return match_corners(tl, br, border, options)

    monkeypatch.setattr(model.backbone, "forward", look)
    monkeypatch.setattr("centripetalnet.modeling.meta_arch.match_corners", note_border)
    for case in golden("center_pad.pt"):
        height, width = case["image_size"]
        pixels = image(height, width)

        model.find([pixels])

        top, _, left, _ = (int(x) for x in case["border"])
        assert tuple(seen["canvas"].shape[-2:]) == tuple(case["padded_shape"])
        assert seen["border"].tolist() == [[left, top]]
        expected = torch.zeros_like(seen["canvas"])
        expected[0, :, top : top + height, left : left + width] = (
            pixels - model.pixel_mean
        ) / model.pixel_std
        torch.testing.assert_close(seen["canvas"], expected)


@torch.no_grad()
def test_results_do_not_depend_on_the_other_images_of_a_batch(model):
    sizes = [(60, 90), (130, 40), (64, 100), (1, 1), (1, 4000)]
    inputs = [{"image": image(*size, seed=i)} for i, size in enumerate(sizes)]

    together = model(inputs)

    assert len(together[0]["instances"]) > 0
    for x, result in zip(inputs, together):
        assert_same_instances(result["instances"], model([x])[0]["instances"])


@torch.no_grad()
def test_boxes_are_scaled_to_the_wanted_size_and_clipped_to_it(model):
    pixels = image(60, 90)

    plain = model([{"image": pixels}])[0]["instances"]
    double = model([{"image": pixels, "height": 120, "width": 180}])[0]["instances"]

    assert plain.image_size == (60, 90) and double.image_size == (120, 180)
    torch.testing.assert_close(double.pred_boxes.tensor, plain.pred_boxes.tensor * 2)
    boxes = plain.pred_boxes.tensor
    assert boxes.min() >= 0 and (boxes <= torch.tensor([90, 60, 90, 60])).all()
    assert (plain.scores[:-1] >= plain.scores[1:]).all()


@torch.no_grad()
@each_detector
def test_tta_equals_views_run_one_by_one_and_merged(detector):
    model = finding_detector(detector)
    tta = CentripetalNetWithTTA(model, flip=True, scales=[1.0])
    pixels = image(70, 90)

    found = tta([{"image": pixels}])[0]["instances"]

    straight, mirrored = (model.find([x])[0].candidates for x in (pixels, pixels.flip(-1)))
    boxes = mirrored.boxes.clone()
    boxes[..., 0], boxes[..., 2] = 90 - mirrored.boxes[..., 2], 90 - mirrored.boxes[..., 0]
    merged = type(straight)(
        torch.cat((straight.boxes, boxes), 1),
        torch.cat((straight.scores, mirrored.scores), 1),
        torch.cat((straight.classes, mirrored.classes), 1),
    )
    expected = detections_of([merged], [(70, 90)], model.selection)[0]
    expected.pred_boxes.clip((70, 90))
    expected = expected[expected.pred_boxes.nonempty()]
    assert len(expected) > 10
    assert_same_instances(found, expected)


@torch.no_grad()
def test_tta_with_one_plain_view_is_the_model(model):
    inputs = [{"image": image(60, 90), "height": 30, "width": 45}]

    tta = CentripetalNetWithTTA(model, flip=False, scales=[1.0])

    assert_same_instances(tta(inputs)[0]["instances"], model(inputs)[0]["instances"])


@torch.no_grad()
def test_views_of_other_scales_give_boxes_in_the_image(model):
    tta = CentripetalNetWithTTA(model, flip=True, scales=[0.6, 1.0, 1.5])

    views = tta.views(image(60, 90))
    result = tta([{"image": image(60, 90)}])[0]["instances"]

    assert [tuple(view.image.shape[-2:]) for view in views[::2]] == [(36, 54), (60, 90), (90, 135)]
    assert result.image_size == (60, 90) and len(result) > 0
    assert (result.pred_boxes.tensor <= torch.tensor([90, 60, 90, 60])).all()


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0]])
def test_tta_refuses_scales_that_are_not_positive(model, scales):
    with pytest.raises(ValueError, match=r"TEST\.AUG\.SCALES"):
        CentripetalNetWithTTA(model, flip=True, scales=scales)


def test_options_of_the_config_are_the_released_ones(model):
    assert model.matching == CentripetalShiftMatching()
    assert model.selection == SelectionOptions()
    assert model.loss_options == LossOptions()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"MATCHING": "Nearest"}, "MATCHING must be one of CentripetalShiftMatching, Embedding"),
        ({"SHIFT_CONV": "dilated"}, "SHIFT_CONV must be one of cross_star, deformable, plain"),
        ({"GUIDING_SHIFT": False}, "SHIFT_CONV cross_star needs .*GUIDING_SHIFT True"),
        (
            {"SHIFT_CONV": "plain", "GUIDING_SHIFT": False, "GUIDING_SHIFT_WEIGHT": 0.1},
            "GUIDING_SHIFT_WEIGHT is 0.1, but .*GUIDING_SHIFT is False",
        ),
        (
            {"MATCHING": "EmbeddingMatching", "WEIGHT_SCORES": True},
            "WEIGHT_SCORES is True, but only CentripetalShiftMatching follows it",
        ),
        ({"PULL_WEIGHT": 0.2}, "PULL_WEIGHT is 0.2, but only EmbeddingMatching follows it"),
    ],
)
def test_settings_of_matching_that_are_not_followed_are_refused(changes, message):
    keys = {f"MODEL__CENTRIPETALNET__{key}": value for key, value in changes.items()}

    with pytest.raises(ValueError, match=message):
        build_model(config(**NARROW_104, **keys))


@torch.no_grad()
def test_a_third_way_of_matching_needs_only_a_registered_class():
    @MATCHING_REGISTRY.register()
    class AnyPair(EmbeddingMatching):
        """Pairs all corners of one class, whatever their embeddings."""

        def pairs(self, tl, br, border):
            pairs = super().pairs(tl, br, border)
            same_class, has_extent, is_close = pairs.conditions
            conditions = (same_class, has_extent, torch.ones_like(is_close))
            return pairs._replace(conditions=conditions)

    try:
        model = finding_detector("embedding", MODEL__CENTRIPETALNET__MATCHING="AnyPair")
    finally:
        MATCHING_REGISTRY._obj_map.pop("AnyPair")

    assert isinstance(model.matching, AnyPair)
    assert len(model([{"image": image(90, 120)}])[0]["instances"]) > 10


def test_canvas_bits_must_be_one_less_than_a_power_of_two():
    with pytest.raises(ValueError, match="TEST_CANVAS_BITS.*128"):
        build_model(config(**NARROW_104, MODEL__CENTRIPETALNET__TEST_CANVAS_BITS=128))


def test_backbone_and_head_compile_into_one_graph():
    torch._dynamo.reset()
    torch.manual_seed(0)
    shallow = {"MODEL__HOURGLASS__CHANNELS": [8, 12], "MODEL__HOURGLASS__BLOCKS": [1, 1]}
    model = build_model(config(**{**NARROW_104, **shallow})).train()
    x, cells = torch.randn(2, 3, 63, 63), torch.tensor([5, 100, 300])

    def outputs(x):
        features, result = model.backbone(x), []
        for name, head in zip(model.feature_names, model.heads):
            feature = features[name]
            pooled = head.tl.pooling(feature)
            maps = head.br(feature)
            shifts = head.tl.at_cells(pooled, cells)
            result += [head.tl.heatmap(pooled), *maps, *shifts]
        return result

    # With fullgraph a graph break is an error.
    compiled = torch.compile(outputs, fullgraph=True, backend="aot_eager")(x)

    for actual, expected in zip(compiled, outputs(x)):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    sum(x.sum() for x in compiled).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
