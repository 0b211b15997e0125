"""Focal loss for heatmaps whose targets are Gaussian bumps (arXiv 1808.01244, equation 1).

Shapes: N images, C classes, H x W the heatmap, M bumps.

A bump is (plane, y, x, radius): the heatmap n * C + c, the cell of the peak, and the radius of its
square window in cells. At (dx, dy) cells from the peak, the target is exp(-(dx^2 + dy^2) / (2
sigma^2)) with sigma = (2 radius + 1) / 6; it is 0 outside the window. Where bumps of one plane
overlap, the target is their maximum.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .extension import has_kernel

# plane, y, x, radius
BUMP_SIZE = 4


def gaussian_focal_loss(
    logits: Tensor, bumps: Tensor, plane_start: Tensor, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Sum of the focal loss over all cells.

    With p = sigmoid(logit) and t the target, a cell adds ``-log(p) (1 - p)^alpha`` where t = 1, the
    peak of a bump, and ``-log(1 - p) p^alpha (1 - t)^beta`` elsewhere. It is numerically stable.
    The only map kept for the backward pass is the logits. A second derivative is an error.

    Args:
        logits: (N, C, H, W), NCHW or channels-last, of any floating point dtype.
        bumps: (M, 4) int32, sorted by plane. Bumps with a negative radius are ignored.
        plane_start: (N * C + 1,) int32; the bumps of plane i are
            ``bumps[plane_start[i]:plane_start[i + 1]]``.
        alpha: focusing exponent, not negative: lowers the weight of well-classified cells.
        beta: exponent, not negative: lowers the weight of negative cells near a peak.

    Returns:
        A scalar, float64 for float64 logits, else float32.

    Raises:
        TypeError: if a dtype is not as above.
        ValueError: if shapes do not match, an exponent is negative or not finite or, on the CPU,
            if a peak is outside the map or ``bumps`` and ``plane_start`` disagree.

    Source: CornerNet, arXiv 1808.01244, equation 1.
    """
    if has_kernel("gaussian_focal_loss", logits.device):
        return torch.ops.centripetalnet.gaussian_focal_loss(logits, bumps, plane_start, alpha, beta)
    _check_arguments(logits, bumps, plane_start, alpha, beta)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    targets = render_bumps(bumps, tuple(logits.shape), dtype)
    return gaussian_focal_loss_reference(logits, targets, alpha, beta)


def gaussian_focal_loss_reference(
    logits: Tensor, targets: Tensor, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """:func:`gaussian_focal_loss` in PyTorch operators, with a dense target.

    It is several times slower and keeps several tensors of the size of the logits.

    Args:
        logits: any shape.
        targets: same shape, in [0, 1]; exactly 1 at positive cells.
        alpha, beta: exponents, see :func:`gaussian_focal_loss`.

    Returns:
        A scalar, float32 or float64.

    Source: CornerNet, arXiv 1808.01244, equation 1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    # At a positive cell (1 - t)^beta is 0 only if beta > 0.
    weight = (1 - targets).pow(beta) * targets.ne(1)
    negative = log_not_p * (alpha * log_p).exp() * weight
    positive = log_p * (alpha * log_not_p).exp() * targets.eq(1)
    return -(negative + positive).sum()


def render_bumps(bumps: Tensor, shape: tuple, dtype: torch.dtype = torch.float32) -> Tensor:
    """Renders bumps to dense targets.

    Args:
        bumps: (M, 4) integers, see :func:`gaussian_focal_loss`.
        shape: (N, C, H, W).
        dtype: of the result.

    Returns:
        (N, C, H, W) in [0, 1], exactly 1 at the peaks.

    Raises:
        ValueError: if ``bumps`` is not (M, 4) or ``shape`` has no 4 entries.

    Source: CornerNet, arXiv 1808.01244, section 3.2.
    """
    if bumps.dim() != 2 or bumps.shape[1] != BUMP_SIZE:
        raise ValueError(f"render_bumps expects bumps of shape (M, 4), got {tuple(bumps.shape)}")
    if len(shape) != 4:
        raise ValueError(f"render_bumps expects a shape (N, C, H, W), got {tuple(shape)}")
    num_images, num_classes, height, width = shape
    plane, y, x, radius = bumps.long().unbind(dim=1)
    values = (
        _profile(height, y, radius, dtype)[:, :, None] * _profile(width, x, radius, dtype)[:, None]
    )
    heatmap = torch.zeros(num_images * num_classes, height, width, dtype=dtype, device=bumps.device)
    index = plane[:, None, None].expand_as(values)
    return heatmap.scatter_reduce_(0, index, values, "amax").view(shape)


def _check_arguments(
    logits: Tensor, bumps: Tensor, plane_start: Tensor, alpha: float, beta: float
) -> None:
    shape = tuple(logits.shape)
    if len(shape) != 4:
        raise ValueError(f"gaussian_focal_loss expects logits of shape (N, C, H, W), got {shape}")
    if not logits.is_floating_point():
        raise TypeError(f"gaussian_focal_loss expects floating point logits, got {logits.dtype}")
    if plane_start.shape != (shape[0] * shape[1] + 1,):
        raise ValueError(
            "gaussian_focal_loss expects plane_start of shape (N * C + 1,) for logits of shape "
            f"{shape}, got {tuple(plane_start.shape)}"
        )
    if bumps.dtype != torch.int32 or plane_start.dtype != torch.int32:
        raise TypeError(
            "gaussian_focal_loss expects bumps and plane_start in int32, got "
            f"{bumps.dtype} and {plane_start.dtype}"
        )
    if not (0 <= alpha < math.inf and 0 <= beta < math.inf):
        raise ValueError(
            "gaussian_focal_loss expects alpha and beta to be finite and not negative, got "
            f"{alpha} and {beta}"
        )


def _profile(size: int, peak: Tensor, radius: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, size) one-dimensional Gaussian around each peak, 0 outside the window."""
    distance = torch.arange(size, device=peak.device) - peak[:, None]
    sigma = (2 * radius[:, None] + 1).to(dtype) / 6
    profile = torch.exp(-distance.square() / (2 * sigma.square()))
    return profile.masked_fill(distance.abs() > radius[:, None], 0)
