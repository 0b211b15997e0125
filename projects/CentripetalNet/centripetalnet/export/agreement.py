"""Comparison of an exported file with its model."""

import math
from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from ..modeling import CentripetalNet, optimize_for_inference
from ..structures import Candidates

BOX_TOLERANCE = 1e-2
"""Largest difference in pixels between the boxes of a file and of its model."""
SCORE_TOLERANCE = 1e-4
"""Largest difference between their scores."""
# Share of the candidates. Rounding may decide which of two equally good corners is the last one
# kept. A corner is part of about 1% of the candidates, and two corners may be exchanged.
_MAX_UNPAIRED = 0.05
# In tolerances. Candidates farther apart are different pairs of corners.
_SAME_PAIR = 100


class Agreement(NamedTuple):
    """Differences between the candidates of a file and of its model in one image."""

    candidates: int
    """Number of candidates of the model."""
    unpaired: int
    """Number of candidates that only one of the two has."""
    boxes: float
    """Largest difference of a coordinate, in pixels."""
    scores: float
    """Largest difference of a score."""

    def within_tolerance(self) -> bool:
        return (
            self.boxes <= BOX_TOLERANCE
            and self.scores <= SCORE_TOLERANCE
            and self.unpaired <= _MAX_UNPAIRED * self.candidates
        )


def compare(expected: Candidates, actual: Candidates) -> Agreement:
    """Pairs the candidates of two programs, which may order similar scores differently.

    Args:
        expected, actual: of the same image, one row each.
    """
    expected, actual = (
        Candidates(*(x[0][y.scores[0] >= 0] for x in y)) for y in (expected, actual)
    )
    if not len(expected.scores) or not len(actual.scores):
        return Agreement(len(expected.scores), len(expected.scores) + len(actual.scores), 0.0, 0.0)
    boxes = (expected.boxes[:, None] - actual.boxes).abs().amax(dim=2)
    scores = (expected.scores[:, None] - actual.scores).abs()
    distance = torch.maximum(boxes / BOX_TOLERANCE, scores / SCORE_TOLERANCE)
    distance[expected.classes[:, None] != actual.classes] = math.inf
    nearest, index = distance.min(dim=1)
    paired = nearest < _SAME_PAIR
    unpaired = (~paired).sum() + (distance.amin(dim=0) >= _SAME_PAIR).sum()
    index = index[paired, None]
    return Agreement(
        candidates=len(expected.scores),
        unpaired=int(unpaired),
        boxes=float(boxes[paired].gather(1, index).max()) if len(index) else 0.0,
        scores=float(scores[paired].gather(1, index).max()) if len(index) else 0.0,
    )


@torch.no_grad()
def check_agreement(
    model: CentripetalNet, run: Callable[[Tensor], Candidates], images: Sequence[Tensor]
) -> list[Agreement]:
    """Compares the candidates of a file with those of its model.

    Args:
        model: the detector that was exported.
        run: the program in the file, from (1, 3, h0, w0) to candidates, one row.
        images: (3, h0, w0) each, in [0, 255].

    Returns:
        One entry per image.
    """
    model = optimize_for_inference(model)
    return [
        compare(model.find([image])[0].candidates, run(image[None].float())) for image in images
    ]
