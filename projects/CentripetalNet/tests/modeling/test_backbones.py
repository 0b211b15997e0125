"""Backbones of Detectron2 and timm under the corner heads."""

import copy
import sys

import pytest
import torch
from conftest import NARROW_104, config, image, needs_timm, small_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import SimpleFeaturePyramid, ViT, build_model
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from detectron2.structures import Boxes, Instances
from torch import nn

from centripetalnet.modeling import CentripetalNet, CentripetalShiftMatching
from centripetalnet.modeling.centripetal_shift import ShiftBranch
from centripetalnet.modeling.corner_head import CornerHead
from centripetalnet.modeling.corner_losses import LossOptions
from centripetalnet.modeling.selection import SelectionOptions
from centripetalnet.modeling.timm_backbone import TimmBackbone

PADS_AS_TENSORFLOW = "tf_mobilenetv3_small_minimal_100"
CHANNELS_LAST = "mambaout_femto"
# Its blocks have weights that are in no module below them.
LAYER_SCALE = "convnext_atto"
RESNET = "resnet10t"


def batch_of(*sizes):
    boxes, classes = torch.tensor([[8.0, 9, 40, 50], [5, 5, 30, 20]]), torch.tensor([1, 0])
    return [
        {
            "image": image(*size, seed),
            "instances": Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes),
        }
        for seed, size in enumerate(sizes)
    ]


def detector(backbone, in_features):
    """CentripetalNet by its constructor."""
    return CentripetalNet(
        backbone=backbone,
        heads=[
            CornerHead(
                ShiftBranch,
                channels=backbone.output_shape()[name].channels,
                num_classes=2,
                pool_channels=8,
                hidden_channels=8,
                heatmap_bias=-2.19,
                norm="BN",
            )
            for name in in_features
        ],
        in_features=in_features,
        num_classes=2,
        losses=LossOptions(),
        matching=CentripetalShiftMatching(),
        selection=SelectionOptions(),
        canvas_bits=63,
        pixel_mean=(120.0,) * 3,
        pixel_std=(60.0,) * 3,
    )


def vit_detector():
    """A tiny vision transformer under Detectron2's SimpleFeaturePyramid."""
    net = ViT(
        img_size=64, embed_dim=24, depth=2, num_heads=2, window_size=0, out_feature="last_feat"
    )
    pyramid = SimpleFeaturePyramid(
        net, "last_feat", out_channels=16, scale_factors=(4.0, 2.0, 1.0), norm="LN"
    )
    return detector(pyramid, in_features=["p2"])


def timm_detector(name, **changes):
    return build_model(small_config("timm", MODEL__TIMM__NAME=name, **changes))


DETECTORS = {
    "hourglass 104": lambda: build_model(config(**NARROW_104)),
    "resnet BN": lambda: build_model(small_config("resnet")),
    "resnet FrozenBN": lambda: build_model(small_config("resnet", MODEL__RESNETS__NORM="FrozenBN")),
    "vit": vit_detector,
}
OF_TIMM = [
    pytest.param(name, marks=needs_timm)
    for name in (PADS_AS_TENSORFLOW, CHANNELS_LAST, LAYER_SCALE)
]


@pytest.mark.parametrize("kind", [*DETECTORS, *OF_TIMM])
def test_a_training_step_changes_every_weight_behind_the_loss(kind):
    torch.manual_seed(0)
    model = (DETECTORS[kind]() if kind in DETECTORS else timm_detector(kind)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    # Those make the feature maps of the pyramid that no head reads.
    unread = ("backbone.simfp_3", "backbone.simfp_4")
    trained = {x: y for x, y in model.named_parameters() if not x.startswith(unread)}
    before = {name: x.detach().clone() for name, x in trained.items()}

    # The smallest map of the deep hourglass needs several cells for the statistics of its norms.
    sizes = ((255, 255), (200, 240)) if kind == "hourglass 104" else ((70, 99), (61, 50))
    sum(model(batch_of(*sizes)).values()).backward()
    optimizer.step()

    bad = [name for name, x in trained.items() if x.grad is None or not x.grad.isfinite().all()]
    assert bad == []
    assert [name for name, x in trained.items() if torch.equal(x, before[name])] == []
    results = model.eval()([{"image": image(45, 83)}, {"image": image(64, 64)}])
    assert [x["instances"].image_size for x in results] == [(45, 83), (64, 64)]


@torch.no_grad()
def test_the_canvas_has_multiples_of_32_and_the_image_in_its_middle():
    model = build_model(small_config("resnet", MODEL__CENTRIPETALNET__TEST_CANVAS_BITS=63)).eval()
    pixels = image(97, 130)

    canvas, border = model.test_canvas([pixels])
    (found,) = model.find([pixels])

    # 97 | 63 = 127 and 130 | 63 = 191.
    expected = torch.zeros(1, 3, 128, 192)
    expected[0, :, 16:113, 31:161] = (pixels - model.pixel_mean) / model.pixel_std
    torch.testing.assert_close(canvas, expected)
    assert border == [found.border] == [(31, 16)]
    assert found.canvas_size == (128, 192)


# ---------------------------------------------------------------- feature maps


def test_feature_maps_without_a_head_of_their_own_stride_are_refused():
    with pytest.raises(ValueError, match=r"IN_FEATURES .*one stride.*p2 \(4\), p3 \(8\).*\['p2'\]"):
        build_model(small_config("resnet", MODEL__CENTRIPETALNET__IN_FEATURES=["p2", "p3"]))
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['p9'\], but .* has \['p2', 'p3'"):
        build_model(small_config("resnet", MODEL__CENTRIPETALNET__IN_FEATURES=["p9"]))


@needs_timm
def test_without_names_all_feature_maps_have_a_head():
    changes = {
        "MODEL__FPN__IN_FEATURES": ["res3"],
        "MODEL__CENTRIPETALNET__IN_FEATURES": [],
    }
    model = timm_detector(PADS_AS_TENSORFLOW, **changes)

    losses = model(batch_of((70, 99)))

    # Of stride 8.
    assert model.feature_names == ["p3"] and model.stride == 8
    assert all(x.isfinite() for x in losses.values())


def test_output_convolutions_that_no_head_reads_are_removed():
    torch.manual_seed(0)
    complete = build_resnet_fpn_backbone(small_config("resnet"), ShapeSpec(channels=3)).eval()
    backbone = copy.deepcopy(complete)

    model = detector(backbone, in_features=["p3"]).eval()

    names = {x.split(".")[0] for x, _ in model.backbone.named_parameters() if "output" in x}
    assert names == {"fpn_output3"}
    assert sum(isinstance(x, nn.Conv2d) for x in model.backbone.output_convs) == 1
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model.backbone(x)["p3"], complete(x)["p3"])


# ---------------------------------------------------------------- networks of timm


def feature_gradients(backbone, index):
    """Names of the parameters that the feature map depends on."""
    list(backbone(torch.randn(2, 3, 64, 64)).values())[index].square().sum().backward()
    return {name for name, x in backbone.named_parameters() if x.grad is not None}


@needs_timm
@pytest.mark.parametrize("name", [PADS_AS_TENSORFLOW, RESNET, LAYER_SCALE])
@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_weights_and_norms_of_the_first_stages_are_frozen(name, freeze_at):
    # All weights before a feature map are those that it depends on.
    expected = feature_gradients(TimmBackbone(name), freeze_at - 1) if freeze_at else set()
    every = {x for x, _ in TimmBackbone(name).named_parameters()}
    backbone = TimmBackbone(name, freeze_at=freeze_at).train()
    before = {x: y.clone() for x, y in backbone.named_buffers()}

    backbone(torch.randn(2, 3, 64, 64))

    trained = {x for x, y in backbone.named_parameters() if y.requires_grad}
    assert trained == every - expected
    for buffer, value in backbone.named_buffers():
        if "running" in buffer:
            norm = buffer.rpartition(".")[0]
            is_frozen = f"{norm}.weight" not in trained
            assert torch.equal(value, before[buffer]) == is_frozen, buffer


@needs_timm
@pytest.mark.parametrize(
    "options, message",
    [
        ({"freeze_at": 6}, r"FREEZE_AT must be from 0 to 5.*\[2, 4, 8, 16, 32\]; got 6"),
        ({"freeze_at": -1}, "FREEZE_AT must be from 0 to 5.*got -1"),
        ({"name": "resnet_none"}, r"MODEL.TIMM.NAME is 'resnet_none'.*timm.list_models\(\)"),
        ({"name": "test_vit"}, r"MODEL.TIMM.NAME: .*test_vit have the strides \[16, 16, 16\]"),
        ({"name": "swin_tiny_patch4_window7_224"}, "swin.* takes images of one size only"),
        ({"norm": "GN"}, r"MODEL.TIMM.NORM must be one of .*'FrozenBN'.*got 'GN'"),
        (
            {"name": LAYER_SCALE, "norm": "SyncBN"},
            "MODEL.TIMM.NORM is 'SyncBN', but convnext_atto has no batch norm",
        ),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**{"name": PADS_AS_TENSORFLOW, **options})


def test_the_error_without_timm_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.raises(ImportError, match="needs timm.*pip install timm"):
        build_model(small_config("timm"))


@needs_timm
@torch.no_grad()
@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN"])
def test_other_norms_keep_the_weights_and_the_activations(norm):
    torch.manual_seed(0)
    plain = TimmBackbone(PADS_AS_TENSORFLOW)
    torch.manual_seed(0)
    backbone = TimmBackbone(PADS_AS_TENSORFLOW, norm=norm)
    x = torch.randn(2, 3, 64, 64)
    before = {name: x.clone() for name, x in backbone.state_dict().items()}

    for name, feature in backbone.eval()(x).items():
        torch.testing.assert_close(feature, plain.eval()(x)[name])
    backbone.train()(x)

    norms = [x for x in backbone.modules() if hasattr(x, "running_mean")]
    assert norms and all(isinstance(x, nn.SyncBatchNorm) == (norm == "SyncBN") for x in norms)
    changed = {x for x, y in backbone.state_dict().items() if not torch.equal(y, before[x])}
    assert bool(changed) == (norm == "SyncBN")


@needs_timm
@pytest.mark.parametrize("name", [PADS_AS_TENSORFLOW, RESNET, CHANNELS_LAST])
@pytest.mark.parametrize("amp", [False, True])
def test_recomputed_stages_change_neither_gradients_nor_statistics(name, amp):
    def trained(checkpoint):
        torch.manual_seed(0)
        model = timm_detector(
            name,
            MODEL__CENTRIPETALNET__CHECKPOINT_ACTIVATIONS=checkpoint,
            MODEL__CENTRIPETALNET__CHANNELS_LAST=amp,
        )
        # Another one, as in the evaluation during a training.
        model = copy.deepcopy(model).train()
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp), hooks:
            losses = model(batch_of((64, 64), (64, 64)))
        sum(losses.values()).backward()
        return model, sum(x.numel() for x in {id(x): x for x in kept}.values())

    (plain, most), (checkpointed, fewer) = trained(False), trained(True)

    assert fewer < 0.5 * most
    for (name, a), b in zip(checkpointed.named_parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(checkpointed.named_buffers(), plain.buffers()):
        torch.testing.assert_close(a, b, msg=name)


@needs_timm
def test_large_depthwise_kernels_have_float32_weight_gradients_in_mixed_precision():
    backbone = TimmBackbone("tf_efficientnet_lite0").train()
    conv = next(
        x
        for x in backbone.modules()
        if isinstance(x, nn.Conv2d) and x.groups > 1 and x.kernel_size == (5, 5) and x.padding[0]
    )
    x = torch.randn(2, conv.in_channels, 9, 9).bfloat16()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    y.backward(x)

    expected = torch.nn.grad.conv2d_weight(
        x.float(), conv.weight.shape, x.float(), padding=2, groups=conv.groups
    )
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(conv.weight.grad, expected, atol=1e-4, rtol=1e-5)
