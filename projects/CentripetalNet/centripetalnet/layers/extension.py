"""The compiled operators, and what to do where there are none."""

import importlib
import warnings
from functools import lru_cache
from typing import Optional

import torch

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether an operator of this project runs compiled on a device.

    Where it does not, that is told once for each reason.

    Args:
        op: name in ``torch.ops.centripetalnet``.
        device: where its tensors are.
    """
    if PROBLEM is None and device.type in KERNEL_DEVICES[op]:
        return True
    if PROBLEM is not None:
        _warn_once(PROBLEM)
    else:
        _warn_once(f"centripetalnet._C was built without kernels for {device.type!r}.")
    return False


def _load() -> Optional[str]:
    """Registers the compiled operators; returns None, or why they are not there."""
    try:
        importlib.import_module("centripetalnet._C")
    except ModuleNotFoundError as error:
        if error.name == "centripetalnet._C":
            return "centripetalnet._C is not built."
        return f"centripetalnet._C could not be loaded: {error}."
    except (ImportError, OSError) as error:
        return f"centripetalnet._C could not be loaded: {error}."
    return None


def _kernel_devices(op: str) -> frozenset:
    """Types of device; a library built without CUDA is no reason to fail on a GPU."""
    return frozenset(
        device
        for device, key in _DISPATCH_KEYS.items()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"centripetalnet::{op}", key)
    )


@lru_cache(maxsize=None)
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"{problem} Corner pooling, the heat-map loss and soft-NMS run in PyTorch's own operators, "
        "which is several times slower. To build the kernels, run `pip install "
        "--no-build-isolation -e .` in projects/CentripetalNet, with -v to see why that fails, and "
        "with FORCE_CUDA=1 where there is the CUDA toolkit but no GPU.",
        stacklevel=4,
    )


PROBLEM = _load()
# Known from the start, since torch.compile cannot ask for it.
KERNEL_DEVICES = {
    op: frozenset() if PROBLEM else _kernel_devices(op)
    for op in ("corner_pool", "gaussian_focal_loss", "soft_nms")
}
