"""FLOPs and activations of a detection, counted module by module with fvcore.

A FLOP is one multiply-add, as in fvcore. Batch norm counts as two per element, although inference
folds it into the convolutions, nearest upsampling as one. ReLU, sums and comparisons are not
counted. An activation is an output element of a convolution or a matrix product.
"""

from math import prod

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from . import CentripetalNet
from .selection import select_detections


def _embedding_bag_flops(inputs: list, outputs: list) -> int:
    """FLOPs of bilinear sampling: each index adds a weighted row of the table."""
    return prod(get_shape(inputs[1])) * get_shape(inputs[0])[1]


def _soft_nms_flops(inputs: list, outputs: list) -> int:
    """Upper bound: each round computes intersection, IoU and new score of every box."""
    num_images, num_boxes = get_shape(inputs[1])
    return 3 * num_images * num_boxes * min(int(inputs[3].toIValue()), num_boxes)


def _attention_flops(inputs: list, outputs: list) -> int:
    """Products of queries and keys, and of their result and the values."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _roi_align_flops(inputs: list, outputs: list) -> int:
    """Bilinear samples of four cells each; an adaptive sampling ratio counts as 1."""
    samples = max(1, int(inputs[5].toIValue())) ** 2
    return 4 * samples * prod(get_shape(outputs[0]))


_FLOP_HANDLES = {
    # It only compares.
    "centripetalnet::corner_pool": None,
    "centripetalnet::soft_nms": _soft_nms_flops,
    "aten::embedding_bag": _embedding_bag_flops,
    "aten::scaled_dot_product_attention": _attention_flops,
    "torchvision::roi_align": _roi_align_flops,
}


class _Detection(nn.Module):
    """An image to all that inference computes, as tensors for fvcore's tracer."""

    def __init__(self, model: CentripetalNet):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.model.find([image])
        results = tuple(select_detections(found.candidates, self.model.selection))
        head = self.model.mask_head
        if head is not None:
            # As many as there may be; where they are does not matter.
            boxes = found.feature.new_ones(self.model.selection.max_detections, 4)
            classes = boxes.new_zeros(len(boxes), dtype=torch.long)
            results += (head.probabilities(found.feature, found.canvas_size, boxes, classes),)
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
    detection, image = _Detection(model.eval()), torch.zeros(3, *image_size)
    flops = FlopCountAnalysis(detection, image).set_op_handle(**_FLOP_HANDLES)
    activations = ActivationCountAnalysis(detection, image)
    for analysis in (flops, activations):
        # Warnings would name the heads that only training uses; the command lists the operators.
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
    return flops, activations
