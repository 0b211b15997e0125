"""The exported graph as a program of ``torch.export``."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..layers import corner_pool_reference
from ..modeling import CentripetalNet
from ..modeling.hourglass import Hourglass
from ..structures import Candidates
from .detector import EXAMPLE_SIZE, ExportedDetector, noise

# Limit of height and width in pixels, which torch.export requires.
_LARGEST = 65536


def export_program(model: CentripetalNet, path: str, metadata: dict[str, str]) -> None:
    """Writes a detector as a program for ``torch.export.load``, for images from 2 x 2 pixels.

    Args:
        model: on the CPU.
        path: the file.
        metadata: of the file, see :func:`metadata_of`; ``extra_files`` of ``torch.export.load``.

    Raises:
        ValueError: if the detector cannot be exported, or PyTorch is older than 2.3.
    """
    if "strict" not in inspect.signature(torch.export.export).parameters:
        raise ValueError(
            f"PyTorch is {torch.__version__}, expected 2.3 or newer for a program for "
            "torch.export.load. Update PyTorch or export to ONNX."
        )
    detector = ExportedDetector(model, corner_pool_reference)
    for module in detector.modules():
        if isinstance(module, Hourglass):
            module.enlarge = _doubled
        # TensorFlow's padding in networks of timm.
        if type(module).__name__ == "Conv2dSame":
            module.forward = partial(_convolved, module)
    _register_listed_modules(detector)
    height, width = (torch.export.Dim(x, max=_LARGEST) for x in ("height", "width"))
    with torch.no_grad(), _IntegerSizes():
        program = torch.export.export(
            detector,
            (noise(EXAMPLE_SIZE),),
            dynamic_shapes={"image": {2: height, 3: width}},
            # Strict mode would translate the source code of the model instead of running it.
            strict=False,
        )
    torch.export.save(program, path, extra_files=metadata)


def _register_listed_modules(model: nn.Module) -> None:
    """Turns the plain lists of modules in Detectron2's backbones into ``ModuleList``.

    PyTorch 2.3 finds the name of no module that is called from a plain list.
    """
    for module in list(model.modules()):
        for name, value in list(vars(module).items()):
            if isinstance(value, list) and value and isinstance(value[0], nn.Module):
                # Under two names torch.export would not restore its weights.
                for child, submodule in list(module.named_children()):
                    if submodule in value:
                        delattr(module, child)
                delattr(module, name)
                setattr(module, name, nn.ModuleList(value))


class _IntegerSizes(TorchFunctionMode):
    """Replaces the upsampling of Detectron2's FPN, whose sizes PyTorch 2.3 multiplies as floats."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        doubles = kwargs.get("scale_factor") == 2.0 and kwargs.get("mode") == "nearest"
        if func is F.interpolate and doubles:
            return _doubled(*args, [2 * size for size in args[0].shape[-2:]])
        return func(*args, **kwargs)


def _doubled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest upsampling of (N, C, H, W) to twice its height and width, or one cell less.

    PyTorch 2.3 cannot save its own upsampling with a ratio of two dynamic sizes.
    """
    for axis, length in zip((2, 3), size):
        cell = torch.arange(length, device=x.device)
        x = x.index_select(axis, torch.div(cell, 2, rounding_mode="floor"))
    return x


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution with "SAME" padding of (N, C, H, W), whose sides are multiples of the stride.

    Canvases are multiples of all strides, so the padding is constant. timm computes it from H and W
    with terms that PyTorch 2.14 cannot prove equal.
    """
    border = []
    for axis in (1, 0):
        size = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        total = max(size - conv.stride[axis], 0)
        border += [total // 2, total - total // 2]
    return F.conv2d(
        F.pad(x, border), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups
    )


def load_program(path: str) -> Callable[[Tensor], Candidates]:
    """Loads a file of ``torch.export``."""
    module = torch.export.load(path).module()

    def run(image: Tensor) -> Candidates:
        with torch.no_grad():
            return Candidates(*(x[None] for x in module(image)))

    return run
