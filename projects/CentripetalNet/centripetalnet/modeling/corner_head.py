"""Layers of the head: one stack's feature map to the prediction maps of both corners.

Shapes: N images, C classes, H x W the feature map. "tl" is the top-left corner, "br" the
bottom-right corner; they share code, not weights.
"""

from typing import Callable, NamedTuple, Optional

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ..layers import corner_pool
from ..structures import HeadOutput

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

    def at_center(self, patches: Tensor) -> Tensor:
        """(M, out_channels) at the centres of (M, in_channels, P, P) patches; P odd, at least 3."""
        reach = patches.shape[-1] // 2 - 1
        if reach:
            patches = patches[:, :, reach:-reach, reach:-reach]
        return self(patches, padded=False)[:, :, 0, 0]


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


class Patches(NamedTuple):
    """Neighbourhoods of M cells of a (N, channels, H, W) feature map."""

    values: Tensor
    """(M, channels, P, P), zero outside the map."""
    image_index: Tensor
    """(M,) integers in [0, N)."""
    y: Tensor
    x: Tensor
    """(M,) integers, positions of the cells."""


class CornerBranch(nn.Module):
    """Layers of one corner of one stack; a subclass has those of its way of matching.

    Attributes:
        inwards: +1 for the top-left corner, whose centre has larger coordinates, -1 for the other.
    """

    # Radius in cells of the receptive field of the predictions in the pooled feature.
    PATCH_REACH = 1

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
        nn.init.constant_(self.heatmap[-1].bias, heatmap_bias)

    def forward(self, feature: Tensor) -> tuple[Tensor, ...]:
        """Dense maps of this corner from a (N, channels, H, W) feature, for debugging and tests.

        Training and inference use :meth:`at_cells`, as they need all but the heatmap only at
        corners.
        """
        raise NotImplementedError

    def at_cells(
        self, pooled: Tensor, cells: Tensor, needs_offset: bool = True
    ) -> tuple[Tensor, ...]:
        """Predictions at the given cells; equal to those of :meth:`forward` up to rounding.

        They depend on the cells nearby. Computing only these saves most of the head's FLOPs and
        memory.

        Args:
            pooled: (N, channels, H, W), output of ``pooling``.
            cells: (M,) integers, indices into the flattened (N, H, W).
            needs_offset: False leaves the offset out.

        Returns:
            A named tuple: ``offset`` (M, 2) in cells, x then y, None if left out; and what the way
            of matching compares.
        """
        raise NotImplementedError

    def sampling_points(self, pooled: Tensor, cells: Tensor) -> Optional[Tensor]:
        """(M, 9, 2) sampling points of a deformable convolution at cells, x then y, for pictures.

        Args:
            pooled, cells: see :meth:`at_cells`.

        Returns:
            In cells, whose centres are integers. None if the branch has no such convolution.
        """
        return None

    def patches_at(self, pooled: Tensor, cells: Tensor) -> Patches:
        """The neighbourhoods of :meth:`at_cells`' cells that its predictions depend on."""
        height, width = pooled.shape[2:]
        x = cells % width
        row = torch.div(cells, width, rounding_mode="floor")
        y, image_index = row % height, torch.div(row, height, rounding_mode="floor")
        values = _patches(pooled, image_index, y, x, self.PATCH_REACH)
        if not self.training:
            # Inference in half precision keeps these in float32. In training autocast chooses.
            values = values.to(self.offset[0].weight.dtype)
        return Patches(values, image_index, y, x)


def _patches(feature: Tensor, image_index: Tensor, y: Tensor, x: Tensor, reach: int) -> Tensor:
    """(M, channels, P, P) patches centred on M cells, P = 2 * reach + 1, zero outside the map."""
    height, width = feature.shape[2:]
    step = torch.arange(2 * reach + 1, device=y.device)
    # In the padded map the patch of a cell starts at the cell's own coordinates.
    rows, columns = y[:, None] + step, x[:, None] + step
    index = image_index[:, None] * (height + 2 * reach) + rows
    index = index[:, :, None] * (width + 2 * reach) + columns[:, None]
    padded = F.pad(feature, [reach] * 4).permute(0, 2, 3, 1).flatten(0, 2)
    patches = padded.index_select(0, index.flatten()).view(*index.shape, feature.shape[1])
    return patches.permute(0, 3, 1, 2)


class CornerHead(nn.Module):
    """Head of one stack: one branch per corner, weights not shared.

    Source: arXiv 2003.09119, figure 2.
    """

    def __init__(self, branch: Callable[..., CornerBranch], **arguments):
        """
        Args:
            branch: makes a :class:`CornerBranch` of a way of matching.
            arguments: of CornerBranch except ``corner``.
        """
        super().__init__()
        self.tl = branch(corner="tl", **arguments)
        self.br = branch(corner="br", **arguments)

    def forward(self, feature: Tensor) -> HeadOutput:
        """Dense maps of both corners from a (N, channels, H, W) feature, as in CornerBranch."""
        return HeadOutput(tl=self.tl(feature), br=self.br(feature))
