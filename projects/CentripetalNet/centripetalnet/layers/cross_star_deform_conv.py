"""Cross-star deformable convolution (arXiv 2003.09119, section 3.3).

Shapes: N images, C channels, H x W the feature map, P = 9 taps of the 3 x 3 kernel, row by row.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, DeformConv
from torch import Tensor, nn

KERNEL_SIZE = 3
NUM_TAPS = KERNEL_SIZE * KERNEL_SIZE


def deform_conv3x3(feature: Tensor, sampling_offset: Tensor, weight: Tensor) -> Tensor:
    """3 x 3 deformable convolution, stride, padding and dilation 1, in differentiable torch ops.

    The same numbers and gradients as ``detectron2.layers.DeformConv``, which has no backward on the
    CPU. Bilinear sampling of all taps at once is followed by one 1 x 1 convolution, which on the
    CPU is several times faster than torchvision's operator.

    Args:
        feature: (N, C, H, W).
        sampling_offset: (N, 2P, H, W) in cells, (dy, dx) for each tap. Zero outside the map.
        weight: (C_out, C, 3, 3).

    Returns:
        (N, C_out, H, W).
    """
    num_images, channels, height, width = feature.shape
    # A coordinate in half precision would be wrong by whole cells on a map of 128.
    with torch.autocast(feature.device.type, enabled=False):
        dy, dx = sampling_offset.float().view(num_images, NUM_TAPS, 2, height, width).unbind(2)
        rows = torch.arange(height, device=feature.device, dtype=dy.dtype).view(height, 1)
        columns = torch.arange(width, device=feature.device, dtype=dy.dtype)
        tap = torch.arange(KERNEL_SIZE, device=feature.device, dtype=dy.dtype) - KERNEL_SIZE // 2
        tap_y = tap.repeat_interleave(KERNEL_SIZE).view(NUM_TAPS, 1, 1)
        tap_x = tap.repeat(KERNEL_SIZE).view(NUM_TAPS, 1, 1)
        # grid_sample's coordinates run from -1 to 1 between the outer edges of the border cells;
        # this convention, unlike the one between cell centres, exists for a map one cell wide.
        x = (2 * (columns + tap_x + dx) + 1) / width - 1
        y = (2 * (rows + tap_y + dy) + 1) / height - 1
        grid = torch.stack((x, y), dim=-1).view(num_images, NUM_TAPS * height, width, 2)
        samples = F.grid_sample(
            feature.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
    samples = samples.view(num_images, channels * NUM_TAPS, height, width).to(feature.dtype)
    return F.conv2d(samples, weight.reshape(weight.shape[0], channels * NUM_TAPS, 1, 1))


class CrossStarDeformConv(nn.Module):
    """3 x 3 deformable convolution whose sampling points are steered by the guiding shift.

    The guiding shift points from a corner to the centre of its object; a 1 x 1 convolution turns it
    into the offsets of the nine taps, so that the kernel reaches along the "cross star" which
    corner pooling leaves on the feature map. No gradient flows back into the guiding shift.

    Source: arXiv 2003.09119, section 3.3.
    """

    # Standard deviations of the released model's normal initialisation.
    SAMPLING_OFFSET_STD = 0.1
    DEFORM_CONV_STD = 0.01

    def __init__(self, channels: int):
        """
        Args:
            channels: C, channels of the feature map that comes in and goes out.
        """
        super().__init__()
        self.sampling_offset = Conv2d(2, 2 * NUM_TAPS, kernel_size=1, bias=False)
        self.deform_conv = DeformConv(
            channels, channels, kernel_size=KERNEL_SIZE, padding=1, bias=False
        )
        nn.init.normal_(self.sampling_offset.weight, std=self.SAMPLING_OFFSET_STD)
        nn.init.normal_(self.deform_conv.weight, std=self.DEFORM_CONV_STD)

    def forward(self, feature: Tensor, guiding_shift: Tensor) -> Tensor:
        """
        Args:
            feature: (N, C, H, W), the corner-pooled feature.
            guiding_shift: (N, 2, H, W) in cells, x then y.

        Returns:
            (N, C, H, W).
        """
        # Positions need float32 whatever the convolutions around them are computed in.
        with torch.autocast(feature.device.type, enabled=False):
            sampling_offset = self.sampling_offset(guiding_shift.detach().float())
        if feature.is_cuda:
            with torch.autocast(feature.device.type, enabled=False):
                return self.deform_conv(feature.float(), sampling_offset).to(feature.dtype)
        return deform_conv3x3(feature, sampling_offset, self.deform_conv.weight)
