import pytest
import torch

from centripetalnet.modeling import precision
from centripetalnet.modeling.precision import amp_dtype, inference_format, inference_format_of

CPU = torch.device("cpu")
VOLTA, TURING, AMPERE, HOPPER = (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.mark.parametrize(
    "device_type, dtype, capability, allows_tf32, expected",
    [
        ("cpu", torch.float32, (0, 0), False, torch.channels_last),
        ("cpu", torch.bfloat16, (0, 0), False, torch.channels_last),
        ("cuda", torch.float16, VOLTA, True, torch.channels_last),
        ("cuda", torch.bfloat16, AMPERE, False, torch.channels_last),
        ("cuda", torch.float32, AMPERE, True, torch.channels_last),
        ("cuda", torch.float32, HOPPER, True, torch.channels_last),
        ("cuda", torch.float32, HOPPER, False, torch.contiguous_format),
        ("cuda", torch.float32, TURING, True, torch.contiguous_format),
    ],
)
def test_inference_is_channels_last_except_in_float32_without_tf32(
    device_type, dtype, capability, allows_tf32, expected
):
    assert inference_format(device_type, dtype, capability, allows_tf32) == expected


@pytest.mark.parametrize("allows_tf32", [True, False])
def test_the_memory_format_follows_the_setting_of_tf32(allows_tf32, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: AMPERE)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allows_tf32):
        found = inference_format_of(torch.device("cuda"), torch.float32)

    assert found == (torch.channels_last if allows_tf32 else torch.contiguous_format)


@pytest.mark.parametrize(
    "chosen, has_bfloat16, expected",
    [
        ("", True, torch.bfloat16),
        ("", False, None),
        ("bfloat16", True, torch.bfloat16),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_mixed_precision_on_a_cpu(chosen, has_bfloat16, expected, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has_bfloat16)

    assert amp_dtype(chosen, CPU) == expected


@pytest.mark.parametrize(
    "chosen, expected",
    [("", torch.float16), ("float16", torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_mixed_precision_on_a_gpu(chosen, expected, monkeypatch):
    ones, tried = torch.ones, []

    def on_cpu(*size, device, dtype):
        tried.append((device.type, dtype))
        return ones(*size)

    monkeypatch.setattr(torch, "ones", on_cpu)

    assert amp_dtype(chosen, torch.device("cuda")) == expected
    assert tried == [("cuda", expected)]


def test_a_gpu_without_bfloat16_is_an_error_that_names_the_key(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("no engine")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)

    with pytest.raises(ValueError, match=r"SOLVER.AMP.PRECISION is 'bfloat16'.*no engine"):
        amp_dtype("bfloat16", CPU)
