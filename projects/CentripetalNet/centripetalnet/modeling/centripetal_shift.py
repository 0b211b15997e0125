"""Matching by centripetal shifts: CentripetalNet (arXiv 2003.09119).

Shapes: N images, C classes, H x W the feature map, K corners kept of each kind in each image, M
cells. Section numbers are those of the paper.
"""

from dataclasses import dataclass
from functools import partial
from typing import Callable, ClassVar, NamedTuple, Optional

import torch
from torch import Tensor

from ..layers import CrossStarDeformConv, FreeDeformConv, PlainConv3x3
from ..structures import BoxTargets, CornerCounts, CornerPairs, Corners, pair_outcome
from .corner_head import CornerBranch, PredictionBranch
from .corner_losses import shift_loss
from .corner_matching import MATCHING_REGISTRY, Matching, in_image, mean_scores

SHIFT_CONVS = {
    "cross_star": CrossStarDeformConv,
    "deformable": FreeDeformConv,
    "plain": PlainConv3x3,
}
"""The convolutions before the centripetal shift by name, which is also that of the module."""

ShiftOutcome = pair_outcome(
    "ShiftOutcome",
    TL_OUTSIDE=(
        "top-left centre outside",
        "Rejected: top-left points outside the central region",
    ),
    BR_OUTSIDE=(
        "bottom-right centre outside",
        "Rejected: bottom-right points outside the central region",
    ),
    FAR_APART=(
        "centres too far apart",
        "Rejected: the centres span {distance:.2f} of the central region",
    ),
)


class ShiftMaps(NamedTuple):
    """Predicted maps of one corner."""

    heatmap: Tensor
    """(N, C, H, W) logits."""
    offset: Tensor
    """(N, 2, H, W) cells, x then y: corner minus its cell."""
    guiding_shift: Optional[Tensor]
    """(N, 2, H, W) cells, x then y, from the corner cell inwards to the box's centre."""
    centripetal_shift: Tensor
    """(N, 2, H, W) natural logarithm of cells, x then y, from the corner to the box's centre."""


class CornerShifts(NamedTuple):
    """Predicted shifts of one corner at M cells."""

    offset: Optional[Tensor]
    """(M, 2) cells, see :class:`ShiftMaps`; None if it is not needed."""
    guiding_shift: Optional[Tensor]
    """(M, 2) cells; None without guiding shifts."""
    centripetal_shift: Tensor
    """(M, 2) natural logarithm of cells."""


class ShiftBranch(CornerBranch):
    """Branch with guiding and centripetal shifts."""

    # A shift sees two stacked 3 x 3 convolutions.
    PATCH_REACH = 2

    def __init__(
        self,
        channels: int,
        *,
        hidden_channels: int,
        shift_conv: str = "cross_star",
        has_guiding_shift: bool = True,
        **arguments,
    ):
        """
        Args:
            channels, hidden_channels, arguments: see :class:`CornerBranch`.
            shift_conv: convolution before the centripetal shift, one of ``SHIFT_CONVS``.
            has_guiding_shift: whether guiding shifts are predicted.
        """
        super().__init__(channels, hidden_channels=hidden_channels, **arguments)
        self.guiding_shift = None
        if has_guiding_shift:
            self.guiding_shift = PredictionBranch(channels, hidden_channels, 2)
        self.shift_conv_name = shift_conv
        self.add_module(shift_conv, SHIFT_CONVS[shift_conv](channels))
        self.centripetal_shift = PredictionBranch(channels, hidden_channels, 2)

    @property
    def shift_conv(self) -> torch.nn.Module:
        return getattr(self, self.shift_conv_name)

    def forward(self, feature: Tensor) -> ShiftMaps:
        """See :meth:`CornerBranch.forward`."""
        pooled = self.pooling(feature)
        guiding_shift = self.guiding_shift(pooled) if self.guiding_shift else None
        return ShiftMaps(
            heatmap=self.heatmap(pooled),
            offset=self.offset(pooled),
            guiding_shift=guiding_shift,
            centripetal_shift=self.centripetal_shift(self.shift_conv(pooled, guiding_shift)),
        )

    def at_cells(self, pooled: Tensor, cells: Tensor, needs_offset: bool = True) -> CornerShifts:
        """See :meth:`CornerBranch.at_cells`."""
        patches, *place = self.patches_at(pooled, cells)
        guiding_shift = self.guiding_shift(patches, padded=False) if self.guiding_shift else None
        adapted = self.shift_conv.at_cells(pooled, patches, guiding_shift, *place)
        return CornerShifts(
            offset=self.offset.at_center(patches) if needs_offset else None,
            guiding_shift=None if guiding_shift is None else guiding_shift[:, :, 1, 1],
            centripetal_shift=self.centripetal_shift.at_center(adapted),
        )

    def sampling_points(self, pooled: Tensor, cells: Tensor) -> Optional[Tensor]:
        """See :meth:`CornerBranch.sampling_points`."""
        patches, _, y, x = self.patches_at(pooled, cells)
        center = patches[:, :, 1:-1, 1:-1]
        guiding_shift = self.guiding_shift(center, padded=False) if self.guiding_shift else None
        return self.shift_conv.sampling_points(center, guiding_shift, y, x)


@MATCHING_REGISTRY.register()
@dataclass(frozen=True)
class CentripetalShiftMatching(Matching):
    """Pairs corners whose centripetal shifts point to one centre; by default the released model.

    A pair is a box if its corners have the same class, its width and height are positive, both
    predicted centres are inside its central region, and the area that they span is small.

    Source: section 3.1, "Corner Matching".
    """

    large_area: float = 3500.0
    """Boxes with a larger area, in square pixels, count as large."""
    central_region_large: float = 1 / 2.1
    """mu of large boxes: side of the central region over side of the box."""
    central_region_small: float = 1 / 2.4
    """mu of the other boxes."""
    max_center_area: float = 0.5
    """Largest area spanned by the two predicted centres over area of the region."""
    weight_scores: bool = False
    """Whether to multiply scores by exp(-that area), as in the paper; the released model does
    not."""
    shift_conv: str = "cross_star"
    """Convolution before the centripetal shift, one of ``SHIFT_CONVS``."""
    guiding_shift: bool = True
    """Whether guiding shifts are predicted."""
    guiding_shift_weight: float = 0.05
    centripetal_shift_weight: float = 1.0

    outcomes: ClassVar = ShiftOutcome
    key_is_position: ClassVar = True

    def __post_init__(self):
        super().__post_init__()
        key = "MODEL.CENTRIPETALNET."
        if self.shift_conv not in SHIFT_CONVS:
            raise ValueError(
                f"{key}SHIFT_CONV must be one of {', '.join(SHIFT_CONVS)}, got {self.shift_conv!r}"
            )
        if self.guiding_shift:
            return
        if self.shift_conv == "cross_star":
            raise ValueError(
                f"{key}SHIFT_CONV cross_star needs {key}GUIDING_SHIFT True, since guiding shifts "
                "steer it"
            )
        if self.guiding_shift_weight != type(self).guiding_shift_weight:
            raise ValueError(
                f"{key}GUIDING_SHIFT_WEIGHT is {self.guiding_shift_weight}, but "
                f"{key}GUIDING_SHIFT is False"
            )

    @property
    def losses_of(self) -> tuple[str, ...]:
        return (*(("guiding_shift",) if self.guiding_shift else ()), "centripetal_shift")

    def branch(self) -> Callable[..., ShiftBranch]:
        """See :meth:`Matching.branch`."""
        return partial(
            ShiftBranch, shift_conv=self.shift_conv, has_guiding_shift=self.guiding_shift
        )

    def losses(
        self,
        predictions: tuple[CornerShifts, CornerShifts],
        targets: BoxTargets,
        counts: tuple[CornerCounts, CornerCounts],
        smooth_l1_beta: float,
    ) -> dict[str, Tensor]:
        """See :meth:`Matching.losses`; each is the mean of the two corners. Source: 3.1, 3.2."""
        of_corners = list(zip(predictions, (targets.tl, targets.br), counts))
        return {
            name: sum(
                shift_loss(
                    getattr(shifts, name),
                    getattr(target, name),
                    target.wins,
                    count.shifts,
                    smooth_l1_beta,
                )
                / 2
                for shifts, target, count in of_corners
            )
            for name in self.losses_of
        }

    def keys(
        self, predictions: CornerShifts, position: Tensor, inwards: int, pixels_per_cell: Tensor
    ) -> Tensor:
        """See :meth:`Matching.keys`: the centre that a corner points to.

        Source: section 3.1, inverse of the definition of the centripetal shift.
        """
        shift = predictions.centripetal_shift.float().view(position.shape)
        return position + inwards * (shift.exp() * pixels_per_cell)

    def pairs(self, tl: Corners, br: Corners, border: Tensor) -> CornerPairs:
        """See :meth:`Matching.pairs`. Source: section 3.1, "Corner Matching"."""
        border = border[:, None].to(tl.position)
        x0y0, x1y1, has_extent = in_image(tl, br, border)
        # As in the released model, negative coordinates become 0 before areas are computed.
        tl_center = (tl.key - border).clamp(min=0)[:, :, None]
        br_center = (br.key - border).clamp(min=0)[:, None]

        size = x1y1 - x0y0
        mu = torch.where(
            size.prod(dim=-1).abs() > self.large_area,
            size.new_full((), self.central_region_large),
            size.new_full((), self.central_region_small),
        )[..., None]
        box_center = (x0y0 + x1y1) / 2
        low, high = box_center - mu * size / 2, box_center + mu * size / 2
        center_area = (br_center - tl_center).prod(dim=-1).abs()
        region_area = (high - low).prod(dim=-1).abs()
        spread = torch.where(has_extent, center_area / region_area, torch.ones_like(region_area))

        def points_inside(center: Tensor) -> Tensor:
            return ((center > low) & (center < high)).all(dim=-1)

        scores = mean_scores(tl, br)
        if self.weight_scores:
            scores = scores * torch.exp(-spread)
        conditions = (
            tl.cls[:, :, None] == br.cls[:, None],
            has_extent,
            points_inside(tl_center),
            points_inside(br_center),
            spread <= self.max_center_area,
        )
        return CornerPairs(x0y0, x1y1, scores, conditions, spread, (low, high))
