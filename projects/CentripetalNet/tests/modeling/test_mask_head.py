import math

import pytest
import torch
from conftest import config, each_detector, finding_detector, image
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from centripetalnet.modeling import (
    CentripetalNetWithTTA,
    meta_arch,
    optimize_for_inference,
    test_time_augmentation,
)
from centripetalnet.modeling.mask_head import InstanceMaskHead, matched_proposals

MASKS = {"MODEL__MASK_ON": True, "MODEL__ROI_MASK_HEAD__CONV_DIM": 8}
NARROW = {
    **MASKS,
    "MODEL__HOURGLASS__STEM_CHANNELS": 4,
    "MODEL__HOURGLASS__CHANNELS": [8, 12],
    "MODEL__HOURGLASS__BLOCKS": [1, 1],
    "MODEL__HOURGLASS__NUM_STACKS": 1,
    "MODEL__HOURGLASS__OUT_CHANNELS": 8,
    "MODEL__CENTRIPETALNET__POOL_CHANNELS": 8,
    "MODEL__CENTRIPETALNET__HEAD_CHANNELS": 8,
    "MODEL__CENTRIPETALNET__NUM_CLASSES": 3,
    "MODEL__ROI_MASK_HEAD__NUM_CONV": 1,
}


def narrow_model(**changes):
    torch.manual_seed(0)
    return build_model(config(**{**NARROW, **changes}))


def ellipses(height, width, boxes):
    """(M, height, width) masks that fill their boxes."""
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    distance = ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2
    return distance <= 0.25


def objects(size, boxes, classes, polygons=False):
    boxes = torch.as_tensor(boxes, dtype=torch.float).reshape(-1, 4)
    masks = BitMasks(ellipses(*size, boxes))
    if polygons:
        masks = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for box in boxes])
    return Instances(
        size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes).long(), gt_masks=masks
    )


@pytest.mark.parametrize("canvas_size", [(511, 511), (127, 255), (383, 639)])
def test_boxes_and_features_are_aligned(canvas_size):
    map_size = tuple((side + 1) // 4 for side in canvas_size)
    # Each cell of the feature map contains its own position on the canvas.
    y, x = ((torch.arange(n) + 0.5) * (side / n) for n, side in zip(map_size, canvas_size))
    feature = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
    height, width = canvas_size
    boxes = torch.tensor([[9.0, 17, 73, 101], [width - 90.0, height - 70, width - 8, height - 6]])
    head = InstanceMaskHead(config(**NARROW), 2)

    pooled = head._pool(feature, canvas_size, [Boxes(boxes)])

    bins = (torch.arange(14) + 0.5) / 14
    for box, values in zip(boxes, pooled):
        expected_x = (box[0] + bins * (box[2] - box[0])).expand(14, 14)
        expected_y = (box[1] + bins * (box[3] - box[1]))[:, None].expand(14, 14)
        cell = canvas_size[1] / map_size[1]
        assert (values[0] - expected_x).abs().max() < 0.1 * cell
        assert (values[1] - expected_y).abs().max() < 0.1 * cell


def iou(a, b):
    return (a & b).flatten(1).sum(dim=1) / (a | b).flatten(1).sum(dim=1)


@pytest.mark.parametrize("size", [(90, 120), (127, 127), (200, 333)])
@pytest.mark.parametrize("output_scale", [1.0, 1.7])
def test_perfect_boxes_and_masks_are_pasted_to_the_true_masks(size, output_scale, monkeypatch):
    """Without TTA, and as the mean over the image and its horizontal flip."""
    height, width = size
    boxes = [[3.0, 5, 19, 21], [40, 20, 80, 84], [7.3, 30.6, 36.1, 57.9]]
    truth = objects(size, boxes, [0, 2, 1])
    detections = Instances(size, pred_boxes=truth.gt_boxes, pred_classes=truth.gt_classes)
    detections.scores = torch.ones(3)
    model = narrow_model().eval()
    seen = {}

    def perfect(feature, canvas_size, boxes, classes):
        """True masks of boxes on the canvas of the image or of its horizontal flip."""
        left, top = canvas_size[1] // 2 - width // 2, canvas_size[0] // 2 - height // 2
        masks = torch.zeros(3, *canvas_size, dtype=torch.bool)
        masks[:, top : top + height, left : left + width] = (
            truth.gt_masks.tensor.flip(-1) if seen["mirrored"].pop(0) else truth.gt_masks.tensor
        )
        return BitMasks(masks).crop_and_resize(boxes, 28)[:, None].float()

    monkeypatch.setattr(model.mask_head, "probabilities", perfect)
    for module in (meta_arch, test_time_augmentation):
        monkeypatch.setattr(module, "detections_of", lambda *args: [detections])
    inputs = [
        {
            "image": image(*size),
            "height": round(height * output_scale),
            "width": round(width * output_scale),
        }
    ]
    expected = ellipses(inputs[0]["height"], inputs[0]["width"], torch.tensor(boxes) * output_scale)

    for detector, mirrored in (
        (model, [False]),
        (CentripetalNetWithTTA(model, flip=True, scales=[1.0]), [False, True]),
    ):
        seen["mirrored"] = list(mirrored)
        detections.pred_boxes = Boxes(torch.tensor(boxes))
        result = detector(inputs)[0]["instances"]

        assert result.pred_masks.shape == (3, inputs[0]["height"], inputs[0]["width"])
        assert (iou(result.pred_masks, expected) > 0.9).all()


def test_proposals_are_the_boxes_that_hit_an_object_and_the_objects_themselves():
    truth = objects((64, 64), [[10, 10, 30, 30], [40, 40, 60, 64]], [2, 0])
    boxes = torch.tensor([[11.0, 11, 31, 31], [41, 41, 61, 70], [40, 41, 60, 64], [0, 0, 9, 9]])

    proposals = matched_proposals(boxes, torch.tensor([0.5, 0.4, -1, 0.3]), truth, 0.5)

    # The third is no box, the fourth matches no object, and the second is clipped to the canvas.
    assert proposals.proposal_boxes.tensor.tolist() == [
        [11, 11, 31, 31],
        [41, 41, 61, 64],
        [10, 10, 30, 30],
        [40, 40, 60, 64],
    ]
    assert proposals.gt_classes.tolist() == [2, 0, 2, 0]
    assert torch.equal(proposals.gt_masks.tensor, truth.gt_masks.tensor[[0, 1, 0, 1]])


@pytest.mark.parametrize("polygons", [False, True])
def test_a_batch_with_and_without_objects_trains_every_weight(polygons):
    model = narrow_model().train()
    batch = [
        {"image": image(63, 63), "instances": objects((63, 63), boxes, classes, polygons)}
        for boxes, classes in (([[8, 9, 40, 50]], [1]), ([], []))
    ]

    with EventStorage():
        losses = model(batch)
        sum(losses.values()).backward()

    assert losses["loss_mask"] > 0
    assert all(p.grad.any() for p in model.mask_head.parameters())


@each_detector
def test_masks_on_every_detector_are_trained_and_have_the_output_size(detector):
    model = finding_detector(detector, INPUT__MASK_FORMAT="bitmask", **MASKS).train()
    batch = [{"image": image(63, 63), "instances": objects((63, 63), [[8, 9, 40, 50]], [1])}]

    with EventStorage():
        losses = model(batch)
        sum(losses.values()).backward()
    with torch.no_grad():
        (result,) = model.eval()([{"image": image(70, 90), "height": 140, "width": 180}])

    assert losses["loss_mask"] > 0
    assert all(p.grad.any() for p in model.mask_head.parameters())
    found = result["instances"]
    assert len(found) > 5 and found.pred_masks.shape == (len(found), 140, 180)


@pytest.mark.parametrize("reason", ["no objects", "before its first iteration"])
def test_without_samples_the_mask_loss_is_zero_and_reaches_every_weight(reason):
    start_iter = 10 if reason.startswith("before") else 0
    model = narrow_model(MODEL__CENTRIPETALNET__MASK__START_ITER=start_iter).train()
    boxes, classes = ([[8, 9, 40, 50]], [1]) if start_iter else ([], [])
    batch = [{"image": image(63, 63), "instances": objects((63, 63), boxes, classes)}] * 2

    with EventStorage(start_iter=9):
        losses = model(batch)
        sum(losses.values()).backward()

    assert losses["loss_mask"] == 0
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.grad.any() for p in model.mask_head.parameters())


def test_masks_are_trained_from_their_first_iteration_on():
    model = narrow_model(MODEL__CENTRIPETALNET__MASK__START_ITER=10).train()
    batch = [{"image": image(63, 63), "instances": objects((63, 63), [[8, 9, 40, 50]], [1])}]

    with EventStorage(start_iter=10):
        assert model(batch)["loss_mask"] > 0


def test_checkpointing_changes_neither_losses_nor_gradients_nor_statistics():
    results = []
    for checkpoint in (False, True):
        options = {"MODEL__CENTRIPETALNET__CHECKPOINT_ACTIVATIONS": checkpoint}
        model = narrow_model(**options, MODEL__HOURGLASS__NUM_STACKS=2).train()
        batch = [{"image": image(63, 63), "instances": objects((63, 63), [[8, 9, 40, 50]], [1])}]
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((losses, gradients, dict(model.named_buffers())))

    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "masks, matching", [(False, "shift"), (True, "shift"), (True, "embedding")]
)
def test_gradients_of_several_batches_are_those_of_one(masks, matching):
    frozen = {f"MODEL__{part}__NORM": "FrozenBN" for part in ("HOURGLASS", "CENTRIPETALNET")}
    # No decoded box is this good, so that masks are trained on ground-truth boxes alone.
    frozen["MODEL__CENTRIPETALNET__MASK__IOU_THRESHOLD"] = 1.1
    if matching == "embedding":
        frozen["MODEL__CENTRIPETALNET__MATCHING"] = "EmbeddingMatching"
    model = narrow_model(**frozen, MODEL__MASK_ON=masks).train()
    given = [([[8, 9, 40, 50], [2, 3, 30, 31]], [1, 0]), ([[20, 9, 60, 50]], [2]), ([], [])]
    whole = [
        {"image": image(63, 63), "instances": objects((63, 63), boxes, classes)}
        for boxes, classes in given
    ]
    batches = [whole[:2], whole[2:]], [whole[:1], whole[1:]]

    with EventStorage():
        losses = model(whole)
        sum(losses.values()).backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        for parts in batches:
            model.zero_grad()
            counts = model.step_counts(parts)
            of_parts = [model(part, counts) for part in parts]
            sum(sum(x.values()) for x in of_parts).backward()

            for name, loss in losses.items():
                torch.testing.assert_close(sum(x[name] for x in of_parts), loss)
            gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
            assert (gradients - expected).norm() <= 1e-6 * expected.norm()


def finding_model():
    return finding_detector("hourglass", **MASKS)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_masks_have_the_output_size(precision):
    model = optimize_for_inference(finding_model(), precision)

    for detector in (model, CentripetalNetWithTTA(model, flip=True, scales=[1.0, 1.5])):
        (result,) = detector([{"image": image(70, 90), "height": 140, "width": 180}])
        masks = result["instances"].pred_masks

        assert len(result["instances"]) > 5
        assert masks.shape == (len(result["instances"]), 140, 180) and masks.dtype == torch.bool


@torch.no_grad()
def test_masks_change_no_box():
    model = finding_model()
    inputs = [{"image": image(70, 90)}]
    with_masks = model(inputs)[0]["instances"]
    model.mask_head = None

    without = model(inputs)[0]["instances"]

    assert torch.equal(with_masks.pred_boxes.tensor, without.pred_boxes.tensor)
    assert torch.equal(with_masks.scores, without.scores)
    assert not without.has("pred_masks")


@torch.no_grad()
def test_an_image_without_detections_has_no_masks():
    model = finding_model()
    for branch in (model.heads[-1].tl, model.heads[-1].br):
        # Every predicted centre is far outside its box.
        branch.centripetal_shift[-1].bias.data[:] = math.log(1000)

    result = model([{"image": image(70, 90)}])[0]["instances"]

    assert len(result) == 0
    assert result.pred_masks.shape == (0, 70, 90)


def test_both_mask_configs_build():
    with torch.device("meta"):
        for name in ("centripetal_mask_hg104", "quick_schedules/centripetal_mask_tiny"):
            model = build_model(config(name, MODEL__DEVICE="meta"))
            assert model.mask_head.layers.predictor.out_channels == model.num_classes
