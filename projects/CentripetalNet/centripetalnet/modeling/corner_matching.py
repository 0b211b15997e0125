"""Heatmaps to corners, and corners to scored boxes: what all ways of matching share.

A way of matching is one file with a subclass of :class:`Matching` and one of ``CornerBranch``.
Shapes: N images, C classes, H x W the feature map, K corners kept of each kind in each image, M
ground-truth boxes of the whole batch. Coordinates are pixels of the canvas until the border is
subtracted, then pixels of the image on it.
"""

from dataclasses import dataclass, fields
from functools import reduce
from typing import Callable, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor

from ..structures import (
    BoxTargets,
    Candidates,
    CornerCounts,
    CornerPairs,
    Corners,
    PairOutcome,
    Peaks,
)
from .corner_head import CornerBranch, CornerHead
from .feature_maps import as_xy

MATCHING_REGISTRY = Registry("MATCHING")
MATCHING_REGISTRY.__doc__ = "Ways of matching corners, for ``MODEL.CENTRIPETALNET.MATCHING``."


@dataclass(frozen=True)
class Matching:
    """A way of matching corners with its hyperparameters; the base has those that all share.

    The config key of a field is its name in capitals, in MODEL.CENTRIPETALNET.
    """

    topk: int = 100
    """K: corners of each kind kept per image, over all classes."""
    local_maximum_kernel: int = 3
    """Side, in cells, of the window in which a corner must be the maximum."""
    average_cells: bool = False
    """Whether positions are :func:`mean_offset`, instead of the predicted offset."""

    outcomes: ClassVar[type[PairOutcome]]
    """What can become of a pair, from ``structures.pair_outcome``."""
    losses_of: ClassVar[tuple[str, ...]]
    """Names of the losses; each has a weight, the field ``NAME_weight``."""
    key_is_position: ClassVar[bool]
    """Whether the key of a corner is a position, which moves with the corner."""

    def __post_init__(self):
        if self.local_maximum_kernel < 1 or self.local_maximum_kernel % 2 == 0:
            raise ValueError(
                "MODEL.CENTRIPETALNET.LOCAL_MAXIMUM_KERNEL must be an odd number of cells, got "
                f"{self.local_maximum_kernel}"
            )

    def branch(self) -> Callable[..., CornerBranch]:
        """What makes the branches of a head, see ``CornerHead``."""
        raise NotImplementedError

    def losses(
        self,
        predictions: tuple[tuple, tuple],
        targets: BoxTargets,
        counts: tuple[CornerCounts, CornerCounts],
        smooth_l1_beta: float,
    ) -> dict[str, Tensor]:
        """Unweighted losses of one stack, of the two corners together.

        Args:
            predictions: of ``CornerBranch.at_cells`` at the cells of the targets, tl and br.
            targets: of the batch.
            counts: normalizers, tl and br.
            smooth_l1_beta: see ``shift_loss``.

        Returns:
            A scalar for each of ``losses_of``.
        """
        raise NotImplementedError

    def keys(
        self, predictions: tuple, position: Tensor, inwards: int, pixels_per_cell: Tensor
    ) -> Tensor:
        """The keys of corners, see :class:`Corners`.

        Args:
            predictions: of ``CornerBranch.at_cells`` at N * K peaks.
            position: (N, K, 2) pixels.
            inwards: see ``CornerBranch``.
            pixels_per_cell: (2,) x, y.

        Returns:
            (N, K, D).
        """
        raise NotImplementedError

    def pairs(self, tl: Corners, br: Corners, border: Tensor) -> CornerPairs:
        """Forms all top-left x bottom-right pairs and evaluates the conditions for a box.

        Args:
            tl, br: the best corners of both kinds.
            border: (N, 2) left and top border of the canvas in pixels; it is subtracted.

        Returns:
            K x K pairs of each image.
        """
        raise NotImplementedError


def build_matching(cfg: CfgNode) -> Matching:
    """The way of matching that a config names.

    Raises:
        ValueError: if there is no such way, or a key is set that only another way follows.
    """
    net = cfg.MODEL.CENTRIPETALNET
    ways = dict(MATCHING_REGISTRY)
    if net.MATCHING not in ways:
        raise ValueError(
            f"MODEL.CENTRIPETALNET.MATCHING must be one of {', '.join(ways)}, got {net.MATCHING!r}"
        )
    chosen = ways[net.MATCHING]
    followed = {x.name for x in fields(chosen)}
    for name, way in ways.items():
        for other in fields(way):
            key = other.name.upper()
            if other.name not in followed and net[key] != other.default:
                raise ValueError(
                    f"MODEL.CENTRIPETALNET.{key} is {net[key]}, but only {name} follows it and "
                    f"MODEL.CENTRIPETALNET.MATCHING is {net.MATCHING}. Leave it at {other.default}."
                )
    return chosen(**{name: net[name.upper()] for name in followed})


def build_corner_head(cfg: CfgNode, channels: int, matching: Matching) -> CornerHead:
    """The head of a feature map with this number of channels."""
    net = cfg.MODEL.CENTRIPETALNET
    return CornerHead(
        matching.branch(),
        channels=channels,
        num_classes=net.NUM_CLASSES,
        pool_channels=net.POOL_CHANNELS,
        hidden_channels=net.HEAD_CHANNELS,
        heatmap_bias=net.HEATMAP_BIAS,
        norm=net.NORM,
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
def find_peaks(heatmap: Tensor, options: Matching) -> Peaks:
    """The K best local maxima of a heatmap, over all classes and cells of each image.

    Args:
        heatmap: (N, C, H, W) logits.
        options: see :class:`Matching`.

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
    predictions: tuple,
    matching: Matching,
    inwards: int,
    map_size: tuple[int, int],
    canvas_size: tuple[int, int],
) -> Corners:
    """Decodes positions and keys of corners of one kind.

    Args:
        peaks: K of each image.
        offset: (N, K, 2) cells, at the peaks.
        predictions: of ``CornerBranch.at_cells``, at the N * K peaks.
        matching: the way of matching.
        inwards: +1 for top-left corners, whose centre has larger coordinates, -1 for bottom-right.
        map_size: (H, W) cells.
        canvas_size: (h, w) pixels.

    Returns:
        The corners, in the order of the peaks.
    """
    height, width = map_size
    row = torch.div(peaks.cell, width, rounding_mode="floor") % height
    cell = torch.stack((peaks.cell % width, row), dim=-1)
    pixels_per_cell = as_xy(canvas_size, offset) / as_xy(map_size, offset)
    position = (cell + offset) * pixels_per_cell
    key = matching.keys(predictions, position, inwards, pixels_per_cell)
    return Corners(peaks.score, peaks.cls, position, key)


def in_image(tl: Corners, br: Corners, border: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of all pairs in pixels of the image, and which pairs are boxes with extent.

    As in the released models, negative coordinates become 0.

    Args:
        tl, br: the best corners of both kinds.
        border: (N, 1, 2) left and top border of the canvas in pixels; it is subtracted.

    Returns:
        (N, K, 1, 2) x0, y0; (N, 1, K, 2) x1, y1; (N, K, K) bool.
    """
    x0y0 = (tl.position - border).clamp(min=0)[:, :, None]
    x1y1 = (br.position - border).clamp(min=0)[:, None]
    return x0y0, x1y1, (x1y1 > x0y0).all(dim=-1)


def mean_scores(tl: Corners, br: Corners) -> Tensor:
    """(N, K, K) mean of the scores of both corners of all pairs."""
    return (tl.score[:, :, None] + br.score[:, None]) / 2


def pairs_to_candidates(pairs: CornerPairs, classes: Tensor) -> Candidates:
    """Flattens pairs to candidates and sets the score of invalid pairs to -1.

    Args:
        pairs: from :meth:`Matching.pairs`.
        classes: (N, K) of the top-left corners.

    Returns:
        K * K candidates of each image, ordered by top-left corner, then bottom-right corner.
    """
    scores = pairs.scores.masked_fill(~reduce(torch.logical_and, pairs.conditions), -1)
    shape = scores.shape
    boxes = (pairs.top_left.expand(*shape, 2), pairs.bottom_right.expand(*shape, 2))
    return Candidates(
        boxes=torch.cat(boxes, dim=-1).flatten(1, 2),
        scores=scores.flatten(1),
        classes=classes[:, :, None].expand(shape).flatten(1),
    )


def match_corners(tl: Corners, br: Corners, border: Tensor, matching: Matching) -> Candidates:
    """Pairs every top-left with every bottom-right corner and marks the pairs that are boxes.

    Args:
        tl, br, border: see :meth:`Matching.pairs`.
        matching: the way of matching.

    Returns:
        K * K candidates of each image.
    """
    return pairs_to_candidates(matching.pairs(tl, br, border), tl.cls)
