import pytest
import torch
from conftest import config
from detectron2.modeling import build_model

from centripetalnet.modeling import optimize_for_inference


def image(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


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
    assert not optimized.training and model.training
    assert not any(p.requires_grad for p in optimized.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


def test_frozen_norms_are_folded_and_group_norms_stay():
    frozen = optimize_for_inference(build_model(config(MODEL__HOURGLASS__NORM="FrozenBN")))
    group = optimize_for_inference(build_model(config(MODEL__CENTRIPETALNET__NORM="GN")))

    assert not any("norm" in name for name in frozen.state_dict() if "backbone" in name)
    assert "heads.0.tl.pooling.out.norm.weight" in group.state_dict()


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
