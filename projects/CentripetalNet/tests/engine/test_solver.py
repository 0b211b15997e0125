import pytest
import torch
from conftest import needs_timm, small_config
from detectron2.modeling import build_model

from centripetalnet.engine.solver import build_optimizer, check_same_optimizer


def optimizer_of(model, **changes):
    changes = {f"SOLVER__{key}": value for key, value in changes.items()}
    return build_optimizer(small_config("timm", **changes), model)


@pytest.fixture(scope="module")
def model():
    return build_model(small_config("timm"))


@needs_timm
def test_the_backbone_s_learning_rate_is_that_of_the_network_below_the_fpn(model):
    optimizer = optimizer_of(model, BASE_LR=0.1, BACKBONE_MULTIPLIER=0.25)

    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        is_pretrained = name.startswith("backbone.bottom_up.")
        assert rates[id(p)] == pytest.approx(0.025 if is_pretrained else 0.1), name


@needs_timm
@pytest.mark.parametrize("clip_type", ["full_model", "norm"])
def test_adamw_decays_weights_apart_from_the_gradient(model, clip_type):
    options = {"CLIP_GRADIENTS__CLIP_TYPE": clip_type, "WEIGHT_DECAY_NORM": None}
    optimizer = optimizer_of(model, OPTIMIZER="ADAMW", BASE_LR=0.5, WEIGHT_DECAY=0.1, **options)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)

    optimizer.step()

    # Adam's own decay would be divided by the size of the gradient.
    for p, x in zip(model.parameters(), before):
        torch.testing.assert_close(p.detach(), x * (1 - 0.5 * 0.1))


@needs_timm
def test_the_state_of_another_optimizer_is_refused(model):
    adam, adamw = (optimizer_of(model, OPTIMIZER=name) for name in ("ADAM", "ADAMW"))

    check_same_optimizer(adamw, adamw.state_dict(), "AdamW")
    with pytest.raises(ValueError, match="another optimizer.*SOLVER.OPTIMIZER"):
        check_same_optimizer(adam, adamw.state_dict(), "AdamW")
