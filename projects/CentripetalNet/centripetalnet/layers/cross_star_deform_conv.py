"""The convolution before the centripetal shift: cross-star deformable, or what replaces it.

Source: arXiv 2003.09119, section 3.2.

Shapes: N images, C channels, H x W the feature map, P = 9 taps of the 3 x 3 kernel, row by row, M
selected cells.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, DeformConv
from torch import Tensor, nn

KERNEL_SIZE = 3
NUM_TAPS = KERNEL_SIZE * KERNEL_SIZE


def deform_conv3x3(feature: Tensor, sampling_offset: Tensor, weight: Tensor) -> Tensor:
    """3 x 3 deformable convolution, stride, padding and dilation 1, in differentiable torch ops.

    Same results and gradients as ``detectron2.layers.DeformConv`` up to rounding, which has no
    backward on the CPU. It samples all taps at once and applies one 1 x 1 convolution. On the CPU
    this is several times faster than torchvision's operator.

    Args:
        feature: (N, C, H, W); zero outside the map.
        sampling_offset: (N, 2P, H, W) in cells, (dy, dx) for each tap.
        weight: (C_out, C, 3, 3).

    Returns:
        (N, C_out, H, W).
    """
    num_images, channels, height, width = feature.shape
    # Coordinates in half precision would be wrong by whole cells on a map of 128.
    with torch.autocast(feature.device.type, enabled=False):
        dy, dx = sampling_offset.float().view(num_images, NUM_TAPS, 2, height, width).unbind(2)
        rows = torch.arange(height, device=feature.device, dtype=dy.dtype).view(height, 1)
        columns = torch.arange(width, device=feature.device, dtype=dy.dtype)
        tap = torch.arange(KERNEL_SIZE, device=feature.device, dtype=dy.dtype) - KERNEL_SIZE // 2
        tap_y = tap.repeat_interleave(KERNEL_SIZE).view(NUM_TAPS, 1, 1)
        tap_x = tap.repeat(KERNEL_SIZE).view(NUM_TAPS, 1, 1)
        # With align_corners=False, -1 and 1 are the outer edges of the border cells. The other
        # convention, centres of the border cells, is undefined for a map one cell wide.
        x = (2 * (columns + tap_x + dx) + 1) / width - 1
        y = (2 * (rows + tap_y + dy) + 1) / height - 1
        grid = torch.stack((x, y), dim=-1).view(num_images, NUM_TAPS * height, width, 2)
        samples = F.grid_sample(
            feature.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        samples = samples.view(num_images, channels * NUM_TAPS, height, width)
        # Casting the samples, nine times the size of the feature map, to half precision costs more
        # than the faster product saves.
        output = F.conv2d(samples, weight.float().reshape(len(weight), channels * NUM_TAPS, 1, 1))
    return output.to(feature.dtype)


def sample_bilinear(feature: Tensor, image_index: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear sampling of a feature map; zero outside.

    Args:
        feature: (N, C, H, W) float32.
        image_index: (Q,) integers in [0, N).
        y, x: (Q,) cells; integer coordinates are cell centres.

    Returns:
        (Q, C). Differentiable in ``feature``, ``y`` and ``x``.
    """
    num_images, channels, height, width = feature.shape
    # A NaN position would become an arbitrary index. Its weight below stays NaN.
    top, left = y.detach().floor().nan_to_num(), x.detach().floor().nan_to_num()
    rows, columns = torch.stack((top, top + 1), dim=1), torch.stack((left, left + 1), dim=1)
    # A bilinear weight is one minus the distance, and 0 for rows and columns outside the map.
    weight_y = (1 - (y[:, None] - rows).abs()) * ((rows >= 0) & (rows < height))
    weight_x = (1 - (x[:, None] - columns).abs()) * ((columns >= 0) & (columns < width))
    rows, columns = rows.clamp(0, height - 1).long(), columns.clamp(0, width - 1).long()
    cells = (image_index[:, None] * height + rows)[:, :, None] * width + columns[:, None]
    cells, weights = cells.flatten(1), (weight_y[:, :, None] * weight_x[:, None]).flatten(1)
    values = feature.permute(0, 2, 3, 1).reshape(num_images * height * width, channels)
    weights_alone_learn = weights.requires_grad and not values.requires_grad
    if weights_alone_learn or torch.onnx.is_in_onnx_export():
        # embedding_bag has no gradient for the weights alone (frozen feature), and its ONNX export
        # is a loop over the positions.
        return (values[cells] * weights[:, :, None]).sum(dim=1)
    return F.embedding_bag(cells, values, mode="sum", per_sample_weights=weights)


def _tap_steps(device: torch.device) -> tuple[Tensor, Tensor]:
    """(P,) dy and dx of the taps from the kernel's centre, row by row."""
    step = torch.arange(NUM_TAPS, device=device)
    step_y = torch.div(step, KERNEL_SIZE, rounding_mode="floor") - KERNEL_SIZE // 2
    return step_y, step % KERNEL_SIZE - KERNEL_SIZE // 2


class DeformConv3x3(nn.Module):
    """3 x 3 deformable convolution of a map or at some of its cells; the subclass has the offsets.

    Each subclass is a convolution that CentripetalNet can have before the centripetal shift.
    """

    # Standard deviation of the released model's normal initialisation.
    DEFORM_CONV_STD = 0.01

    def __init__(self, channels: int, sampling_offset: Conv2d, offset_std: float):
        """
        Args:
            channels: C, input and output channels.
            sampling_offset: convolution that gives the 2P offsets.
            offset_std: standard deviation of its initial weights.
        """
        super().__init__()
        self.sampling_offset = sampling_offset
        self.deform_conv = DeformConv(
            channels, channels, kernel_size=KERNEL_SIZE, padding=1, bias=False
        )
        nn.init.normal_(self.sampling_offset.weight, std=offset_std)
        nn.init.normal_(self.deform_conv.weight, std=self.DEFORM_CONV_STD)

    def forward(self, feature: Tensor, guiding_shift: Optional[Tensor]) -> Tensor:
        """
        Args:
            feature: (N, C, H, W), the corner-pooled feature.
            guiding_shift: (N, 2, H, W) in cells, x then y; None if the offsets do not need it.

        Returns:
            (N, C, H, W).
        """
        # Sampling offsets need float32 in mixed precision, too.
        with torch.autocast(feature.device.type, enabled=False):
            sampling_offset = self.offsets(feature, guiding_shift, padded=True)
        if feature.is_cuda:
            with torch.autocast(feature.device.type, enabled=False):
                return self.deform_conv(feature.float(), sampling_offset).to(feature.dtype)
        return deform_conv3x3(feature, sampling_offset, self.deform_conv.weight)

    def at_cells(
        self,
        feature: Tensor,
        patches: Tensor,
        guiding_shift: Optional[Tensor],
        image_index: Tensor,
        y: Tensor,
        x: Tensor,
    ) -> Tensor:
        """:meth:`forward` only in the 3 x 3 neighbourhoods of the given cells.

        Args:
            feature: (N, C, H, W), the corner-pooled feature.
            patches: (M, C, 5, 5) of it, centred on the cells.
            guiding_shift: (M, 2, 3, 3) in cells, x then y, in the neighbourhood of each cell.
            image_index, y, x: (M,) integers, positions of the cells.

        Returns:
            (M, C, 3, 3) float32, zero outside the map.
        """
        num_cells, channels = len(y), feature.shape[1]
        with torch.autocast(feature.device.type, enabled=False):
            offset = self.offsets(patches, guiding_shift, padded=False)
            # (M, neighbour, tap, 2)
            offset = offset.view(num_cells, NUM_TAPS, 2, NUM_TAPS).permute(0, 3, 1, 2)
            # Neighbours and taps are in the same order.
            step_y, step_x = _tap_steps(y.device)
            near_y, near_x = y[:, None] + step_y, x[:, None] + step_x
            sampled_y = near_y[:, :, None] + step_y + offset[..., 0]
            sampled_x = near_x[:, :, None] + step_x + offset[..., 1]
            samples = sample_bilinear(
                feature.float(),
                image_index[:, None, None].expand_as(sampled_y).reshape(-1),
                sampled_y.reshape(-1),
                sampled_x.reshape(-1),
            )
            weight = self.deform_conv.weight.float().permute(2, 3, 1, 0)
            output = samples.view(num_cells * NUM_TAPS, NUM_TAPS * channels) @ weight.flatten(0, 2)
            output = output.view(num_cells, NUM_TAPS, channels)
            output = output * inside_map(feature, near_y, near_x)[:, :, None]
        return output.permute(0, 2, 1).reshape(num_cells, channels, KERNEL_SIZE, KERNEL_SIZE)

    def sampling_points(
        self, patches: Tensor, guiding_shift: Optional[Tensor], y: Tensor, x: Tensor
    ) -> Tensor:
        """Sampling points of the convolution at the given cells, for visualization.

        Args:
            patches: (M, C, 3, 3) of the corner-pooled feature, centred on the cells.
            guiding_shift: (M, 2, 1, 1) in cells, x then y, at the cells.
            y, x: (M,) integers, positions of the cells.

        Returns:
            (M, P, 2) cells, x then y; integer coordinates are cell centres.
        """
        offset = self.offsets(patches, guiding_shift, padded=False)
        dy, dx = offset.view(len(y), NUM_TAPS, 2).unbind(dim=2)
        step_y, step_x = _tap_steps(y.device)
        return torch.stack((x[:, None] + step_x + dx, y[:, None] + step_y + dy), dim=2)

    def offsets(self, feature: Tensor, guiding_shift: Optional[Tensor], padded: bool) -> Tensor:
        """Sampling offsets in cells, (dy, dx) for each tap.

        Args:
            feature: (N, C, H, W), the corner-pooled feature.
            guiding_shift: (N, 2, ...) in cells, x then y, at the cells of the offsets.
            padded: whether to pad the feature with zeros.

        Returns:
            (N, 2P, H, W), or (N, 2P, H - 2, W - 2) without padding.
        """
        raise NotImplementedError


class CrossStarDeformConv(DeformConv3x3):
    """Deformable convolution whose sampling offsets are computed from the guiding shift.

    The guiding shift points from a corner to the centre of its object. A 1 x 1 convolution maps it
    to the offsets of the nine taps, so that the kernel samples along the "cross star" that corner
    pooling leaves on the feature map. No gradient flows back into the guiding shift.

    Source: arXiv 2003.09119, section 3.2.
    """

    # Standard deviation of the released model's normal initialisation.
    SAMPLING_OFFSET_STD = 0.1

    def __init__(self, channels: int):
        """
        Args:
            channels: C, input and output channels.
        """
        sampling_offset = Conv2d(2, 2 * NUM_TAPS, kernel_size=1, bias=False)
        super().__init__(channels, sampling_offset, self.SAMPLING_OFFSET_STD)

    def offsets(self, feature: Tensor, guiding_shift: Optional[Tensor], padded: bool) -> Tensor:
        return self.sampling_offset(guiding_shift.detach().float())


class FreeDeformConv(DeformConv3x3):
    """Deformable convolution whose sampling offsets are learnt from the feature alone.

    Source: arXiv 1703.06211, section 2.1. The offsets begin with zero.
    """

    def __init__(self, channels: int):
        """
        Args:
            channels: C, input and output channels.
        """
        sampling_offset = Conv2d(channels, 2 * NUM_TAPS, kernel_size=KERNEL_SIZE, padding=1)
        super().__init__(channels, sampling_offset, 0.0)
        nn.init.zeros_(self.sampling_offset.bias)

    def offsets(self, feature: Tensor, guiding_shift: Optional[Tensor], padded: bool) -> Tensor:
        conv = self.sampling_offset
        return F.conv2d(feature.float(), conv.weight, conv.bias, padding=int(padded))


class PlainConv3x3(nn.Module):
    """3 x 3 convolution with the interface of :class:`DeformConv3x3`, for comparison."""

    def __init__(self, channels: int):
        """
        Args:
            channels: C, input and output channels.
        """
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel_size=KERNEL_SIZE, padding=1, bias=False)
        nn.init.normal_(self.conv.weight, std=DeformConv3x3.DEFORM_CONV_STD)

    def forward(self, feature: Tensor, guiding_shift: Optional[Tensor]) -> Tensor:
        """See :meth:`DeformConv3x3.forward`."""
        return self.conv(feature)

    def at_cells(
        self,
        feature: Tensor,
        patches: Tensor,
        guiding_shift: Optional[Tensor],
        image_index: Tensor,
        y: Tensor,
        x: Tensor,
    ) -> Tensor:
        """See :meth:`DeformConv3x3.at_cells`."""
        step_y, step_x = _tap_steps(y.device)
        inside = inside_map(feature, y[:, None] + step_y, x[:, None] + step_x)
        inside = inside.view(len(y), 1, KERNEL_SIZE, KERNEL_SIZE)
        return F.conv2d(patches, self.conv.weight) * inside

    def sampling_points(self, *args) -> None:
        """None: the convolution samples the 3 x 3 cells."""


def inside_map(feature: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Whether cells (y, x) are on the map of a (N, C, H, W) feature; bool of their shape."""
    is_row = (y >= 0) & (y < feature.shape[2])
    return is_row & (x >= 0) & (x < feature.shape[3])
