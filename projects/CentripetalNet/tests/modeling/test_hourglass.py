import pytest
import torch
from conftest import config
from detectron2.modeling import build_backbone

from centripetalnet.modeling.hourglass import StackedHourglass


def make_backbone(**changes):
    options = {
        "num_stacks": 2,
        "channels": [8, 8, 12],
        "blocks": [1, 1, 2],
        "stem_channels": 4,
        "out_channels": 6,
        **changes,
    }
    return StackedHourglass(**options)


@pytest.mark.parametrize("size", [(64, 96), (1, 1), (37, 51), (4, 130)])
def test_any_size_gives_one_map_of_a_quarter_per_stack(size):
    features = make_backbone().eval()(torch.randn(1, 3, *size))

    quarter = tuple(-(-side // 4) for side in size)
    assert list(features) == ["stack1", "stack2"]
    assert all(feature.shape == (1, 6, *quarter) for feature in features.values())


def test_hourglass_52_is_built_from_its_config():
    backbone = build_backbone(
        config("centripetal_hg52", MODEL__HOURGLASS__CHANNELS=[8, 8, 12, 12, 12, 16])
    )

    assert list(backbone.output_shape()) == ["stack1"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": [8]}, r"HOURGLASS\."),
        ({"blocks": [1, 1]}, r"HOURGLASS\."),
        ({"num_stacks": 0}, r"HOURGLASS\."),
        ({"blocks": [1, 0, 1]}, r"HOURGLASS\."),
        ({"freeze_at": -1}, r"BACKBONE\.FREEZE_AT .*0 to 3.*-1"),
        ({"freeze_at": 4}, r"BACKBONE\.FREEZE_AT .*0 to 3.*4"),
    ],
)
def test_invalid_numbers_of_stacks_channels_and_blocks_are_errors(changes, message):
    with pytest.raises(ValueError, match=rf"MODEL\.{message}"):
        make_backbone(**changes)


@pytest.mark.parametrize(
    "freeze_at, frozen",
    [
        (0, []),
        (1, ["stem"]),
        (2, ["stem", "hourglasses.0", "out_convs.0"]),
        (3, ["stem", "hourglasses", "out_convs", "merge"]),
    ],
)
def test_the_first_stages_are_frozen_with_their_norms(freeze_at, frozen):
    backbone = make_backbone(freeze_at=freeze_at).train()
    before = {name: x.clone() for name, x in backbone.named_buffers()}

    backbone(torch.randn(2, 3, 32, 32))

    for name, x in backbone.named_parameters():
        assert x.requires_grad != name.startswith(tuple(frozen)), name
    for name, x in backbone.named_buffers():
        if "running" in name:
            assert torch.equal(x, before[name]) == name.startswith(tuple(frozen)), name
