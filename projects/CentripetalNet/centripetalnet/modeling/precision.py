"""The dtypes that a device can convolve in."""

import torch
import torch.nn.functional as F

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions. Without them bfloat16 is slower than float32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(torch.backends.mkldnn.is_available() and supported is not None and supported())


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision.

    Args:
        precision: "float32", "bfloat16" or "float16".
        device: where the model runs.

    Raises:
        ValueError: if the precision is unknown or the device cannot convolve in it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"TEST.PRECISION must be one of {list(PRECISIONS)}, got {precision!r}")
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return dtype
    x = torch.ones(1, 1, 3, 3, device=device, dtype=dtype)
    try:
        F.conv2d(x, x)
    except RuntimeError as error:
        raise ValueError(
            f"TEST.PRECISION is {precision!r}, but PyTorch {torch.__version__} cannot convolve in "
            f"it on {device.type!r} ({error}). Choose another of {list(PRECISIONS)}."
        ) from error
    return dtype
