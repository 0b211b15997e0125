"""The graph that is exported.

Shapes: h0 x w0 the picture, h x w the canvas, P candidate boxes.
"""

import dataclasses
import json
from typing import Callable, Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modeling import CentripetalNet, optimize_for_inference
from ..modeling.corner_head import CornerPooling
from ..modeling.corner_matching import best_candidates, best_peaks, locate_corners, match_corners

INPUT = "image"
"""Name of the input in a file."""
OUTPUTS = ("boxes", "scores", "classes")
"""Names of the outputs in a file."""
EXAMPLE_SIZE = (150, 260)
"""Of the picture that is traced; nothing of it, nor of its size, is left in the file."""


class ExportedDetector(nn.Module):
    """A picture to its candidate boxes, in float32 and in operators that an export can write down.

    The numbers are those of ``CentripetalNet.find``; what of it works in place, with an operator of
    this project or on sizes as Python's integers, is done in another way here.
    """

    def __init__(self, model: CentripetalNet, corner_pool: Callable[[Tensor, str], Tensor]):
        """
        Args:
            model: on the CPU; it is left as it is.
            corner_pool: does what ``layers.corner_pool`` does.

        Raises:
            ValueError: if the smallest canvas has fewer cells than corners are kept, so that the
                number of candidates would depend on the picture.
        """
        super().__init__()
        smallest = (max(model.canvas_bits, 1) + 3) // 4
        if smallest**2 < model.matching.topk:
            raise ValueError(
                "an exported detector always gives as many candidates, but with "
                f"MODEL.CENTRIPETALNET.TEST_CANVAS_BITS {model.canvas_bits} a small picture has "
                f"{smallest**2} cells and MODEL.CENTRIPETALNET.TOPK is {model.matching.topk}: give "
                "it a larger canvas (127, as released) or fewer corners"
            )
        self.model = optimize_for_inference(model).to(memory_format=torch.contiguous_format)
        self.model.mask_head = None
        for module in self.model.modules():
            if isinstance(module, CornerPooling):
                module.corner_pool = corner_pool

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            image: (1, 3, h0, w0) float32 in [0, 255], channels in the order of the config.

        Returns:
            boxes (P, 4) x0, y0, x1, y1 in pixels of the picture, not clipped to it; scores (P,),
            best first, -1 for a place that no box took; classes (P,) int64.
        """
        model = self.model
        canvas, border = self._canvas(image)
        feature = model.backbone(canvas)[model.feature_names[-1]]
        corners = []
        for branch, inwards in ((model.heads[-1].tl, +1), (model.heads[-1].br, -1)):
            pooled = branch.pooling(feature)
            peaks = best_peaks(self._local_maxima(branch.heatmap(pooled)), model.matching.topk)
            shifts = branch.shifts_at(pooled, peaks.cell.flatten())
            corners.append(
                locate_corners(
                    peaks,
                    shifts.offset[None],
                    shifts.centripetal_shift[None],
                    inwards,
                    pooled.shape[-2:],
                    canvas.shape[-2:],
                )
            )
        found = match_corners(*corners, border, model.matching)
        found = best_candidates(found, model.selection.max_candidates)
        return found.boxes[0], found.scores[0], found.classes[0]

    def _canvas(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """The normalised picture in the middle of its canvas; (1, 2) the border left and above."""
        model = self.model
        canvas = (image - model.pixel_mean) / model.pixel_std
        border = []
        for axis in (3, 2):
            size = image.shape[axis]
            # size | bits, which no exported graph knows of sizes.
            canvas_size = size // (model.canvas_bits + 1) * (model.canvas_bits + 1)
            canvas_size = canvas_size + model.canvas_bits
            start = canvas_size // 2 - size // 2
            # Read cell by cell: torch.export would have to prove that no padding is negative.
            cell = torch.arange(canvas_size, device=image.device) - start
            inside = ((cell >= 0) & (cell < size)).to(canvas.dtype)
            canvas = canvas.index_select(axis, cell.clamp(0, size - 1))
            canvas = canvas * (inside if axis == 3 else inside[:, None])
            border.append(image.new_full((), start))
        return canvas, torch.stack(border)[None]

    def _local_maxima(self, heatmap: Tensor) -> Tensor:
        """Probability of the local maxima of (1, C, H, W) logits, 0 everywhere else."""
        kernel = self.model.matching.local_maximum_kernel
        probability = heatmap.sigmoid()
        largest = F.max_pool2d(probability, kernel, stride=1, padding=kernel // 2)
        return probability * (probability == largest)


def metadata_of(
    model: CentripetalNet, class_names: Sequence[str], min_size_test: int, max_size_test: int
) -> Dict[str, str]:
    """What a user of an exported file has to know beside its inputs and outputs.

    Args:
        model: the detector.
        class_names: of its C classes, or nothing where they are not known.
        min_size_test, max_size_test: ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``, by which an
            image is resized before it comes in.

    Returns:
        ``input_format`` "RGB" or "BGR", ``min_size_test``, ``max_size_test``, ``canvas_bits``, and
        as JSON ``class_names`` and ``soft_nms`` with the fields of ``SelectionOptions``.
    """
    return {
        "input_format": model.input_format,
        "min_size_test": str(min_size_test),
        "max_size_test": str(max_size_test),
        "canvas_bits": str(model.canvas_bits),
        "class_names": json.dumps(list(class_names)),
        "soft_nms": json.dumps(dataclasses.asdict(model.selection)),
    }


def noise(size: Tuple[int, int]) -> Tensor:
    """A random picture, the same each time.

    Args:
        size: (h0, w0).

    Returns:
        (1, 3, h0, w0) float32 in [0, 255].
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, *size), generator=generator).float()
