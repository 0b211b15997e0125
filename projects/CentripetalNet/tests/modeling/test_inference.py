import pytest
import torch
from conftest import config, finding_detector, image, needs_timm
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from torch import nn

from centripetalnet.modeling import optimize_for_inference


@pytest.fixture
def model(golden_model):
    return golden_model[0].eval()


@torch.no_grad()
def test_detections_stay_the_same(model):
    batch = [{"image": image(100, 120)}, {"image": image(90, 128, 1)}]

    optimized = optimize_for_inference(model)

    for actual, expected in zip(optimized(batch), model(batch)):
        actual, expected = actual["instances"], expected["instances"]
        assert len(expected) > 5
        torch.testing.assert_close(
            actual.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0
        )
        torch.testing.assert_close(actual.scores, expected.scores, atol=1e-5, rtol=0)
        assert torch.equal(actual.pred_classes, expected.pred_classes)


def test_norms_and_training_heads_are_removed_from_the_copy_only(model):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.train()

    optimized = optimize_for_inference(model)

    assert not any("norm" in name for name in optimized.state_dict())
    assert len(model.heads) == 2 and len(optimized.heads) == 1
    assert optimized.backbone.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not optimized.training and model.training
    assert not any(p.requires_grad for p in optimized.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


def test_frozen_norms_are_folded_and_group_norms_stay():
    frozen = optimize_for_inference(build_model(config(MODEL__HOURGLASS__NORM="FrozenBN")))
    group = optimize_for_inference(build_model(config(MODEL__CENTRIPETALNET__NORM="GN")))

    assert not any("norm" in name for name in frozen.state_dict() if "backbone" in name)
    assert "heads.0.tl.pooling.out.norm.weight" in group.state_dict()


# The first has norms with an activation inside, the second plain ones.
@needs_timm
@torch.no_grad()
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN"])
@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_minimal_100", "resnet10t"])
def test_norms_of_timm_are_folded_and_detections_stay_the_same(name, norm):
    model = finding_detector("timm", MODEL__TIMM__NAME=name)
    if norm != "BN":
        weights = model.state_dict()
        model = finding_detector("timm", MODEL__TIMM__NAME=name, MODEL__TIMM__NORM=norm)
        model.load_state_dict(weights, strict=False)
    canvas, _ = model.test_canvas([image(100, 120)])

    optimized = optimize_for_inference(model)

    assert not any("running" in x for x, _ in optimized.named_buffers())
    expected, actual = (x.backbone(canvas)["p2"] for x in (model, optimized))
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    (found,) = optimize_for_inference(model, "bfloat16")([{"image": image(100, 120)}])
    assert len(found["instances"]) > 5 and found["instances"].scores.dtype == torch.float32


class Awkward(Backbone):
    """Batch norms that must not be folded, and one that may."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(5)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(5)])
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def output_shape(self):
        return {"map": ShapeSpec(channels=3, stride=1)}

    def forward(self, x):
        twice = self.convs[0](x)
        x = torch.cat([self.norms[0](twice), twice], dim=1)[:, 1:4]
        # The order of the modules is not that of the calls.
        x = self.convs[2](self.norms[1](x)) + self.norms[2](self.convs[1](x))
        x = self.norms[3](self.convs[3](self.norms[3](self.convs[3](x))))
        weight = self.convs[4].weight
        x = nn.functional.conv2d(x, weight / weight.norm(), padding=1)
        return {"map": self.norms[4](x)}


@torch.no_grad()
def test_only_a_norm_that_alone_reads_a_plain_convolution_is_folded(model):
    torch.manual_seed(0)
    model.backbone, model.feature_names = Awkward(), ["map"]
    model.eval()
    x = torch.randn(1, 3, 16, 16)

    optimized = optimize_for_inference(model)

    left = [i for i, x in enumerate(optimized.backbone.norms) if isinstance(x, nn.BatchNorm2d)]
    assert left == [0, 1, 3, 4]
    torch.testing.assert_close(optimized.backbone(x)["map"], model.backbone(x)["map"])


@torch.no_grad()
def test_bfloat16_finds_the_same_objects_with_positions_in_float32(model):
    batch = [{"image": image(100, 120)}]

    (low,) = optimize_for_inference(model, "bfloat16")(batch)
    (full,) = optimize_for_inference(model)(batch)

    low, full = low["instances"], full["instances"]
    assert low.scores.dtype == low.pred_boxes.tensor.dtype == torch.float32
    # bfloat16 has 8 bits of precision, so only the best boxes must be those of float32.
    best = full.pred_boxes.tensor[:5]
    distance = (low.pred_boxes.tensor[:, None] - best).abs().amax(dim=2).amin(dim=0)
    assert (distance < 2).sum() >= 4


def test_logits_and_shifts_stay_in_float32(model):
    optimized = optimize_for_inference(model, "bfloat16")

    dtypes = {name: x.dtype for name, x in optimized.named_parameters()}
    assert dtypes["backbone.stem.0.weight"] == torch.bfloat16
    assert dtypes["heads.0.tl.pooling.out.weight"] == torch.bfloat16
    assert dtypes["heads.0.tl.heatmap.0.weight"] == torch.bfloat16
    assert dtypes["heads.0.br.heatmap.2.weight"] == torch.float32
    assert dtypes["heads.0.br.centripetal_shift.0.weight"] == torch.float32


@torch.no_grad()
def test_shifts_of_a_feature_in_bfloat16_are_those_of_float32(model):
    low, full = (optimize_for_inference(model, x).heads[-1].br for x in ("bfloat16", "float32"))
    pooled = torch.randn(2, 16, 9, 7).bfloat16()
    cells = torch.arange(0, 2 * 9 * 7, 5)

    found, truth = low.at_cells(pooled, cells), full.at_cells(pooled.float(), cells)

    for actual, expected in zip(found, truth):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("precision", ["int8", "half"])
def test_an_unknown_precision_is_an_error(model, precision):
    with pytest.raises(ValueError, match=f"TEST.PRECISION.*float16.*{precision}"):
        optimize_for_inference(model, precision)


def test_a_precision_that_the_device_lacks_is_an_error(model, monkeypatch):
    def refuse(*args):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)

    with pytest.raises(
        ValueError, match="float16.*cannot convolve in it on 'cpu'.*not implemented"
    ):
        optimize_for_inference(model, "float16")


def test_another_model_is_an_error():
    with pytest.raises(TypeError, match="CentripetalNet, got a Linear"):
        optimize_for_inference(torch.nn.Linear(1, 1))
