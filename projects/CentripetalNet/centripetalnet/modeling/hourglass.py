"""Stacked Hourglass backbone (arXiv 1603.06937, in the form of arXiv 1808.01244, section 3.5).

Shapes: N images, h x w the input canvas, H x W = ceil(h / 4) x ceil(w / 4) the feature maps.
"""

from collections.abc import Sequence
from itertools import chain

import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ..layers import run_checkpointed

STRIDE = 4


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1, relu=True
) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu_ if relu else None,
    )


class ResidualBlock(CNNBlockBase):
    """Two 3 x 3 convolutions beside an identity (or a 1 x 1 convolution where the shape changes).

    Detectron2's BasicBlock cannot stride without widening, which an hourglass does.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, norm: str = "BN"):
        super().__init__(in_channels, out_channels, stride)
        self.conv1 = _conv_norm(in_channels, out_channels, 3, norm, stride)
        self.conv2 = _conv_norm(out_channels, out_channels, 3, norm, relu=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _conv_norm(in_channels, out_channels, 1, norm, stride, relu=False)
        self.checkpoint_activations = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.checkpoint_activations and self.training:
            return run_checkpointed(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        identity = x if self.shortcut is None else self.shortcut(x)
        # In place, as no norm or convolution needs its output for the gradient.
        return F.relu_(self.conv2(self.conv1(x)).add_(identity))


def _residual_path(
    in_channels: int, out_channels: int, num_blocks: int, norm: str, stride: int = 1
) -> nn.Sequential:
    """Residual blocks of which the first strides and widens."""
    blocks = [ResidualBlock(in_channels, out_channels, stride, norm)]
    blocks += [ResidualBlock(out_channels, out_channels, 1, norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def _enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=size, mode="nearest")


class Hourglass(nn.Module):
    """One hourglass: a path at full resolution beside a smaller hourglass at half of it."""

    # Replaced by the exporter where the format cannot express it.
    enlarge = staticmethod(_enlarge)

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], norm: str = "BN"):
        """
        Args:
            channels: channels at each resolution, highest resolution first; depth + 1 entries.
            blocks: number of residual blocks at each resolution.
            norm: of every convolution, as in ``detectron2.layers.get_norm``.
        """
        super().__init__()
        outer, inner = channels[0], channels[1]
        self.skip = _residual_path(outer, outer, blocks[0], norm)
        self.down = _residual_path(outer, inner, blocks[0], norm, stride=2)
        if len(channels) > 2:
            self.inner = Hourglass(channels[1:], blocks[1:], norm)
        else:
            self.inner = _residual_path(inner, inner, blocks[1], norm)
        # In the ascending path the last block reduces the channels.
        self.up = nn.Sequential(
            *(ResidualBlock(inner, inner, 1, norm) for _ in range(blocks[0] - 1)),
            ResidualBlock(inner, outer, 1, norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels[0], H, W) to the same shape."""
        skip = self.skip(x)
        low = self.up(self.inner(self.down(x)))
        return self.enlarge(low, skip.shape[-2:]).add_(skip)


class StackedHourglass(Backbone):
    """A stem of stride 4, then a stack of hourglasses.

    Each hourglass gives one feature map. Its input and output are merged to the next one's input.
    """

    @configurable
    def __init__(
        self,
        *,
        num_stacks: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        stem_channels: int,
        out_channels: int,
        in_channels: int = 3,
        norm: str = "BN",
        freeze_at: int = 0,
        checkpoint_activations: bool = False,
    ):
        """
        Args:
            num_stacks: number of hourglasses; Hourglass-104 has two, Hourglass-52 one.
            channels: channels at each resolution of an hourglass; depth + 1 entries.
            blocks: number of residual blocks at each of these resolutions.
            stem_channels: channels of the stem's 7 x 7 convolution.
            out_channels: channels of the output feature maps.
            in_channels: channels of the image.
            norm: of every convolution, as in ``detectron2.layers.get_norm``.
            freeze_at: number of frozen stages, see :meth:`freeze`.
            checkpoint_activations: whether training keeps only the inputs of the stem and of each
                residual block, and recomputes the other activations in the backward pass.

        Raises:
            ValueError: if ``channels`` and ``blocks`` do not match, or a number is too small.
        """
        super().__init__()
        if len(channels) != len(blocks) or len(channels) < 2:
            raise ValueError(
                "MODEL.HOURGLASS.CHANNELS and MODEL.HOURGLASS.BLOCKS must have the same length, at "
                f"least 2 (one entry for each resolution), got {list(channels)} and {list(blocks)}"
            )
        if num_stacks < 1 or min(blocks) < 1:
            raise ValueError(
                "MODEL.HOURGLASS.NUM_STACKS and every entry of MODEL.HOURGLASS.BLOCKS must be at "
                f"least 1, got {num_stacks} and {list(blocks)}"
            )
        width = channels[0]
        self.stem = nn.Sequential(
            _conv_norm(in_channels, stem_channels, 7, norm, stride=2),
            ResidualBlock(stem_channels, width, 2, norm),
        )
        self.hourglasses = nn.ModuleList(
            Hourglass(channels, blocks, norm) for _ in range(num_stacks)
        )
        self.out_convs = nn.ModuleList(
            _conv_norm(width, out_channels, 3, norm) for _ in range(num_stacks)
        )
        self.merge_in = nn.ModuleList(
            _conv_norm(width, width, 1, norm, relu=False) for _ in range(num_stacks - 1)
        )
        self.merge_out = nn.ModuleList(
            _conv_norm(out_channels, width, 1, norm, relu=False) for _ in range(num_stacks - 1)
        )
        self.merge = nn.ModuleList(
            ResidualBlock(width, width, 1, norm) for _ in range(num_stacks - 1)
        )
        self.checkpoint_activations = checkpoint_activations
        for block in (*self.hourglasses.modules(), *self.merge):
            if isinstance(block, ResidualBlock):
                block.checkpoint_activations = checkpoint_activations
        self._out_features = [f"stack{i + 1}" for i in range(num_stacks)]
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._out_feature_strides = dict.fromkeys(self._out_features, STRIDE)
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        hourglass = cfg.MODEL.HOURGLASS
        return {
            "num_stacks": hourglass.NUM_STACKS,
            "channels": hourglass.CHANNELS,
            "blocks": hourglass.BLOCKS,
            "stem_channels": hourglass.STEM_CHANNELS,
            "out_channels": hourglass.OUT_CHANNELS,
            "in_channels": input_shape.channels,
            "norm": hourglass.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "checkpoint_activations": cfg.MODEL.CENTRIPETALNET.CHECKPOINT_ACTIVATIONS,
        }

    def freeze(self, freeze_at: int) -> None:
        """Freezes the first stages: their weights are not trained, their norms become FrozenBN.

        Args:
            freeze_at: number of stages. The first is the stem. Each further one is an hourglass,
                its output convolution and the layers that merge its input.

        Raises:
            ValueError: if there are fewer stages.
        """
        stages = [[self.stem]]
        for i, hourglass in enumerate(self.hourglasses):
            merging = [self.merge_in, self.merge_out, self.merge] if i > 0 else []
            stages.append([hourglass, self.out_convs[i], *(x[i - 1] for x in merging)])
        if not 0 <= freeze_at <= len(stages):
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT must be from 0 to {len(stages)}, as the backbone has a "
                f"stem and {len(self.hourglasses)} hourglasses; got {freeze_at}"
            )
        for module in chain(*stages[:freeze_at]):
            module.requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(module)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, in_channels, h, w), normalised.

        Returns:
            ``stack1``, ``stack2``, ...: (N, out_channels, H, W) each.
        """
        if self.checkpoint_activations and self.training:
            x = run_checkpointed(self.stem, self.stem, x)
        else:
            x = self.stem(x)
        features = {}
        for i, name in enumerate(self._out_features):
            features[name] = self.out_convs[i](self.hourglasses[i](x))
            if i + 1 < len(self._out_features):
                merged = self.merge_in[i](x).add_(self.merge_out[i](features[name]))
                x = self.merge[i](F.relu_(merged))
        return features


@BACKBONE_REGISTRY.register()
def build_hourglass_backbone(cfg, input_shape: ShapeSpec) -> StackedHourglass:
    """Builder for ``MODEL.BACKBONE.NAME: build_hourglass_backbone``."""
    return StackedHourglass(cfg, input_shape)
