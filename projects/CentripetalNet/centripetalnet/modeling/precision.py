"""The dtypes that a device can convolve in, and the memory format in which it is faster."""

import logging
from typing import Optional

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions. Without them bfloat16 is slower than float32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(torch.backends.mkldnn.is_available() and supported is not None and supported())


def dtype_of(precision: str, device: torch.device, key: str = "TEST.PRECISION") -> torch.dtype:
    """The dtype of a precision.

    Args:
        precision: "float32", "bfloat16" or "float16".
        device: where the model runs.
        key: of the config, which errors name.

    Raises:
        ValueError: if the precision is unknown or the device cannot convolve in it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{key} must be one of {list(PRECISIONS)}, got {precision!r}")
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return dtype
    x = torch.ones(1, 1, 3, 3, device=device, dtype=dtype)
    try:
        F.conv2d(x, x)
    except RuntimeError as error:
        raise ValueError(
            f"{key} is {precision!r}, but PyTorch {torch.__version__} cannot convolve in it on "
            f"{device.type!r} ({error}). Choose another precision."
        ) from error
    return dtype


def amp_dtype(precision: str, device: torch.device) -> Optional[torch.dtype]:
    """The dtype of mixed precision in training.

    Args:
        precision: of ``SOLVER.AMP.PRECISION``: "float16", "bfloat16", or "" for float16 on GPUs
            and bfloat16 on CPUs that have it.
        device: where the model is trained.

    Returns:
        The dtype, or None for float32 everywhere.

    Raises:
        ValueError: if the device cannot train in the precision.
    """
    key = "SOLVER.AMP.PRECISION"
    on_cpu = device.type == "cpu"
    if on_cpu and not precision and not cpu_has_bfloat16():
        logger.warning("This CPU has no bfloat16 arithmetic: training in float32.")
        return None
    if on_cpu and precision == "float16":
        raise ValueError(
            f"{key} is 'float16', which trains on GPUs only. For MODEL.DEVICE cpu set it to "
            "'bfloat16', or to '' for the device's own."
        )
    return dtype_of(precision or ("bfloat16" if on_cpu else "float16"), device, key)


def inference_format(
    device_type: str, dtype: torch.dtype, capability: tuple[int, int], allows_tf32: bool
) -> torch.memory_format:
    """The memory format in which a device convolves faster.

    On GPUs it is channels-last where tensor cores convolve, otherwise NCHW; on CPUs channels-last.

    Args:
        device_type: "cpu" or "cuda".
        dtype: of the convolutions.
        capability: compute capability of the GPU; tensor cores of 8.0 and newer have TF32.
        allows_tf32: whether convolutions in float32 may be in TF32.
    """
    has_tensor_cores = dtype != torch.float32 or (allows_tf32 and capability >= (8, 0))
    if device_type == "cuda" and not has_tensor_cores:
        return torch.contiguous_format
    return torch.channels_last


def inference_format_of(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """:func:`inference_format` on a device of this machine, with the current settings."""
    if device.type != "cuda":
        return inference_format(device.type, dtype, (0, 0), False)
    # Newer versions of PyTorch have a setting for each operator. Where they differ, reading the old
    # one fails.
    convolution = getattr(torch.backends.cudnn, "conv", None)
    if convolution is None:
        allows_tf32 = torch.backends.cudnn.allow_tf32
    else:
        allows_tf32 = convolution.fp32_precision == "tf32"
    return inference_format(
        device.type, dtype, torch.cuda.get_device_capability(device), allows_tf32
    )
