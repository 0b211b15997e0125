"""Loads the compiled operators, or warns that plain PyTorch is used instead."""

import importlib
import warnings
from functools import cache
from typing import Optional

import torch

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether an operator has a compiled kernel for a device; warns once per reason if not.

    Args:
        op: name in ``torch.ops.centripetalnet``.
        device: device of its tensors.
    """
    if PROBLEM is None and device.type in KERNEL_DEVICES[op]:
        return True
    if PROBLEM is not None:
        _warn_once(PROBLEM)
    else:
        _warn_once(f"centripetalnet._C was built without kernels for {device.type!r}.")
    return False


def _load() -> Optional[str]:
    """Registers the compiled operators; returns None, or why they are missing."""
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
    """Device types with a kernel; the library may have been built without CUDA."""
    return frozenset(
        device
        for device, key in _DISPATCH_KEYS.items()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"centripetalnet::{op}", key)
    )


@cache
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"{problem} Corner pooling, the heatmap loss and soft-NMS run in plain PyTorch, several "
        "times slower. To build the kernels, run `pip install --no-build-isolation -e .` in "
        "projects/CentripetalNet, with -v to see errors, and with FORCE_CUDA=1 if the CUDA toolkit "
        "is installed but no GPU is visible.",
        stacklevel=4,
    )


PROBLEM = _load()
# Computed at import, since torch.compile cannot trace the query.
KERNEL_DEVICES = {
    op: frozenset() if PROBLEM else _kernel_devices(op)
    for op in ("corner_pool", "gaussian_focal_loss", "soft_nms")
}
