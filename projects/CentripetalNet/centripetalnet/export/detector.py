"""The graph that is exported.

Shapes: h0 x w0 the image, h x w the canvas, P candidate boxes.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modeling import CentripetalNet, optimize_for_inference
from ..modeling.corner_head import CornerPooling
from ..modeling.corner_matching import Matching, best_peaks, match_corners
from ..modeling.corner_search import find_corners
from ..modeling.selection import best_candidates
from ..structures import Peaks

INPUT = "image"
"""Name of the input in a file."""
OUTPUTS = ("boxes", "scores", "classes")
"""Names of the outputs in a file."""
EXAMPLE_SIZE = (150, 260)
"""(h0, w0) of the image that is traced. The file does not depend on it."""


class ExportedDetector(nn.Module):
    """Maps an image to its candidate boxes, in float32 and with operators that can be exported.

    The results are those of ``CentripetalNet.find``. In-place operations, operators of this project
    and computations on sizes as Python integers are replaced.
    """

    def __init__(self, model: CentripetalNet, corner_pool: Callable[[Tensor, str], Tensor]):
        """
        Args:
            model: on the CPU. It is not modified.
            corner_pool: replaces ``layers.corner_pool``.

        Raises:
            ValueError: if the smallest canvas has fewer than TOPK cells. The number of candidates
                would depend on the image.
        """
        super().__init__()
        height, width = model.map_size(model.canvas_size((1, 1)))
        if height * width < model.matching.topk:
            raise ValueError(
                f"MODEL.CENTRIPETALNET.TEST_CANVAS_BITS is {model.canvas_bits}. With it a small "
                f"image has {height * width} cells, and MODEL.CENTRIPETALNET.TOPK is "
                f"{model.matching.topk}: an export needs at least TOPK cells. Set a larger canvas "
                "(127, as released) or a smaller TOPK."
            )
        self.model = optimize_for_inference(model).to(memory_format=torch.contiguous_format)
        self.model.mask_head = None
        for module in self.model.modules():
            if isinstance(module, CornerPooling):
                module.corner_pool = corner_pool

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            image: (1, 3, h0, w0) float32 in [0, 255], channels in the order of the config.

        Returns:
            boxes (P, 4) x0, y0, x1, y1 in pixels of the image, not clipped to it; scores (P,),
            best first, -1 for no box; classes (P,) int64.
        """
        model = self.model
        canvas, border = self._canvas(image)
        feature = model.backbone(canvas)[model.feature_names[-1]]
        tl, br = (
            find_corners(branch, feature, canvas.shape[-2:], model.matching, _peaks).corners
            for branch in (model.heads[-1].tl, model.heads[-1].br)
        )
        found = match_corners(tl, br, border, model.matching)
        found = best_candidates(found, model.selection.max_candidates)
        return found.boxes[0], found.scores[0], found.classes[0]

    def _canvas(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised image centred on its canvas, and (1, 2) its left and top border."""
        model = self.model
        canvas = (image - model.pixel_mean) / model.pixel_std
        multiple = max(model.backbone.size_divisibility, 1)
        border = []
        for axis in (3, 2):
            size = image.shape[axis]
            # size | bits, without the operator |, which cannot be exported for sizes.
            canvas_size = size // (model.canvas_bits + 1) * (model.canvas_bits + 1)
            canvas_size = canvas_size + model.canvas_bits
            # As CentripetalNet.test_canvas.
            canvas_size = (canvas_size + multiple - 1) // multiple * multiple
            start = canvas_size // 2 - size // 2
            # An index instead of padding: torch.export cannot prove that no padding is negative.
            cell = torch.arange(canvas_size, device=image.device) - start
            inside = ((cell >= 0) & (cell < size)).to(canvas.dtype)
            canvas = canvas.index_select(axis, cell.clamp(0, size - 1))
            canvas = canvas * (inside if axis == 3 else inside[:, None])
            border.append(image.new_full((), start))
        return canvas, torch.stack(border)[None]


def _peaks(heatmap: Tensor, matching: Matching) -> Peaks:
    """As ``find_peaks``, without operations in place."""
    kernel = matching.local_maximum_kernel
    probability = heatmap.sigmoid()
    largest = F.max_pool2d(probability, kernel, stride=1, padding=kernel // 2)
    return best_peaks(probability * (probability == largest), matching.topk)


def metadata_of(
    model: CentripetalNet, class_names: Sequence[str], min_size_test: int, max_size_test: int
) -> dict[str, str]:
    """The settings that a user of an exported file needs.

    Args:
        model: the detector.
        class_names: of its C classes, empty if they are unknown.
        min_size_test, max_size_test: ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``, by which
            images are resized before the graph.

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


def noise(size: tuple[int, int]) -> Tensor:
    """A random image, the same in each call.

    Args:
        size: (h0, w0).

    Returns:
        (1, 3, h0, w0) float32 in [0, 255].
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, *size), generator=generator).float()
