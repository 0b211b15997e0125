"""Decodes heatmaps and shifts to scored boxes (pure functions).

Shapes: N images, C classes, H x W the feature map, K corners kept of each kind in each image.
Coordinates are pixels of the canvas until the border is subtracted, then pixels of the image on it.
Section numbers are those of arXiv 2003.09119 unless another paper is named.
"""

from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ..structures import Candidates, CornerPairs, Corners, PairConditions, Peaks
from .feature_maps import as_xy


@dataclass(frozen=True)
class MatchingOptions:
    """Hyperparameters of corner matching; the defaults are the released model's."""

    topk: int = 100
    """K: corners of each kind kept per image, over all classes."""
    local_maximum_kernel: int = 3
    """Side, in cells, of the window in which a corner must be the maximum."""
    large_area: float = 3500.0
    """Boxes with a larger area, in square pixels, count as large."""
    central_region_large: float = 1 / 2.1
    """mu of large boxes: side of the central region over side of the box."""
    central_region_small: float = 1 / 2.4
    """mu of the other boxes."""
    max_center_area: float = 0.5
    """Largest spread: area spanned by the two predicted centres over area of the region."""
    weight_scores: bool = False
    """Whether to multiply scores by exp(-spread), as in the paper; the released model does not."""
    average_cells: bool = False
    """Whether positions are :func:`mean_offset`, instead of the predicted offset."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MatchingOptions":
        net = cfg.MODEL.CENTRIPETALNET
        return cls(
            topk=net.TOPK,
            local_maximum_kernel=net.LOCAL_MAXIMUM_KERNEL,
            large_area=net.LARGE_AREA,
            central_region_large=net.CENTRAL_REGION_LARGE,
            central_region_small=net.CENTRAL_REGION_SMALL,
            max_center_area=net.MAX_CENTER_AREA,
            weight_scores=net.WEIGHT_SCORES,
            average_cells=net.AVERAGE_CELLS,
        )

    def __post_init__(self):
        if self.local_maximum_kernel < 1 or self.local_maximum_kernel % 2 == 0:
            raise ValueError(
                "MODEL.CENTRIPETALNET.LOCAL_MAXIMUM_KERNEL must be an odd number of cells, got "
                f"{self.local_maximum_kernel}"
            )


def _largest_around(values: Tensor, kernel: int) -> Tensor:
    """Maximum of the kernel x kernel window around each cell of (N, C, H, W).

    Separable, and without the int64 indices that ``max_pool2d`` allocates.
    """
    for axis in (2, 3):
        largest, size = values.clone(), values.shape[axis]
        for step in range(1, min(kernel // 2, size - 1) + 1):
            for here, there in ((0, step), (step, 0)):
                target = largest.narrow(axis, here, size - step)
                torch.maximum(target, values.narrow(axis, there, size - step), out=target)
        values = largest
    return values


@torch.no_grad()
def find_peaks(heatmap: Tensor, options: MatchingOptions) -> Peaks:
    """The K best local maxima of a heatmap, over all classes and cells of each image.

    Args:
        heatmap: (N, C, H, W) logits.
        options: see :class:`MatchingOptions`.

    Returns:
        K peaks of each image, best first; K is at most H * W * C.

    Source: arXiv 1808.01244, section 4.2.
    """
    # Channels-last is faster here: shifts by a cell compare long contiguous runs.
    probability = heatmap.float().contiguous(memory_format=torch.channels_last).sigmoid()
    is_peak = probability == _largest_around(probability, options.local_maximum_kernel)
    return best_peaks(probability.mul_(is_peak), options.topk)


def best_peaks(peaks: Tensor, topk: int) -> Peaks:
    """Top K of the local maxima of each image, over all classes and cells.

    Args:
        peaks: (N, C, H, W) probability of the local maxima, 0 everywhere else.
        topk: K.

    Returns:
        K peaks of each image, best first; K is at most H * W * C.
    """
    num_images, num_classes, height, width = peaks.shape
    num_cells = height * width
    peaks = peaks.permute(0, 2, 3, 1).reshape(num_images, num_cells, num_classes)
    # The top K are all in the K cells with the highest maxima, which are cheaper to find.
    _, cells = peaks.amax(dim=2).topk(min(topk, num_cells), dim=1)
    peaks = peaks.gather(1, cells[:, :, None].expand(-1, -1, num_classes)).flatten(1)
    score, index = peaks.topk(min(topk, peaks.shape[1]), dim=1)
    cell = cells.gather(1, torch.div(index, num_classes, rounding_mode="floor"))
    first_cell = torch.arange(num_images, device=index.device)[:, None] * num_cells
    return Peaks(score=score, cls=index % num_classes, cell=first_cell + cell)


def mean_offset(heatmap: Tensor, peaks: Peaks) -> Tensor:
    """Mean position of the 3x3 cells around each peak, weighted with their squared probability.

    Args:
        heatmap: (N, C, H, W) logits.
        peaks: K of each image.

    Returns:
        (N, K, 2) cells, x then y, like a predicted offset: the middle of the peak's cell is 0.5.
    """
    height, width = heatmap.shape[-2:]
    row = torch.div(peaks.cell, width, rounding_mode="floor")
    image = torch.div(row, height, rounding_mode="floor")[..., None, None]
    step = torch.arange(-1, 2, device=heatmap.device)
    y = (row % height)[..., None, None] + step[:, None]
    x = (peaks.cell % width)[..., None, None] + step
    is_inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    logits = heatmap[image, peaks.cls[..., None, None], y, x].float()
    log_weight = 2 * F.logsigmoid(logits)
    # Relative to the largest, so that not all underflow.
    weight = (log_weight - log_weight.amax((-2, -1), keepdim=True)).exp() * is_inside
    mean = torch.stack(((weight * step).sum((-2, -1)), (weight * step[:, None]).sum((-2, -1))), -1)
    return 0.5 + mean / weight.sum((-2, -1))[..., None]


def locate_corners(
    peaks: Peaks,
    offset: Tensor,
    centripetal_shift: Tensor,
    inwards: int,
    map_size: tuple[int, int],
    canvas_size: tuple[int, int],
) -> Corners:
    """Decodes positions of corners of one kind and the centres that they point to.

    Args:
        peaks: K of each image.
        offset: (N, K, 2) cells, at the peaks.
        centripetal_shift: (N, K, 2) natural logarithm of cells, at the peaks.
        inwards: +1 for top-left corners, whose centre has larger coordinates, -1 for bottom-right.
        map_size: (H, W) cells.
        canvas_size: (h, w) pixels.

    Returns:
        The corners, in the order of the peaks.

    Source: section 3.1, inverse of the definition of the centripetal shift.
    """
    height, width = map_size
    row = torch.div(peaks.cell, width, rounding_mode="floor") % height
    cell = torch.stack((peaks.cell % width, row), dim=-1)
    pixels_per_cell = as_xy(canvas_size, offset) / as_xy(map_size, offset)
    position = (cell + offset) * pixels_per_cell
    to_center = centripetal_shift.exp() * pixels_per_cell
    return Corners(peaks.score, peaks.cls, position, position + inwards * to_center)


def corner_pairs(tl: Corners, br: Corners, border: Tensor, options: MatchingOptions) -> CornerPairs:
    """Forms all top-left x bottom-right pairs, each a box with a central region.

    Args:
        tl, br: the best corners of both kinds.
        border: (N, 2) left and top border of the canvas in pixels; it is subtracted.
        options: see :class:`MatchingOptions`.

    Returns:
        K x K pairs of each image.

    Source: section 3.1, "Corner Matching".
    """
    border = border[:, None].to(tl.position)
    # As in the released model, negative coordinates become 0 before areas are computed.
    x0y0 = (tl.position - border).clamp(min=0)[:, :, None]
    x1y1 = (br.position - border).clamp(min=0)[:, None]
    tl_center = (tl.center - border).clamp(min=0)[:, :, None]
    br_center = (br.center - border).clamp(min=0)[:, None]

    size = x1y1 - x0y0
    has_extent = (size > 0).all(dim=-1)
    mu = torch.where(
        size.prod(dim=-1).abs() > options.large_area,
        size.new_full((), options.central_region_large),
        size.new_full((), options.central_region_small),
    )[..., None]
    box_center = (x0y0 + x1y1) / 2
    region_low, region_high = box_center - mu * size / 2, box_center + mu * size / 2
    center_area = (br_center - tl_center).prod(dim=-1).abs()
    region_area = (region_high - region_low).prod(dim=-1).abs()
    spread = torch.where(has_extent, center_area / region_area, torch.ones_like(region_area))
    return CornerPairs(
        x0y0, x1y1, tl_center, br_center, region_low, region_high, has_extent, spread
    )


def pair_conditions(
    tl_class: Tensor, br_class: Tensor, pairs: CornerPairs, options: MatchingOptions
) -> PairConditions:
    """Evaluates the conditions under which a pair is a box.

    Args:
        tl_class, br_class: (N, K) integers in [0, C).
        pairs: from :func:`corner_pairs`.
        options: see :class:`MatchingOptions`.

    Returns:
        (N, K, K) bool for each condition; a pair is a box if all hold.

    Source: section 3.1, "Corner Matching".
    """

    def points_inside(center: Tensor) -> Tensor:
        return ((center > pairs.region_low) & (center < pairs.region_high)).all(dim=-1)

    return PairConditions(
        same_class=tl_class[:, :, None] == br_class[:, None],
        has_extent=pairs.has_extent,
        tl_points_inside=points_inside(pairs.tl_center),
        br_points_inside=points_inside(pairs.br_center),
        centers_are_close=pairs.spread <= options.max_center_area,
    )


def pair_scores(
    tl_score: Tensor, br_score: Tensor, spread: Tensor, options: MatchingOptions
) -> Tensor:
    """Scores of all pairs, whether they are boxes or not.

    Args:
        tl_score, br_score: (N, K) in (0, 1).
        spread: (N, K, K), see :class:`CornerPairs`.
        options: see :class:`MatchingOptions`.

    Returns:
        (N, K, K) in (0, 1).

    Source: section 3.1, "Corner Matching".
    """
    scores = (tl_score[:, :, None] + br_score[:, None]) / 2
    if options.weight_scores:
        scores = scores * torch.exp(-spread)
    return scores


def pairs_to_candidates(
    pairs: CornerPairs, scores: Tensor, classes: Tensor, conditions: PairConditions
) -> Candidates:
    """Flattens pairs to candidates and sets the score of invalid pairs to -1.

    Args:
        pairs: from :func:`corner_pairs`.
        scores: (N, K, K), from :func:`pair_scores`.
        classes: (N, K) of the top-left corners.
        conditions: from :func:`pair_conditions`.

    Returns:
        K * K candidates of each image, ordered by top-left corner, then bottom-right corner.
    """
    scores = scores.masked_fill(~reduce(torch.logical_and, conditions), -1)
    shape = scores.shape
    boxes = (pairs.top_left.expand(*shape, 2), pairs.bottom_right.expand(*shape, 2))
    return Candidates(
        boxes=torch.cat(boxes, dim=-1).flatten(1, 2),
        scores=scores.flatten(1),
        classes=classes[:, :, None].expand(shape).flatten(1),
    )


def match_corners(tl: Corners, br: Corners, border: Tensor, options: MatchingOptions) -> Candidates:
    """Pairs every top-left with every bottom-right corner and marks the pairs that are boxes.

    A pair is a box if its corners have the same class, its width and height are positive, both
    predicted centres are inside its central region, and its spread is at most ``max_center_area``.

    Args:
        tl, br: the best corners of both kinds.
        border: (N, 2) left and top border of the canvas in pixels; it is subtracted.
        options: see :class:`MatchingOptions`.

    Returns:
        K * K candidates of each image.

    Source: section 3.1, "Corner Matching".
    """
    pairs = corner_pairs(tl, br, border, options)
    conditions = pair_conditions(tl.cls, br.cls, pairs, options)
    scores = pair_scores(tl.score, br.score, pairs.spread, options)
    return pairs_to_candidates(pairs, scores, tl.cls, conditions)
