import pytest
from conftest import config, each_detector, small_config
from detectron2.modeling import build_model

from centripetalnet.modeling.analysis import analyze


def conv(size, kernel, channels_in=4, channels_out=4):
    """Multiply-adds of a convolution whose output is size x size."""
    return size**2 * kernel**2 * channels_in * channels_out


def test_flops_equal_their_formulas():
    net = "MODEL__CENTRIPETALNET__"
    changes = {
        "MODEL__HOURGLASS__STEM_CHANNELS": 4,
        "MODEL__HOURGLASS__CHANNELS": [4, 4],
        "MODEL__HOURGLASS__BLOCKS": [1, 1],
        "MODEL__HOURGLASS__OUT_CHANNELS": 4,
        "MODEL__HOURGLASS__NORM": "",
        **{f"{net}{x}": 4 for x in ("POOL_CHANNELS", "HEAD_CHANNELS")},
        **{f"{net}NORM": "", f"{net}TOPK": 10, f"{net}TEST_CANVAS_BITS": 7},
        "TEST__DETECTIONS_PER_IMAGE": 7,
    }
    model = build_model(config("quick_schedules/centripetal_mask_tiny", **changes))

    flops, _ = analyze(model, (31, 31))

    found = flops.by_module()
    assert found["model.backbone.stem"] == conv(16, 7, 3) + 2 * conv(8, 3) + conv(8, 1)
    for corner in ("tl", "br"):
        branch = f"model.heads.0.{corner}"
        assert found[f"{branch}.pooling"] == 4 * conv(8, 3) + conv(8, 1)
        assert found[f"{branch}.heatmap"] == conv(8, 3) + conv(8, 1, channels_out=5)
        # Ten corners, one cell of offset and centripetal shift, nine of guiding shift for each.
        one = conv(1, 3) + conv(1, 1, channels_out=2)
        cells = {"offset": 1, "guiding_shift": 9, "centripetal_shift": 1}
        assert {x: found[f"{branch}.{x}"] for x in cells} == {
            name: 10 * number * one for name, number in cells.items()
        }
    # Two 3 x 3 convolutions on 14 x 14, the transposed one, and 28 x 28 values for each class.
    layers = conv(14, 3, 4, 32) + conv(14, 3, 32, 32) + conv(14, 2, 32, 32) + conv(28, 1, 32, 5)
    assert found["model.mask_head.layers"] == 7 * layers
    # The project's operators have handlers.
    assert not any(x.startswith("centripetalnet::") for x in flops.unsupported_ops())


@each_detector
def test_every_detector_is_counted(detector):
    flops, activations = analyze(build_model(small_config(detector)), (31, 31))

    assert flops.by_module()["model.backbone"] > 0.1 * flops.total()
    assert activations.by_module()["model.backbone"] > 0


def test_an_image_without_pixels_is_an_error():
    with pytest.raises(ValueError, match=r"\(0, 5\), expected at least 1 x 1 pixels"):
        analyze(build_model(small_config("hourglass")), (0, 5))
