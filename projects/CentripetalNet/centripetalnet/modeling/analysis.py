"""FLOPs and activations of a detection, counted module by module with fvcore.

A FLOP is one multiply-add, as in fvcore; data sheets of processors count it as two. Batch norm
counts as two per element, although inference folds it into the convolutions, nearest upsampling as
one. ReLU, sums and comparisons are not counted. An activation is an output element of a convolution
or a matrix product.
"""

from math import prod

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn

from . import CentripetalNet
from .corner_matching import match_corners
from .corner_search import find_corners
from .selection import select_detections


def _shape(value) -> list[int]:
    return value.type().sizes()


def _no_flops(inputs: list, outputs: list) -> int:
    """FLOPs of corner pooling, which only compares."""
    return 0


def _embedding_bag_flops(inputs: list, outputs: list) -> int:
    """FLOPs of bilinear sampling: each index adds a weighted row of the table."""
    return prod(_shape(inputs[1])) * _shape(inputs[0])[1]


def _soft_nms_flops(inputs: list, outputs: list) -> int:
    """Upper bound: each round computes intersection, IoU and new score of every box."""
    num_images, num_boxes = _shape(inputs[1])
    return 3 * num_images * num_boxes * min(int(inputs[3].toIValue()), num_boxes)


def _attention_flops(inputs: list, outputs: list) -> int:
    """Products of queries and keys, and of their result and the values."""
    query, key, value = (_shape(x) for x in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _roi_align_flops(inputs: list, outputs: list) -> int:
    """Bilinear samples of four cells each; an adaptive sampling ratio counts as 1."""
    samples = max(1, int(inputs[5].toIValue())) ** 2
    return 4 * samples * prod(_shape(outputs[0]))


_FLOP_HANDLES = {
    "centripetalnet::corner_pool": _no_flops,
    "centripetalnet::soft_nms": _soft_nms_flops,
    "aten::embedding_bag": _embedding_bag_flops,
    "aten::scaled_dot_product_attention": _attention_flops,
    "torchvision::roi_align": _roi_align_flops,
}


class _Detection(nn.Module):
    """A canvas to all that inference computes, as tensors for fvcore's tracer."""

    def __init__(self, model: CentripetalNet):
        super().__init__()
        self.model = model

    def forward(self, canvas: Tensor) -> tuple[Tensor, ...]:
        model, (height, width) = self.model, map(int, canvas.shape[-2:])
        feature = model.backbone(canvas)[model.feature_names[-1]]
        tl, br = (
            find_corners(branch, feature, (height, width), model.matching).corners
            for branch in (model.heads[-1].tl, model.heads[-1].br)
        )
        found = match_corners(tl, br, canvas.new_zeros(1, 2), model.matching)
        results = tuple(select_detections(found, model.selection))
        if model.mask_head is not None:
            # As many as there may be.
            boxes = canvas.new_tensor([[0.0, 0.0, width, height]])
            boxes = boxes.repeat(model.selection.max_detections, 1)
            classes = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
            results += (model.mask_head.probabilities(feature, (height, width), boxes, classes),)
        return results


@torch.no_grad()
def analyze(
    model: CentripetalNet, image_size: tuple[int, int]
) -> tuple[FlopCountAnalysis, ActivationCountAnalysis]:
    """Analyses of the detection in one image, for ``fvcore.nn.flop_count_table``.

    Shifts are counted as inference computes them, at the kept corners only, and masks for the
    maximum number of detections.

    Args:
        model: as built, not optimised for inference. It is set to evaluation mode.
        image_size: (h0, w0) pixels.

    Raises:
        ValueError: if the image has no pixels.
    """
    if min(image_size) < 1:
        raise ValueError(f"the image size is {tuple(image_size)}, expected at least 1 x 1 pixels")
    canvas, _ = model.eval().test_canvas([torch.zeros(3, *image_size)])
    detection = _Detection(model)
    flops = FlopCountAnalysis(detection, canvas).set_op_handle(**_FLOP_HANDLES)
    activations = ActivationCountAnalysis(detection, canvas)
    for analysis in (flops, activations):
        # Warnings would name the heads that only training uses; the command lists the operators.
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
    return flops, activations
