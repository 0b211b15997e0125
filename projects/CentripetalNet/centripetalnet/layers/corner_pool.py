"""Corner pooling: the running maximum along one axis, up to the feature map's border.

N images, C channels, H x W the feature map.
"""

import torch
from torch import Tensor

from .extension import has_kernel

__all__ = ["corner_pool", "corner_pool_reference"]

# Direction arguments of the compiled operator, see csrc/scan_layout.h.
_DIRECTIONS = {"top": 0, "bottom": 1, "left": 2, "right": 3}


def corner_pool(input: Tensor, direction: str) -> Tensor:
    """Replaces every element by the maximum of the elements from it to one border of the map.

    NaN propagates along the scan. Of equal values, the one that the scan reaches last gets the
    gradient. Both are as in :func:`torch.cummax`. The output has the memory format of the input,
    NCHW or channels-last. A second derivative is an error.

    Args:
        input: (N, C, H, W), float32, float64, float16 or bfloat16. Autocast does not change the
            dtype.
        direction: where the scan runs to. "top": the maximum over rows >= the element's own,
            "bottom": rows <=, "left": columns >=, "right": columns <=.

    Returns:
        (N, C, H, W), dtype of the input.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``input`` is not 4-d, or the direction is unknown.

    Source: CornerNet, arXiv 1808.01244, section 3.4; used by CentripetalNet, arXiv 2003.09119.
    """
    _check_arguments(input, direction)
    if not has_kernel("corner_pool", input.device):
        return corner_pool_reference(input, direction)
    return torch.ops.centripetalnet.corner_pool(input, _DIRECTIONS[direction])


def corner_pool_reference(input: Tensor, direction: str) -> Tensor:
    """:func:`corner_pool` in PyTorch operators.

    It is several times slower and keeps an int64 index per element for the backward pass.

    Args:
        input: (N, C, H, W), floating point.
        direction: "top", "bottom", "left" or "right".

    Returns:
        (N, C, H, W), dtype of the input.

    Raises:
        TypeError: ``input`` is not a floating point tensor.
        ValueError: ``input`` is not 4-d, or the direction is unknown.

    Source: CornerNet, arXiv 1808.01244, section 3.4.
    """
    _check_arguments(input, direction)
    axis = 2 if direction in ("top", "bottom") else 3
    if direction in ("bottom", "right"):
        return input.cummax(axis).values
    return input.flip(axis).cummax(axis).values.flip(axis)


def _check_arguments(input: Tensor, direction: str) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"corner_pool expects a tensor, got {type(input).__name__}")
    if not input.is_floating_point():
        raise TypeError(f"corner_pool expects a floating point tensor, got {input.dtype}")
    if input.dim() != 4:
        raise ValueError(
            f"corner_pool expects an input of shape (N, C, H, W), got {tuple(input.shape)}"
        )
    if direction not in _DIRECTIONS:
        raise ValueError(
            f"corner_pool expects a direction out of {list(_DIRECTIONS)}, got {direction!r}"
        )
