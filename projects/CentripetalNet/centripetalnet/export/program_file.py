"""The exported graph as a program of ``torch.export``."""

import inspect
from typing import Callable, Dict, Sequence

import torch
from torch import Tensor

from ..layers import corner_pool_reference
from ..modeling import CentripetalNet
from ..modeling.hourglass import Hourglass
from ..structures import Candidates
from .detector import EXAMPLE_SIZE, ExportedDetector, noise

# Pixels of a side; torch.export wants a limit.
_LARGEST = 65536


def export_program(model: CentripetalNet, path: str, metadata: Dict[str, str]) -> None:
    """Writes a detector as a program for ``torch.export.load``, for pictures from 2 x 2 pixels.

    Args:
        model: on the CPU.
        path: the file.
        metadata: goes into the file, see :func:`metadata_of`: each value under its key among
            ``extra_files`` of ``torch.export.load``.

    Raises:
        ValueError: if the detector cannot be exported, or PyTorch is older than 2.3.
    """
    if "strict" not in inspect.signature(torch.export.export).parameters:
        raise ValueError(
            f"a program for torch.export.load needs PyTorch 2.3, this is {torch.__version__}; "
            "export to ONNX instead"
        )
    detector = ExportedDetector(model, corner_pool_reference)
    for module in detector.modules():
        if isinstance(module, Hourglass):
            module.enlarge = _doubled
    height, width = (torch.export.Dim(x, max=_LARGEST) for x in ("height", "width"))
    with torch.no_grad():
        program = torch.export.export(
            detector,
            (noise(EXAMPLE_SIZE),),
            dynamic_shapes={"image": {2: height, 3: width}},
            # Python runs the model, where strict would have its source code translated.
            strict=False,
        )
    torch.export.save(program, path, extra_files=metadata)


def _doubled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest upsampling of (N, C, H, W) to twice its height and width, or one cell less.

    PyTorch 2.3 cannot save what its own does: the ratio of two sizes that are not known yet.
    """
    for axis, length in zip((2, 3), size):
        cell = torch.arange(length, device=x.device)
        x = x.index_select(axis, torch.div(cell, 2, rounding_mode="floor"))
    return x


def load_program(path: str) -> Callable[[Tensor], Candidates]:
    """The program in a file of ``torch.export``."""
    module = torch.export.load(path).module()

    def run(image: Tensor) -> Candidates:
        with torch.no_grad():
            return Candidates(*(x[None] for x in module(image)))

    return run
