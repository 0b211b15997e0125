"""The complete network against golden numbers of the reference."""

import pytest
import torch
from conftest import EMBEDDINGS, read_golden_model
from detectron2.structures import Boxes, Instances

from centripetalnet.checkpoint.names import mmdet_name, translation
from centripetalnet.modeling.corner_matching import match_corners
from centripetalnet.modeling.corner_search import find_corners
from centripetalnet.modeling.selection import best_candidates, select_detections

# Field of the predicted maps: name of the map in the reference.
MAPS = {
    "heatmap": "heat",
    "offset": "off",
    "guiding_shift": "guiding_shift",
    "centripetal_shift": "centripetal_shift",
    "embedding": "emb",
}
CORNERS = ("tl", "br")
# Loss: its name in the reference.
LOSSES = {
    "heatmap": "det_loss",
    "offset": "off_loss",
    "guiding_shift": "guiding_loss",
    "centripetal_shift": "centripetal_loss",
    "pull": "pull_loss",
    "push": "push_loss",
}
DETECTORS = {
    "CentripetalNet": ("model_tiny.pt", {}),
    # Of its four images one has a single object and one none.
    "CornerNet": ("cornernet_model.pt", EMBEDDINGS),
}


@pytest.fixture(params=list(DETECTORS))
def golden_model(golden, device, request):
    file, changes = DETECTORS[request.param]
    model, numbers = read_golden_model(golden, file, **changes)
    return model.to(device), numbers


def assert_close_to_largest(actual, expected, tolerance, scale=None):
    actual = actual.cpu()
    largest = expected.abs().max() if scale is None else scale
    # Another order of summation changes values near 1 by some units in the last place.
    noise = 8 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (actual - expected).abs().max() <= max(tolerance * largest, noise)


def assert_head_matches(output, expected, spread, stride):
    for corner in CORNERS:
        maps = getattr(output, corner)
        for ours, actual in maps._asdict().items():
            theirs, actual = MAPS[ours], actual[..., ::stride, ::stride]
            target = expected[f"{corner}_{theirs}"]
            scale = None
            if spread is not None and ours != "heatmap":
                # These maps hardly vary: relative to their magnitude any error would pass.
                scale = spread[f"{corner}_{theirs}"]
            assert_close_to_largest(actual, target, 1e-4, scale)


def losses_of(model, numbers):
    """The losses of the reference's images and boxes."""
    size = tuple(numbers["image"].shape[-2:])
    instances = [
        Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes).to(model.device)
        for boxes, classes in zip(numbers["gt_boxes"], numbers["gt_classes"])
    ]
    return model.losses(numbers["image"].to(model.device), instances)


@torch.no_grad()
def test_inference_gives_the_reference_features_and_maps(golden_model):
    model, numbers = golden_model
    model.eval()
    expected, stride = numbers["eval"], numbers["map_stride"]

    features = list(model.backbone(numbers["image"].to(model.device)).values())
    outputs = [head(feature) for head, feature in zip(model.heads, features)]

    for stack in range(2):
        if "features" in expected:
            actual = features[stack][..., ::stride, ::stride]
            assert_close_to_largest(actual, expected["features"][stack], 1e-4)
        assert_head_matches(
            outputs[stack], expected["head"][stack], expected["head_spread"][stack], stride
        )


@torch.no_grad()
def test_inference_gives_the_reference_boxes(golden_model):
    model, numbers = golden_model
    model.eval()
    size = tuple(numbers["image"].shape[-2:])
    feature = model.backbone(numbers["image"].to(model.device))["stack2"]

    corners = []
    for branch in (model.heads[-1].tl, model.heads[-1].br):
        corners.append(find_corners(branch, feature, size, model.matching).corners)
    candidates = match_corners(*corners, torch.zeros(len(feature), 2).to(feature), model.matching)
    raw = best_candidates(candidates, model.selection.max_candidates)
    final = select_detections(candidates, model.selection)

    for found, truth in ((raw, "detections_raw"), (final, "detections_nms")):
        for image, boxes in enumerate(numbers["eval"].get(truth, [])):
            valid = found.scores[image] >= 0
            ours = [x[image][valid].cpu() for x in (found.boxes, found.scores, found.classes)]
            torch.testing.assert_close(ours[0], boxes["boxes"], atol=1e-3, rtol=0)
            torch.testing.assert_close(ours[1], boxes["scores"], atol=1e-5, rtol=0)
            assert torch.equal(ours[2], boxes["classes"])


@torch.no_grad()
def test_training_mode_gives_the_reference_maps(golden_model):
    model, numbers = golden_model
    model.train()

    features = model.backbone(numbers["image"].to(model.device)).values()

    for head, feature, expected in zip(model.heads, features, numbers["train"]["head"]):
        assert_head_matches(head(feature), expected, None, numbers["map_stride"])


def test_training_gives_the_reference_losses_and_gradients(golden_model):
    model, numbers = golden_model
    model.train()
    expected = numbers["train"]

    losses = losses_of(model, numbers)
    sum(losses.values()).backward()

    assert len(losses) == len(expected["losses"])
    for name, loss in losses.items():
        theirs = LOSSES[name.removeprefix("loss_")]
        assert loss.item() == pytest.approx(sum(expected["losses"][theirs]).item(), rel=1e-4)
    parameters = dict(model.named_parameters())
    ours = translation(model.state_dict(), mmdet_name)
    assert len(expected["grad_norm"]) == len(parameters)
    for name, norm in expected["grad_norm"].items():
        gradient = parameters[ours[name]].grad.norm().item()
        assert gradient == pytest.approx(norm.item(), rel=1e-2), name


@pytest.mark.parametrize("stack", [0, 1])
def test_each_stack_has_the_reference_losses(golden_model, stack):
    model, numbers = golden_model
    model.train()
    # With one head, the sum over stacks is that stack's loss.
    model.heads, model.feature_names = model.heads[stack : stack + 1], [f"stack{stack + 1}"]

    losses = losses_of(model, numbers)

    for name, loss in losses.items():
        theirs = LOSSES[name.removeprefix("loss_")]
        assert loss.item() == pytest.approx(
            numbers["train"]["losses"][theirs][stack].item(), rel=1e-4
        )
