"""Optimizes a detector for inference."""

import copy
import logging

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..precision import cpu_has_bfloat16, dtype_of
from .meta_arch import CentripetalNet

logger = logging.getLogger(__name__)


class _ToFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def optimize_for_inference(model: nn.Module, precision: str = "float32") -> CentripetalNet:
    """Copies a detector for faster inference in less memory; same results up to rounding.

    Batch norms are folded into the convolutions, the memory format is channels-last, and heads that
    only training uses are removed. In bfloat16 or float16, the backbone, corner pooling, the hidden
    convolution of the heatmaps and the mask head use it, which are nearly all FLOPs. Scores,
    shifts, matching and soft-NMS stay in float32 for accuracy.

    Args:
        model: a CentripetalNet, or one in DistributedDataParallel. It is not modified.
        precision: "float32", "bfloat16" or "float16".

    Returns:
        The copy, in evaluation mode and without gradients. It shares no memory with ``model``.

    Raises:
        TypeError: if the model is not a CentripetalNet.
        ValueError: if the precision is unknown or the model's device does not support it.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if not isinstance(model, CentripetalNet):
        raise TypeError(
            f"optimize_for_inference expects CentripetalNet, got a {type(model).__name__}"
        )
    dtype = dtype_of(precision, model.device)
    if dtype == torch.bfloat16 and model.device.type == "cpu" and not cpu_has_bfloat16():
        logger.warning("This CPU has no bfloat16 arithmetic: TEST.PRECISION float32 is faster.")

    model = copy.deepcopy(model).eval()
    model.heads = model.heads[-1:]
    for module in model.modules():
        if isinstance(module, Conv2d):
            _fold_norm(module)
    model.backbone.to(dtype)
    for branch in (model.heads[-1].tl, model.heads[-1].br):
        hidden, last = branch.heatmap
        branch.pooling.to(dtype)
        branch.heatmap = nn.Sequential(hidden.to(dtype), _ToFloat32(), last)
    if model.mask_head is not None:
        model.mask_head.layers.to(dtype)
    model.memory_format = torch.channels_last
    return model.to(memory_format=torch.channels_last).requires_grad_(False)


def _fold_norm(conv: Conv2d) -> None:
    norm = conv.norm
    if isinstance(norm, (_BatchNorm, FrozenBatchNorm2d)):
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.norm = None
