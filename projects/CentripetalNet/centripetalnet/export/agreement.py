"""How far the program in an exported file is from the model it came from."""

import math
from typing import Callable, List, NamedTuple, Sequence

import torch
from torch import Tensor

from ..modeling import CentripetalNet, optimize_for_inference
from ..structures import Candidates

BOX_TOLERANCE = 1e-2
"""Pixels by which boxes may differ between a file and its model."""
SCORE_TOLERANCE = 1e-4
"""The same of scores."""
# Share of the candidates. Which corner is the last one kept is a matter of rounding where the next
# one is as good; each corner is in a hundredth of the candidates, and in those of both programs.
_MAX_UNPAIRED = 0.05
# In tolerances; farther apart, two candidates are not the same pair of corners.
_SAME_PAIR = 100


class Agreement(NamedTuple):
    """How far a file's candidates of one picture are from its model's."""

    candidates: int
    """How many the model gives."""
    unpaired: int
    """Those that only one of the two gives."""
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
    """Pairs the candidates of two programs, whose order may differ where scores hardly do.

    Args:
        expected, actual: of the same picture, one row each.
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
    # Farther apart than this they are not the same pair of corners.
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
) -> List[Agreement]:
    """Compares what a file's program and its model say of pictures.

    Args:
        model: the detector that was exported.
        run: the program: (1, 3, h0, w0) to candidates, one row.
        images: (3, h0, w0) each, in [0, 255].

    Returns:
        One entry for each picture.
    """
    model = optimize_for_inference(model)
    return [
        compare(model.find([image])[0].candidates, run(image[None].float())) for image in images
    ]
