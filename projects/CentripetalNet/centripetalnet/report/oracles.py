"""Matches the K corners of a view, also with parts of the network replaced by the truth."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import render_bumps
from ..modeling import CentripetalNet
from ..modeling.corner_matching import pairs_to_candidates
from ..modeling.corner_search import find_pooled_corners
from ..modeling.corner_targets import corner_targets
from ..structures import Candidates, Corners, Findings
from .reasons import corner_reach, near_corners

# The perfect parts; others are the network's, the shifts always. Heatmaps are the targets'. Corners
# near an object's get its position and class. Those of one object match, those of two do not.
NETWORK, _PARTS = "nothing", ("heatmaps", "positions", "matching", "classes")
ORACLES = {NETWORK: (), **{x: (x,) for x in _PARTS}, "all": _PARTS}


class MatchedView(NamedTuple):
    """Candidates for each of ``ORACLES``, in pixels of the view, and how the network's arose."""

    candidates: dict[str, Candidates]
    conditions: tuple[Tensor, ...]
    near: tuple[Tensor, Tensor]
    corners: tuple[Corners, Corners]


def match_view(
    model: CentripetalNet, findings: Findings, maps: list, boxes: Tensor, classes: Tensor
) -> MatchedView:
    """Matches the corners of one view once for each of ``ORACLES``.

    ``maps`` are pooled features (1, channels, H, W) and heatmaps (1, C, H, W) of both kinds; boxes
    (G, 4) in pixels of the view.
    """
    canvas, shape = findings.canvas_size, maps[0][1].shape
    border = boxes.new_tensor([findings.border])
    on_canvas, image = boxes + border.repeat(1, 2), torch.zeros_like(classes)
    overlap = model.loss_options.min_overlap
    targets = corner_targets(on_canvas, classes, image, 1, shape[1], canvas, shape[2:], overlap)
    reach = corner_reach(boxes, boxes.new_tensor((canvas[1] / shape[3], canvas[0] / shape[2])))
    found: dict[bool, list] = {False: [], True: []}
    for i, (pooled, heatmap) in enumerate(maps):
        branch, truth = (model.heads[-1].tl, model.heads[-1].br)[i], on_canvas[:, 2 * i : 2 * i + 2]
        perfect = render_bumps(targets[i].heatmap.bumps, shape).logit()
        for is_perfect, logits in ((False, heatmap), (True, perfect)):
            seen = find_pooled_corners(branch, pooled, logits, canvas, model.matching)
            corners = seen.corners
            near = near_corners(corners.position[0], truth, reach)
            # What soft-NMS would drop has not fired.
            near &= corners.score[0] >= model.selection.min_score
            if is_perfect:
                near = (seen.peaks.cell == targets[i].cell[:, None]) & targets[i].wins[:, None]
                # The other peaks are cells without a target; no pair has their class.
                corners = corners._replace(cls=corners.cls.masked_fill(corners.score < 1, i - 2))
            found[is_perfect].append((corners, near, truth))
    candidates, conditions = {}, {}
    for name, oracle in ORACLES.items():
        is_moving = model.matching.key_is_position
        known = [_with_truth(x, classes, oracle, is_moving) for x in found["heatmaps" in oracle]]
        (tl, tl_owner), (br, br_owner) = known
        pairs = model.matching.pairs(tl, br, border)
        conditions[name] = pairs.conditions
        is_box = torch.stack(pairs.conditions).all(dim=0)
        if "matching" in oracle:
            has_extent = pairs.conditions[model.matching.outcomes.NO_EXTENT]
            is_pair = (tl_owner[:, None] == br_owner) & has_extent
            is_box = torch.where((tl_owner[:, None] >= 0) & (br_owner >= 0), is_pair, is_box)
        candidates[name] = pairs_to_candidates(pairs._replace(conditions=(is_box,)), tl.cls)
    corners, near, _ = zip(*found[False])
    return MatchedView(candidates, conditions[NETWORK], near, corners)


def _with_truth(found: tuple, classes: Tensor, oracle: tuple, key_is_position: bool) -> tuple:
    """Corners of one kind with what an oracle knows, and (K,) their objects, -1 for none."""
    corners, near, truth = found
    if not len(classes):
        return corners, torch.full_like(corners.cls[0], -1)
    # The peaks of a perfect heatmap have the right class.
    if "heatmaps" in oracle or "classes" not in oracle:
        near = near & (classes[:, None] == corners.cls)
    distance = (truth[:, None] - corners.position[0]).abs().amax(dim=-1)
    distance, owner = distance.masked_fill(~near, torch.inf).min(dim=0)
    is_near = distance.isfinite()
    if "classes" in oracle:
        corners = corners._replace(cls=torch.where(is_near, classes[owner], corners.cls))
    if "positions" in oracle:
        move = torch.where(is_near[:, None], truth[owner] - corners.position, 0)
        key = corners.key + move if key_is_position else corners.key
        corners = corners._replace(position=corners.position + move, key=key)
    return corners, owner.masked_fill(~is_near, -1)
