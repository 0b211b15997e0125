"""Layers of the head: one stack's feature map to the prediction maps of both corners.

Shapes: N images, C classes, H x W the feature map. "tl" is the top-left corner, "br" the
bottom-right corner; they share code, not weights.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ..layers import CrossStarDeformConv, corner_pool
from ..structures import CornerMaps, CornerShifts, HeadOutput

# Pooling directions of each corner: vertical, horizontal.
POOL_DIRECTIONS = {"tl": ("top", "left"), "br": ("bottom", "right")}
# Sign of the way from each corner to the centre of its box.
INWARDS = {"tl": +1, "br": -1}


def _conv3x3(in_channels: int, out_channels: int, norm: str = "", relu: bool = True) -> Conv2d:
    return _initialised(
        Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, out_channels),
            activation=F.relu_ if relu else None,
        )
    )


def _initialised(conv: Conv2d) -> Conv2d:
    c2_msra_fill(conv)
    return conv


class PredictionBranch(nn.Sequential):
    """conv3x3-ReLU-conv1x1. As in the released model, conv1x1 has PyTorch's default weights."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int):
        super().__init__(
            _conv3x3(in_channels, hidden_channels), Conv2d(hidden_channels, out_channels, 1)
        )

    def forward(self, feature: Tensor, padded: bool = True) -> Tensor:
        """
        Args:
            feature: (N, in_channels, H, W).
            padded: whether the 3 x 3 convolution pads the feature map with zeros.

        Returns:
            (N, out_channels, H, W), or (N, out_channels, H - 2, W - 2) without padding.
        """
        hidden, last = self[0], self[1]
        if padded:
            return last(hidden(feature))
        return last(F.relu_(F.conv2d(feature, hidden.weight, hidden.bias)))


# Radius in cells of the receptive field of a shift: two stacked 3 x 3 convolutions.
_PATCH_REACH = 2


class CornerPooling(nn.Module):
    """Corner pooling module: collects at each corner the features along the two edges of its box.

    Source: arXiv 1808.01244, section 3.4 and figure 7.
    """

    # Replaced by the exporter, as other runtimes lack the compiled operator.
    corner_pool = staticmethod(corner_pool)

    def __init__(self, channels: int, pool_channels: int, corner: str, norm: str = "BN"):
        """
        Args:
            channels: input and output channels.
            pool_channels: channels of the two pooled branches.
            corner: "tl" or "br".
            norm: as in ``detectron2.layers.get_norm``.
        """
        super().__init__()
        self.vertical_direction, self.horizontal_direction = POOL_DIRECTIONS[corner]
        self.vertical = _conv3x3(channels, pool_channels, norm)
        self.horizontal = _conv3x3(channels, pool_channels, norm)
        self.pooled = _conv3x3(pool_channels, channels, norm, relu=False)
        self.shortcut = _initialised(
            Conv2d(channels, channels, 1, bias=not norm, norm=get_norm(norm, channels))
        )
        self.out = _conv3x3(channels, channels, norm)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        # In place, as no gradient needs the overwritten values.
        pooled = self.corner_pool(self.vertical(feature), self.vertical_direction)
        pooled.add_(self.corner_pool(self.horizontal(feature), self.horizontal_direction))
        return self.out(F.relu_(self.pooled(pooled).add_(self.shortcut(feature))))


class CornerBranch(nn.Module):
    """All layers of one corner of one stack.

    Attributes:
        inwards: +1 for the top-left corner, whose centre has larger coordinates, -1 for the other.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        corner: str,
        pool_channels: int,
        hidden_channels: int,
        heatmap_bias: float,
        norm: str = "BN",
    ):
        """
        Args:
            channels: channels of the backbone's feature map.
            num_classes: C.
            corner: "tl" or "br".
            pool_channels: channels of the two branches of corner pooling.
            hidden_channels: channels of the hidden convolution of each prediction.
            heatmap_bias: initial bias of the heatmap logits.
            norm: of corner pooling, as in ``detectron2.layers.get_norm``.
        """
        super().__init__()
        self.inwards = INWARDS[corner]
        self.pooling = CornerPooling(channels, pool_channels, corner, norm)
        self.heatmap = PredictionBranch(channels, hidden_channels, num_classes)
        self.offset = PredictionBranch(channels, hidden_channels, 2)
        self.guiding_shift = PredictionBranch(channels, hidden_channels, 2)
        self.cross_star = CrossStarDeformConv(channels)
        self.centripetal_shift = PredictionBranch(channels, hidden_channels, 2)
        nn.init.constant_(self.heatmap[-1].bias, heatmap_bias)

    def forward(self, feature: Tensor) -> CornerMaps:
        """Dense maps of this corner from a (N, channels, H, W) feature, for debugging and tests.

        Training and inference use :meth:`shifts_at`, as they need the shifts only at corners.
        """
        pooled = self.pooling(feature)
        guiding_shift = self.guiding_shift(pooled)
        adapted = self.cross_star(pooled, guiding_shift)
        return CornerMaps(
            heatmap=self.heatmap(pooled),
            offset=self.offset(pooled),
            guiding_shift=guiding_shift,
            centripetal_shift=self.centripetal_shift(adapted),
        )

    def shifts_at(self, pooled: Tensor, cells: Tensor, needs_offset: bool = True) -> CornerShifts:
        """Shifts at the given cells; equal to those of :meth:`forward` up to rounding.

        The shifts of a cell depend on the 5 x 5 cells around it and on the cells that the
        deformable convolution samples. Computing only these saves most of the head's FLOPs and
        memory.

        Args:
            pooled: (N, channels, H, W), output of ``pooling``.
            cells: (M,) integers, indices into the flattened (N, H, W).
            needs_offset: False leaves the offset out.
        """
        height, width = pooled.shape[2:]
        x = cells % width
        row = torch.div(cells, width, rounding_mode="floor")
        y, image_index = row % height, torch.div(row, height, rounding_mode="floor")

        patches = _patches(pooled, image_index, y, x)
        if not self.training:
            # Inference in half precision keeps the shifts in float32. In training autocast chooses.
            patches = patches.to(self.offset[0].weight.dtype)
        guiding_shift = self.guiding_shift(patches, padded=False)
        adapted = self.cross_star.at_cells(pooled, guiding_shift, image_index, y, x)
        offset = None
        if needs_offset:
            offset = self.offset(patches[:, :, 1:-1, 1:-1], padded=False)[:, :, 0, 0]
        return CornerShifts(
            offset=offset,
            guiding_shift=guiding_shift[:, :, 1, 1],
            centripetal_shift=self.centripetal_shift(adapted, padded=False)[:, :, 0, 0],
        )


def _patches(feature: Tensor, image_index: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(M, channels, 5, 5) patches centred on M cells, zero outside the map."""
    height, width = feature.shape[2:]
    step = torch.arange(2 * _PATCH_REACH + 1, device=y.device)
    # In the padded map the patch of a cell starts at the cell's own coordinates.
    rows, columns = y[:, None] + step, x[:, None] + step
    index = image_index[:, None] * (height + 2 * _PATCH_REACH) + rows
    index = index[:, :, None] * (width + 2 * _PATCH_REACH) + columns[:, None]
    padded = F.pad(feature, [_PATCH_REACH] * 4).permute(0, 2, 3, 1).flatten(0, 2)
    patches = padded.index_select(0, index.flatten()).view(*index.shape, feature.shape[1])
    return patches.permute(0, 3, 1, 2)


class CornerHead(nn.Module):
    """Head of one stack: one branch per corner, weights not shared.

    Source: arXiv 2003.09119, figure 2.
    """

    def __init__(self, **branch):
        """
        Args:
            branch: arguments of :class:`CornerBranch` except ``corner``.
        """
        super().__init__()
        self.tl = CornerBranch(corner="tl", **branch)
        self.br = CornerBranch(corner="br", **branch)

    def forward(self, feature: Tensor) -> HeadOutput:
        """Dense maps of both corners from a (N, channels, H, W) feature, as in CornerBranch."""
        return HeadOutput(tl=self.tl(feature), br=self.br(feature))
