import pytest
import torch
from conftest import config, each_backbone, small_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model

from centripetalnet.modeling.analysis import analyze

# One residual block at each of two resolutions, four channels everywhere.
SMALL = {
    "MODEL__HOURGLASS__NUM_STACKS": 1,
    "MODEL__HOURGLASS__STEM_CHANNELS": 4,
    "MODEL__HOURGLASS__CHANNELS": [4, 4],
    "MODEL__HOURGLASS__BLOCKS": [1, 1],
    "MODEL__HOURGLASS__OUT_CHANNELS": 4,
    "MODEL__HOURGLASS__NORM": "",
    "MODEL__CENTRIPETALNET__NORM": "",
    "MODEL__CENTRIPETALNET__POOL_CHANNELS": 4,
    "MODEL__CENTRIPETALNET__HEAD_CHANNELS": 4,
    "MODEL__CENTRIPETALNET__NUM_CLASSES": 3,
    "MODEL__CENTRIPETALNET__TOPK": 10,
    "MODEL__CENTRIPETALNET__TEST_CANVAS_BITS": 7,
}


def conv(size, kernel, channels_in=4, channels_out=4):
    """Multiply-adds and parameters of a convolution whose output is size x size."""
    weights = kernel**2 * channels_in * channels_out
    return size**2 * weights, weights + channels_out


def total(*convs):
    return tuple(map(sum, zip(*convs)))


@pytest.fixture(scope="module")
def costs():
    return analyze(build_model(config(**SMALL)), (31, 31))


def part(costs, name):
    return next(x for x in costs.parts if x.name == name)


def test_costs_of_the_backbone_equal_their_formulas(costs):
    # 31 pixels, 16 after the first convolution, 8 after the stem, 4 inside the hourglass.
    stem = total(conv(16, 7, 3), conv(8, 3), conv(8, 3), conv(8, 1))
    skip = total(conv(8, 3), conv(8, 3))
    down = total(conv(4, 3), conv(4, 3), conv(4, 1))
    inner = up = total(conv(4, 3), conv(4, 3))
    stack_flops, stack_parameters = total(skip, down, inner, up, conv(8, 3))

    found = part(costs, "backbone: stem")
    assert (found.flops, found.parameters) == stem
    assert found.activations == 4 * (16**2 + 3 * 8**2)
    found = part(costs, "backbone: stack 1")
    # fvcore counts one per element of nearest upsampling.
    assert (found.flops, found.parameters) == (stack_flops + 4 * 8**2, stack_parameters)


def test_costs_of_a_corner_equal_their_formulas(costs):
    pooling = total(*[conv(8, 3)] * 4, conv(8, 1))
    heatmap = total(conv(8, 3), conv(8, 1, channels_out=3))
    hidden, last = conv(1, 3), conv(1, 1, channels_out=2)

    for corner in ("tl", "br"):
        found = part(costs, f"{corner}: pooling")
        assert (found.flops, found.parameters) == pooling
        found = part(costs, f"{corner}: heatmap")
        assert (found.flops, found.parameters) == heatmap
        # Ten corners, one cell of offset and centripetal shift, nine of guiding shift for each.
        for name, cells in (("offset", 1), ("guiding shift", 9), ("centripetal shift", 1)):
            found = part(costs, f"{corner}: {name}, at corners")
            assert found.flops == 10 * cells * (hidden[0] + last[0])
            assert found.parameters == hidden[1] + last[1]
        # Nine cells around each corner: 18 sampling offsets, nine bilinear taps, a product.
        found = part(costs, f"{corner}: cross-star convolution, at corners")
        assert found.flops == 10 * 9 * (2 * 18 + 9 * 4 * 4 + 9 * 4 * 4)
        assert found.parameters == 2 * 18 + 9 * 4 * 4


def test_parameters_of_the_parts_are_those_of_the_model():
    for name, changes in (
        ("centripetal_hg104", {**SMALL, "MODEL__HOURGLASS__NUM_STACKS": 2}),
        ("quick_schedules/centripetal_mask_tiny", {}),
    ):
        assert_all_parameters(build_model(config(name, **changes)))


def assert_all_parameters(model):
    costs = analyze(model, (31, 31))

    assert sum(x.parameters for x in costs.parts) == sum(x.numel() for x in model.parameters())
    return costs


@each_backbone
def test_no_convolution_of_a_backbone_is_left_out(backbone):
    model = build_model(small_config(backbone)).eval()

    costs = assert_all_parameters(model)

    convolutions = []

    def note(conv, inputs, output):
        # Each output value needs the weights of its channel.
        convolutions.append(output.numel() * conv.weight[0].numel())

    for module in model.backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model.backbone(torch.zeros(1, 3, *costs.canvas_size))
    parts = [x for x in costs.parts if x.name.startswith("backbone")]
    # The rest are batch norms and upsampling.
    rest = sum(x.flops for x in parts) - sum(convolutions)
    assert 0 <= rest < 0.2 * sum(convolutions)
    names = {"hourglass": ["backbone: stem", "backbone: stack 1"]}
    assert [x.name for x in parts] == names.get(backbone, ["backbone: network", "backbone: FPN"])


class Attention(Backbone):
    size_divisibility = 4

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 4, 4, stride=4)

    def output_shape(self):
        return {"map": ShapeSpec(channels=4, stride=4)}

    def forward(self, x):
        x = self.embed(x)
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        tokens = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return {"map": tokens[:, 0].transpose(1, 2).reshape(x.shape)}


def test_costs_of_attention_equal_their_formula():
    model = build_model(config(**SMALL))
    model.backbone, model.feature_names = Attention(), ["map"]

    costs = analyze(model, (31, 31))

    tokens = 8 * 8
    found = part(costs, "backbone")
    assert found.flops == tokens * 4 * 3 * 16 + 2 * tokens * tokens * 4


def test_the_first_stacks_head_and_the_masks_are_separate_parts():
    model = build_model(
        config(
            "quick_schedules/centripetal_mask_tiny",
            MODEL__HOURGLASS__NUM_STACKS=2,
            TEST__DETECTIONS_PER_IMAGE=7,
        )
    )

    costs = analyze(model, (31, 31))

    names = [x.name for x in costs.parts]
    assert "backbone: between stacks 1 and 2" in names and "backbone: stack 2" in names
    assert part(costs, "head of stack1, training only").flops == 0
    # Two 3 x 3 convolutions on 14 x 14, the transposed one, and 28 x 28 values for each class.
    masks = part(costs, "masks of 7 boxes")
    layers = 14**2 * (2 * 9 * 32 * 32 + 4 * 32 * 32) + 28**2 * 32 * 5
    assert masks.flops == 7 * (layers + 4 * 32 * 14**2)


def test_uncounted_operators_are_listed(costs):
    assert costs.uncounted["aten::topk"] > 0
    # The project's operators have handlers.
    assert not any(x.startswith("centripetalnet::") for x in costs.uncounted)


def test_the_canvas_is_the_one_of_inference():
    costs = analyze(build_model(config(**SMALL)), (20, 41))

    assert costs.canvas_size == (20 | 7, 41 | 7)


def test_an_image_without_pixels_is_an_error():
    with pytest.raises(ValueError, match=r"\(0, 5\), expected at least 1 x 1 pixels"):
        analyze(build_model(config(**SMALL)), (0, 5))
