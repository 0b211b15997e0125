"""Explains a detection: corners, their shifts, and the outcome of every pair of corners.

The conditions are those of ``corner_matching``, so explanation and detection agree. Shapes: K
corners kept of each kind, H x W the feature map, h x w the canvas.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from ..modeling import CentripetalNet
from ..modeling.corner_head import CornerBranch
from ..modeling.corner_matching import pairs_to_candidates
from ..modeling.corner_search import find_corners
from ..modeling.selection import SelectionOptions, select_indices
from ..structures import Candidates, Corners, Explanation, SeenCorners


def pair_outcomes(conditions: Sequence[Tensor], entered: Tensor, taken: Tensor) -> Tensor:
    """The outcome of each pair, see :class:`PairOutcome`.

    Args:
        conditions: see :class:`CornerPairs`; any shape, the same for all.
        entered: bool of that shape, whether the pair entered soft-NMS.
        taken: bool of that shape, whether soft-NMS selected it.

    Returns:
        int64 of that shape: the number of conditions that hold before the first that fails.
    """
    fulfilled = torch.stack((*conditions, entered, taken)).long()
    return fulfilled.cumprod(dim=0).sum(dim=0)


class SelectedCandidates(NamedTuple):
    """What soft-NMS does with the P candidates of one image, of which D become detections."""

    entered: Tensor
    """(P,) bool: is a box and enters soft-NMS."""
    taken: Tensor
    """(P,) bool: becomes a detection."""
    order: Tensor
    """(D,) indices of these, in the order of soft-NMS."""
    scores: Tensor
    """(D,) their scores after soft-NMS."""


def select_candidates(candidates: Candidates, options: SelectionOptions) -> SelectedCandidates:
    """Says of each candidate whether it enters soft-NMS and whether it becomes a detection.

    Args:
        candidates: with N = 1.
        options: see :class:`SelectionOptions`.
    """
    entered, taken, scores = (x[0] for x in select_indices(candidates, options))
    is_box = candidates.scores[0] >= 0
    order, none = taken[scores >= 0], torch.zeros_like(is_box)
    return SelectedCandidates(
        none.index_fill(0, entered, True) & is_box,
        none.index_fill(0, order, True),
        order,
        scores[scores >= 0],
    )


def choose_pair(
    explanation: Explanation,
    near: Optional[tuple[float, float]] = None,
    cls: Optional[int] = None,
) -> tuple[int, int]:
    """Chooses the most informative pair.

    A pair could be a box if its corners have the same class and its width and height are positive.
    Without ``near``: the rejected pair with the highest score among those that could be boxes; if
    there is none, the best rejected pair; if no pair is rejected, the best pair. With ``near``: the
    pair with the highest score among those that could be boxes and whose central region contains
    the point; if there is none, the one whose region's middle is nearest. Without central regions,
    the boxes take their place.

    Args:
        explanation: from :func:`explain`.
        near: x, y in pixels of the image.
        cls: in [0, C), restricts the choice to pairs of this class that could be boxes.

    Returns:
        Indices of the top-left and the bottom-right corner, both in [0, K).

    Raises:
        ValueError: if ``near`` or ``cls`` is given and no pair could be a box.
    """
    outcome, scores = explanation.outcome, explanation.scores
    could_be = outcome > explanation.outcomes.NO_EXTENT
    if cls is not None:
        could_be = could_be & (explanation.tl.cls == cls)[:, None]
    rejected = outcome < explanation.outcomes.ACCEPTED
    if near is None and cls is None:
        choices = [could_be & rejected, rejected, torch.ones_like(rejected)]
        return _highest(scores, next(x for x in choices if x.any()))
    if not could_be.any():
        raise ValueError(
            "none of the kept top-left corners is above and to the left of a kept bottom-right "
            "corner of the same class" + ("" if cls is None else f" ({cls})")
        )
    if near is None:
        return _highest(scores, could_be & rejected if (could_be & rejected).any() else could_be)
    regions = explanation.boxes if explanation.regions is None else explanation.regions
    point = regions.new_tensor(near)
    low, high = regions[..., :2], regions[..., 2:]
    around = could_be & ((low <= point) & (point <= high)).all(dim=-1)
    if around.any():
        return _highest(scores, around)
    return _highest(-((low + high) / 2 - point).square().sum(dim=-1), could_be)


def _highest(values: Tensor, allowed: Tensor) -> tuple[int, int]:
    index = int(values.masked_fill(~allowed, -math.inf).argmax())
    return divmod(index, values.shape[1])


@torch.no_grad()
def explain(
    model: CentripetalNet, image: Tensor, output_size: Optional[tuple[int, int]] = None
) -> Explanation:
    """Detects in one image and returns all intermediate results. No masks, no TTA.

    Args:
        model: in evaluation mode.
        image: (3, h0, w0) in [0, 255].
        output_size: (height, width) to which positions are scaled, such as the size of the image
            before it was resized; by default (h0, w0).

    Returns:
        See :class:`Explanation`; on the CPU.
    """
    canvas, (border,) = model.test_canvas([image])
    canvas_size = tuple(canvas.shape[-2:])
    feature = model.backbone(canvas)[model.feature_names[-1]]
    origin = model.pixel_mean.new_tensor(border)
    head = model.heads[-1]
    seen_tl, tl = _see(model, head.tl, feature, canvas_size, origin)
    seen_br, br = _see(model, head.br, feature, canvas_size, origin)
    pairs = model.matching.pairs(tl, br, origin[None])
    candidates = pairs_to_candidates(pairs, tl.cls)
    selected = select_candidates(candidates, model.selection)
    taken, shape = selected.order, pairs.scores.shape[1:]
    outcome = pair_outcomes(
        [x[0] for x in pairs.conditions],
        selected.entered.view(shape),
        selected.taken.view(shape),
    )
    explanation = Explanation(
        tl=seen_tl,
        br=seen_br,
        map_extent=(-border[0], -border[1], canvas_size[1] - border[0], canvas_size[0] - border[1]),
        boxes=candidates.boxes[0].view(*shape, 4),
        regions=None if pairs.region is None else torch.cat(pairs.region, dim=-1)[0],
        scores=pairs.scores[0],
        distance=pairs.distance[0],
        outcomes=model.matching.outcomes,
        outcome=outcome,
        detections=torch.stack(
            (
                torch.div(taken, shape[1], rounding_mode="floor"),
                taken % shape[1],
            ),
            dim=1,
        ),
        detection_scores=selected.scores,
    )
    if output_size is not None:
        scale = output_size[1] / image.shape[-1], output_size[0] / image.shape[-2]
        explanation = _scaled(explanation, scale, model.matching.key_is_position)
    return _on_cpu(explanation)


def _scaled(
    explanation: Explanation, scale: tuple[float, float], key_is_position: bool
) -> Explanation:
    """Scales all positions by (x, y) factors."""
    factor = explanation.boxes.new_tensor(scale)

    def scaled(seen: SeenCorners) -> SeenCorners:
        points = seen.sampling_points
        return seen._replace(
            position=seen.position * factor,
            key=seen.key * factor if key_is_position else seen.key,
            sampling_points=None if points is None else points * factor,
        )

    regions = explanation.regions
    return explanation._replace(
        tl=scaled(explanation.tl),
        br=scaled(explanation.br),
        map_extent=tuple(x * factor for x, factor in zip(explanation.map_extent, scale * 2)),
        boxes=explanation.boxes * factor.repeat(2),
        regions=None if regions is None else regions * factor.repeat(2),
    )


def _see(
    model: CentripetalNet,
    branch: CornerBranch,
    feature: Tensor,
    canvas_size: tuple[int, int],
    origin: Tensor,
) -> tuple[SeenCorners, Corners]:
    """Corners of one kind for display (pixels of the image) and for matching (of the canvas)."""
    found = find_corners(branch, feature, canvas_size, model.matching)
    corners, (height, width) = found.corners, found.heatmap.shape[-2:]
    points = branch.sampling_points(found.pooled, found.peaks.cell.flatten())
    pixels_per_cell = origin.new_tensor((canvas_size[1] / width, canvas_size[0] / height))
    seen = SeenCorners(
        heatmap=found.heatmap[0].float().sigmoid().amax(dim=0),
        score=corners.score[0],
        cls=corners.cls[0],
        position=corners.position[0] - origin,
        key=corners.key[0] - origin if model.matching.key_is_position else corners.key[0],
        # Integer coordinates are centres of cells.
        sampling_points=None if points is None else (points + 0.5) * pixels_per_cell - origin,
    )
    return seen, corners


def _on_cpu(explanation: Explanation) -> Explanation:
    def moved(value):
        if isinstance(value, Tensor):
            return value.cpu()
        return SeenCorners(*map(moved, value)) if isinstance(value, SeenCorners) else value

    return Explanation(*map(moved, explanation))
