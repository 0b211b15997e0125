import pytest
import torch
from conftest import rounding
from detectron2.layers import DeformConv

from centripetalnet.layers import CrossStarDeformConv, deform_conv3x3


def test_matches_the_reference_output_and_gradients(golden):
    numbers = golden("deform_conv.pt")
    leaves = [numbers[name].requires_grad_() for name in ("input", "offset", "weight")]

    output = deform_conv3x3(*leaves)
    output.backward(numbers["grad_output"])

    found = [output, *(x.grad for x in leaves)]
    for actual, name in zip(found, ("output", "grad_input", "grad_offset", "grad_weight")):
        expected = numbers[name]
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (6, 7)])
def test_equals_detectron2_on_maps_of_any_size(size):
    torch.manual_seed(0)
    conv = DeformConv(4, 3, kernel_size=3, padding=1, bias=False)
    feature, offset = torch.randn(2, 4, *size), torch.randn(2, 18, *size) * 2

    with torch.no_grad():
        expected = conv(feature, offset)

    torch.testing.assert_close(
        deform_conv3x3(feature, offset, conv.weight), expected, atol=1e-5, rtol=1e-5
    )


def test_autocast_keeps_positions_exact():
    torch.manual_seed(0)
    layer = CrossStarDeformConv(4)
    feature, shift = torch.randn(1, 4, 8, 200), torch.randn(1, 2, 8, 200) * 50

    with torch.no_grad():
        expected = layer(feature, shift)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = layer(feature, shift)

    torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_gpu_and_cpu_agree():
    torch.manual_seed(0)
    layer = CrossStarDeformConv(4)
    feature, shift = torch.randn(1, 4, 9, 7), torch.randn(1, 2, 9, 7)

    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = layer(feature, shift)
        weights = layer.deform_conv.weight.abs().sum(dim=(1, 2, 3)).max()
        actual = layer.cuda()(feature.cuda(), shift.cuda())

    # An output is the sum of 36 products, of 9 taps and 4 channels. Their samples take 10 roundings
    # each. 5 more give the position, of up to 10 cells, and a cell further the feature may differ
    # by twice its largest value.
    largest = float(weights * feature.abs().max())
    atol = rounding(36 + 10 + 5 * 10 * 2) * largest
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=atol)
