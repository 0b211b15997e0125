"""On a GPU, the CPU runs ahead and queues work. Where it waits, the GPU runs dry."""

import pytest
import torch
from conftest import each_detector, finding_detector, image, small_config
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from synchronisations import synchronisations

SIZE = (127, 127)


def batch(device):
    """(2, 3, h, w) images, one with three objects, two of them on one cell, one without."""
    boxes = torch.tensor([[10.0, 20, 60, 70], [11, 20, 60, 71], [50, 50, 120, 100]])
    instances = []
    for count in (3, 0):
        masks = torch.ones(count, *SIZE, dtype=torch.bool)
        objects = Instances(SIZE, gt_boxes=Boxes(boxes[:count]), gt_masks=BitMasks(masks))
        objects.gt_classes = torch.tensor([0, 0, 1])[:count]
        instances.append(objects.to(device))
    images = torch.stack([image(*SIZE, seed=i) for i in (0, 1)])
    return images.to(device) / 255, instances


@each_detector
@pytest.mark.parametrize("amp", [False, True])
def test_training_and_corner_matching_do_not_wait_for_the_device(detector, amp, device):
    model = build_model(small_config(detector, MODEL__DEVICE=device)).train()
    images, instances = batch(device)
    inputs = [{"image": x, "instances": y} for x, y in zip(images, instances)]
    pictures = [image(*size).to(device) for size in ((90, 120), (127, 127), (100, 200))]

    with synchronisations(device) as places:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
            losses = model.losses(images, instances, model.step_counts([inputs]))
        sum(losses.values()).backward()
        model.eval()
        with torch.no_grad():
            model.find(pictures)

    assert not places


# Functions that wait for the device on purpose, and why.
BOTH = {"_pool": "Detectron2's RoI pooler copies the number of boxes of each image"}
MASK_TRAINING = {
    **BOTH,
    "matched_proposals": "the number of decoded boxes that hit an object is the size of the batch",
    "losses": "Detectron2's mask loss logs its accuracy and crops the true masks",
}
FINAL_BOXES = {
    **BOTH,
    "detections_of": "soft-NMS leaves a different number of boxes in each image",
    "inference": "Detectron2 checks that the boxes to clip are finite",
    "scaled_to_output": "Detectron2 does so again, and drops empty boxes",
}


def test_masks_and_final_boxes_wait_for_the_device_only_where_listed(device):
    model = finding_detector("hourglass", MODEL__MASK_ON=True).to(device)
    images, instances = batch(device)
    model.mask_head.iou_threshold = 0.0

    with torch.no_grad(), synchronisations(device) as of_inference:
        model([{"image": image(100, 120).to(device)}])
    model.train()
    with EventStorage(), synchronisations(device) as of_training:
        losses = model.losses(images, instances)
        sum(losses.values()).backward()

    assert of_inference == set(FINAL_BOXES)
    assert of_training == set(MASK_TRAINING)
