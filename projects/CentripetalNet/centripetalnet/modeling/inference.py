"""Optimizes a detector for inference."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from .meta_arch import CentripetalNet
from .precision import cpu_has_bfloat16, dtype_of, inference_format_of

logger = logging.getLogger(__name__)


class _ToFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def optimize_for_inference(model: nn.Module, precision: str = "float32") -> CentripetalNet:
    """Copies a detector for faster inference in less memory; same results up to rounding.

    Batch norms are folded into the convolutions, the memory format is the faster one of the device
    and the precision, and heads that only training uses are removed. In bfloat16 or float16, the
    backbone, corner pooling, the hidden convolution of the heatmaps and the mask head use it, which
    are nearly all FLOPs. Scores, shifts, matching and soft-NMS stay in float32 for accuracy.

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
        if isinstance(module, Conv2d) and _is_foldable(module.norm):
            _fold(module.norm, module)
            module.norm = None
    _fold_separate_norms(model)
    model.backbone.to(dtype)
    for branch in (model.heads[-1].tl, model.heads[-1].br):
        hidden, last = branch.heatmap
        branch.pooling.to(dtype)
        branch.heatmap = nn.Sequential(hidden.to(dtype), _ToFloat32(), last)
    if model.mask_head is not None:
        model.mask_head.layers.to(dtype)
    model.memory_format = inference_format_of(model.device, dtype)
    return model.to(memory_format=model.memory_format).requires_grad_(False)


def _is_foldable(module: object) -> bool:
    """Whether a module is a batch norm, perhaps frozen, perhaps with an activation behind it."""
    # The frozen ones of torchvision and timm have no common base class.
    is_norm = isinstance(module, (_BatchNorm, FrozenBatchNorm2d)) or (
        isinstance(module, nn.Module) and type(module).__name__.startswith("FrozenBatchNorm")
    )
    return is_norm and module.running_mean is not None


def _fold(norm: nn.Module, conv: nn.Conv2d) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


class _Uses(TorchFunctionMode):
    """Notes the weight behind each output of a convolution, and how often each tensor is used."""

    def __init__(self):
        super().__init__()
        self.weight_behind: dict[int, int] = {}
        self.uses: Counter = Counter()
        # Alive, an id is that of one tensor.
        self._alive: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # Not sizes and the like.
        if isinstance(result, Tensor):
            self.uses.update(map(id, _tensors_in((args, kwargs or {}))))
            self._alive.append(result)
            if func is torch.conv2d and len(args) > 1:
                self.weight_behind[id(result)] = id(args[1])
        return result


def _tensors_in(value: object) -> Iterator[Tensor]:
    """Tensors in nested arguments, such as the list of ``torch.cat``."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for x in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(x)


@torch.no_grad()
def _fold_separate_norms(model: CentripetalNet) -> None:
    """Folds batch norms of the backbone that are modules beside their convolutions.

    Which convolution a batch norm follows is seen in a forward pass, as it is nowhere else: not in
    the order of the modules. A norm stays if the output of the convolution is used a second time.
    """
    backbone = model.backbone
    norms = {name: x for name, x in backbone.named_modules() if _is_foldable(x)}
    if not norms:
        return
    inputs: list[tuple[str, int]] = []

    def noting(name: str):
        return lambda module, args: inputs.append((name, id(args[0])))

    handles = [x.register_forward_pre_hook(noting(name)) for name, x in norms.items()]
    canvas, _ = model.test_canvas([torch.zeros(len(model.pixel_mean), 1, 1)])
    with _Uses() as seen:
        backbone(canvas)
    for handle in handles:
        handle.remove()
    convs = {id(x.weight): x for x in backbone.modules() if isinstance(x, nn.Conv2d)}
    calls = Counter(name for name, _ in inputs)
    for name, source in inputs:
        weight = seen.weight_behind.get(source)
        # The weight itself, not one that the module computes from it.
        if weight not in convs or calls[name] > 1 or max(seen.uses[source], seen.uses[weight]) > 1:
            continue
        norm = norms[name]
        _fold(norm, convs[weight])
        parent, _, child = name.rpartition(".")
        rest = [
            x for x in (getattr(norm, "drop", None), getattr(norm, "act", None)) if x is not None
        ]
        setattr(backbone.get_submodule(parent), child, nn.Sequential(*rest))
