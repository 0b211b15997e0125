"""Parameters, FLOPs and activations of each part of the detector, counted by fvcore.

A FLOP is one multiply-add, as in fvcore; data sheets of processors count it as two. Batch norm
counts as two per element, although inference folds it into the convolutions, nearest upsampling as
one. ReLU, sums and comparisons are not counted; operators that fvcore cannot count are listed. An
activation is an output element of a convolution or a matrix product.
"""

from collections import Counter
from math import prod
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.modeling import FPN, Backbone
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, parameter_count
from torch import Tensor, nn

from . import CentripetalNet
from .corner_matching import find_peaks, locate_corners, match_corners
from .hourglass import StackedHourglass
from .selection import select_detections


class PartCost(NamedTuple):
    """Cost of one part of the detector for one image."""

    name: str
    parameters: int
    flops: int
    """Multiply-adds."""
    activations: int
    """Output elements of convolutions and matrix products."""


class Costs(NamedTuple):
    """Cost of the whole detector for one image."""

    parts: List[PartCost]
    canvas_size: Tuple[int, int]
    """(h, w) pixels that the network sees."""
    uncounted: Dict[str, int]
    """Operators whose FLOPs fvcore cannot count, with their number of calls."""


def _shape(value) -> List[int]:
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


class _Call(nn.Module):
    """A function on tensors with the modules that it uses, for fvcore to trace."""

    def __init__(self, function: Callable, **modules: nn.Module):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor):
        result = self.function(*inputs)
        # The tracer does not support named tuples.
        return tuple(result) if isinstance(result, tuple) else result


class _Counts:
    """FLOPs and activations of one call and of its modules."""

    def __init__(self, call: _Call, inputs: Sequence[Tensor]):
        self.flops = FlopCountAnalysis(call, tuple(inputs)).set_op_handle(**_FLOP_HANDLES)
        self.activations = ActivationCountAnalysis(call, tuple(inputs))
        for analysis in (self.flops, self.activations):
            # Instead of warnings, Costs.uncounted lists the operators.
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.tracer_warnings("none")

    def of(self, module: str = "") -> Tuple[int, int]:
        return int(self.flops.total(module)), int(self.activations.total(module))


@torch.no_grad()
def analyze(model: CentripetalNet, image_size: Tuple[int, int]) -> Costs:
    """Counts the cost of detection in one image, part by part.

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
    model.eval()
    parts: List[PartCost] = []
    uncounted = Counter()

    def run(name: str, inputs: Sequence[Tensor], function: Callable, **modules: nn.Module):
        """Adds a part; returns its output."""
        call = _Call(function, **modules)
        counts = _Counts(call, inputs)
        parts.append(PartCost(name, _parameters(*modules.values()), *counts.of()))
        uncounted.update(counts.flops.unsupported_ops())
        return function(*inputs)

    def run_hourglasses(backbone: StackedHourglass, x: Tensor) -> Tensor:
        x = run("backbone: stem", (x,), backbone.stem, stem=backbone.stem)
        num_stacks = len(backbone.hourglasses)
        for i in range(num_stacks):
            stack = nn.Sequential(backbone.hourglasses[i], backbone.out_convs[i])
            feature = run(f"backbone: stack {i + 1}", (x,), stack, stack=stack)
            if i + 1 < num_stacks:
                merges = (backbone.merge_in[i], backbone.merge_out[i], backbone.merge[i])

                def merged(x: Tensor, feature: Tensor, modules=merges) -> Tensor:
                    of_input, of_output, block = modules
                    return block(torch.relu(of_input(x) + of_output(feature)))

                name = f"backbone: between stacks {i + 1} and {i + 2}"
                modules = dict(zip(("of_input", "of_output", "block"), merges))
                x = run(name, (x, feature), merged, **modules)
        return feature

    backbone = model.backbone
    canvas, (border,) = model.test_canvas([torch.zeros(3, *image_size)])
    canvas_size = tuple(canvas.shape[-2:])
    if isinstance(backbone, StackedHourglass):
        feature = run_hourglasses(backbone, canvas)
    else:
        name = model.feature_names[-1]
        call = _Call(lambda x: backbone(x)[name], backbone=backbone)
        counts = _Counts(call, (canvas,))
        parts += _backbone_parts(backbone, counts)
        uncounted.update(counts.flops.unsupported_ops())
        feature = call(canvas)

    found: List[Tensor] = []
    for corner, branch in (("tl", model.heads[-1].tl), ("br", model.heads[-1].br)):
        pooled = run(f"{corner}: pooling", (feature,), branch.pooling, pooling=branch.pooling)
        heatmap = run(f"{corner}: heatmap", (pooled,), branch.heatmap, heatmap=branch.heatmap)
        cells = find_peaks(heatmap, model.matching).cell.flatten()
        counts = _Counts(_Call(branch.shifts_at, branch=branch), (pooled, cells))
        parts += _shift_parts(corner, branch, counts)
        uncounted.update(counts.flops.unsupported_ops())
        shifts = branch.shifts_at(pooled, cells)
        found += [heatmap, shifts.offset[None], shifts.centripetal_shift[None]]

    origin = canvas.new_tensor([border])

    def decode(*found: Tensor) -> Tensor:
        corners = []
        for (heatmap, offset, shift), inwards in ((found[:3], +1), (found[3:], -1)):
            peaks = find_peaks(heatmap, model.matching)
            size = tuple(heatmap.shape[-2:])
            corners.append(locate_corners(peaks, offset, shift, inwards, size, canvas_size))
        return tuple(
            select_detections(match_corners(*corners, origin, model.matching), model.selection)
        )

    run("decoding and soft-NMS", found, decode)
    if model.mask_head is not None:
        boxes = canvas.new_tensor([[0.0, 0.0, *canvas_size[::-1]]])
        boxes = boxes.repeat(model.selection.max_detections, 1)
        classes = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)

        def masks(feature: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
            return model.mask_head.probabilities(feature, canvas_size, boxes, classes)

        run(
            f"masks of {len(boxes)} boxes",
            (feature, boxes, classes),
            masks,
            mask_head=model.mask_head,
        )
    for name, head in zip(model.feature_names, model.heads[:-1]):
        parts.append(PartCost(f"head of {name}, training only", _parameters(head), 0, 0))
    return Costs(parts, canvas_size, dict(uncounted))


def _backbone_parts(backbone: Backbone, counts: _Counts) -> List[PartCost]:
    """One part; of an FPN two, the network below it and its own convolutions."""
    parameters, (flops, activations) = _parameters(backbone), counts.of()
    if not isinstance(backbone, FPN):
        return [PartCost("backbone", parameters, flops, activations)]
    network = PartCost(
        "backbone: network", _parameters(backbone.bottom_up), *counts.of("backbone.bottom_up")
    )
    pyramid = PartCost(
        "backbone: FPN",
        parameters - network.parameters,
        flops - network.flops,
        activations - network.activations,
    )
    return [network, pyramid]


def _shift_parts(corner: str, branch: nn.Module, counts: _Counts) -> List[PartCost]:
    """The branches that are computed at corners. The rest of the call is the cross-star part."""
    names = {
        "offset": branch.offset,
        "guiding_shift": branch.guiding_shift,
        "centripetal_shift": branch.centripetal_shift,
    }
    rest_flops, rest_activations = counts.of()
    parts = []
    for name, module in names.items():
        flops, activations = counts.of(f"branch.{name}")
        rest_flops, rest_activations = rest_flops - flops, rest_activations - activations
        title = f"{corner}: {name.replace('_', ' ')}, at corners"
        parts.append(PartCost(title, _parameters(module), flops, activations))
    cross_star = PartCost(
        f"{corner}: cross-star convolution, at corners",
        _parameters(branch.cross_star),
        rest_flops,
        rest_activations,
    )
    return [*parts[:2], cross_star, parts[2]]


def _parameters(*modules: nn.Module) -> int:
    return sum(parameter_count(module)[""] for module in modules)
