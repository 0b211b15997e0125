"""A detector in training to one that only detects."""

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
    """A copy of a detector that detects the same, faster and in less memory.

    Batch norm is folded into the convolutions, feature maps have their channels last, and heads
    that only training reads are left out. In a lower precision the backbone, corner pooling, the
    hidden convolution of the heat maps and the mask head, nearly all of the arithmetic, are
    computed in it; scores, shifts, matching and soft-NMS, which need the digits, stay in float32.

    Args:
        model: a CentripetalNet, possibly wrapped for distributed training. It is left as it is, and
            what happens to it later does not reach the copy.
        precision: "float32", "bfloat16" or "float16".

    Returns:
        The copy, in evaluation mode and without gradients.

    Raises:
        TypeError: if the model is another one.
        ValueError: if there is no such precision, or the model's device cannot convolve in it.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if not isinstance(model, CentripetalNet):
        raise TypeError(f"this is for CentripetalNet, got a {type(model).__name__}")
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
