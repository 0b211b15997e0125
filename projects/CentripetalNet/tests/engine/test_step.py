from collections import Counter

import pytest
import torch
from detectron2.utils.events import EventStorage
from synchronisations import synchronisations
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from centripetalnet.engine.step import StepTrainer


class Line(nn.Module):
    """Its loss is a weight times the sum of the batch's values."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        values = torch.tensor([x["value"] for x in batch])
        return {"loss_a": (self.weight * values).sum(), "loss_b": self.weight * 0 + 1}


def trainer_of(*values, model=None, **options):
    model = model or Line()
    batches = [[{"value": x, "file_name": f"image{i}.jpg"}] for i, x in enumerate(values)]
    # Momentum would move the weight even without a gradient.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = StepTrainer(model, batches, optimizer, **options)
    trainer.iter = 0
    return trainer


def run(trainer, steps):
    """Runs steps and returns the values that they have logged."""
    with EventStorage() as storage:
        for _ in range(steps):
            trainer.run_step()
            trainer.iter += 1
            storage.step()
    return storage.latest()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_whose_loss_is_not_finite_is_skipped_and_logged(bad, caplog):
    trainer = trainer_of(1.0, bad, 1.0, max_skipped_steps=1)
    expected = trainer_of(1.0, 1.0)

    run(trainer, 3)
    run(expected, 2)

    assert torch.equal(trainer.model.weight, expected.model.weight)
    assert "image1.jpg" in caplog.text and "iteration 1" in caplog.text
    assert "'loss_b': 1.0" in caplog.text


class Steep(Line):
    def forward(self, batch):
        # The square root's gradient at 0 is infinite, and the initial weight is 1.
        return {"loss": (self.weight - 1).abs().sqrt()}


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_logged(caplog):
    trainer = trainer_of(1.0, max_skipped_steps=1, model=Steep())

    run(trainer, 1)

    assert trainer.model.weight == 1
    assert "gradient norm nan" in caplog.text and "image0.jpg" in caplog.text


def test_gradients_that_overflow_at_any_scale_end_the_training():
    trainer = trainer_of(*[1.0] * 60, model=Steep())
    trainer.grad_scaler = torch.amp.GradScaler("cpu")

    with pytest.raises(FloatingPointError, match="gradient norm nan"):
        run(trainer, 60)

    assert 20 < trainer.iter < 40


def test_gradients_of_several_batches_are_added_up():
    class Mean(Line):
        def forward(self, batch, count=None):
            values = torch.tensor([x["value"] for x in batch])
            return {"loss": (self.weight * values).sum() / (count or len(values))}

    values = [1.0, 2.0, 4.0, 8.0]
    trainer = trainer_of(*values, model=Mean(), accumulate=2, step_counts=len)

    run(trainer, 2)

    # Steps of (1 + 2) / 2 and (4 + 8) / 2 with momentum, from 1 with the rate 0.1.
    assert trainer.model.weight.item() == pytest.approx(1 - 0.1 * 1.5 - 0.1 * (0.9 * 1.5 + 6))
    assert trainer.num_samples == 4


class TwoWeights(Line):
    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return {"loss": (3 * self.weight + 4 * self.other) * batch[0]["value"]}


def test_all_gradients_are_clipped_together():
    trainer = trainer_of(100.0, model=TwoWeights(), max_gradient_norm=35.0)

    run(trainer, 1)

    # The learning rate is 0.1.
    assert trainer.model.weight.item() == pytest.approx(1 - 0.1 * 35 * 3 / 5)
    assert trainer.model.other.item() == pytest.approx(1 - 0.1 * 35 * 4 / 5)


def test_parameters_that_are_not_trained_yet_have_no_state_in_the_optimizer():
    model = TwoWeights()
    trainer = trainer_of(1.0, model=model, untrained=lambda: [model.other])

    run(trainer, 1)

    assert set(trainer.optimizer.state) == {model.weight}
    assert model.other == 1


class Normed(Line):
    """Buffers of three dtypes, which change in each step."""

    def __init__(self):
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
        self.other.double()
        self.register_buffer("seen", torch.zeros(3, 2).bfloat16().t())

    def forward(self, batch):
        values = torch.tensor([[x["value"]] for x in batch] * 2)
        self.seen += 1
        return {"loss": (self.norm(values) + self.other(values.double())).sum() * self.weight}


@pytest.mark.parametrize("replaced", [False, True], ids=["", "after precise BN"])
def test_a_skipped_step_does_not_change_norm_statistics(replaced):
    trainer = trainer_of(float("nan"), max_skipped_steps=1, model=Normed())
    if replaced:
        # Like fvcore's update_bn_stats.
        trainer.model.norm.running_mean = torch.full((1,), 3.0)
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}

    run(trainer, 1)

    after = trainer.model.state_dict()
    assert trainer.skipped_steps == 1
    assert all(torch.equal(after[name], x) for name, x in before.items())


def test_norm_statistics_are_copied_once_for_each_dtype_before_a_step():
    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    counts = Counter()
    trainer = trainer_of(1.0, model=Normed())

    with Copies():
        run(trainer, 1)

    # float32, float64, int64 and bfloat16.
    assert counts["_foreach_copy_"] == 4 and counts["copy_"] == 0


def test_a_step_waits_for_the_device_only_to_check_and_to_log_its_losses(device):
    model = TwoWeights().to(device)
    trainer = trainer_of(1.0, model=model, max_gradient_norm=1.0)

    with synchronisations(device) as places:
        run(trainer, 1)

    # The check reads two booleans at once, before the logged losses.
    assert places == {"_are_finite_everywhere", "run_step"}


class Product(Line):
    """Notes the dtype of its matrix product."""

    def forward(self, batch):
        self.product = self.weight.view(1, 1) @ self.weight.new_full((1, 1), batch[0]["value"])
        # The initial scale of the gradient, 65536, is infinite in float16.
        return {"loss": self.product.float().sum() / 2}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_mixed_precision_is_in_its_dtype_and_only_float16_scales_the_loss(dtype, device):
    trainer = trainer_of(1.0, 1.0, model=Product().to(device), amp_dtype=dtype)

    run(trainer, 2)

    assert trainer.model.product.dtype == (dtype or torch.float32)
    assert trainer.grad_scaler.is_enabled() == (dtype == torch.float16)
    # Steps of 1/2 with momentum, from 1 with the rate 0.1.
    assert trainer.model.weight.item() == pytest.approx(1 - 0.05 - 0.095)


@pytest.mark.parametrize("before", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("after", [None, torch.bfloat16, torch.float16])
def test_a_training_resumes_in_its_own_or_another_precision(before, after):
    trainer = trainer_of(1.0, model=Product(), amp_dtype=before)
    run(trainer, 1)
    resumed = trainer_of(1.0, model=Product(), amp_dtype=after)

    resumed.model.load_state_dict(trainer.model.state_dict())
    resumed.load_state_dict(trainer.state_dict())

    run(resumed, 1)
    assert resumed.model.weight.item() == pytest.approx(1 - 0.05 - 0.095)
    if before == after:
        expected = trainer.grad_scaler.state_dict()
        steps = {"_growth_tracker": 2} if expected else {}
        assert resumed.grad_scaler.state_dict() == {**expected, **steps}


def test_more_than_max_skipped_steps_is_an_error_before_the_step():
    trainer = trainer_of(1.0, float("nan"), float("nan"), max_skipped_steps=1)
    run(trainer, 2)
    before = trainer.model.weight.detach().clone()

    with pytest.raises(FloatingPointError, match="loss_a.*image2.jpg.*MAX_SKIPPED_STEPS 1"):
        run(trainer, 1)

    assert torch.equal(trainer.model.weight, before)


def test_skipped_steps_are_counted_across_a_resume():
    trainer = trainer_of(float("nan"), max_skipped_steps=1)
    run(trainer, 1)
    resumed = trainer_of(float("nan"), max_skipped_steps=1)
    resumed.load_state_dict(trainer.state_dict())

    with pytest.raises(FloatingPointError):
        run(resumed, 1)


def test_random_numbers_of_a_step_are_independent_of_earlier_draws():
    class Noisy(Line):
        def forward(self, batch):
            drawn.append(torch.rand(()).item())
            return super().forward(batch)

    drawn = []
    run(trainer_of(1.0, 1.0, 1.0, model=Noisy()), 3)
    resumed = trainer_of(1.0, model=Noisy())
    resumed.iter = 2
    torch.rand(5)
    run(resumed, 1)

    assert len(set(drawn[:3])) == 3
    assert drawn[3] == drawn[2]


def test_skipped_images_are_counted_and_ten_of_them_logged(caplog):
    trainer = trainer_of(*[1.0] * 60)
    for i, batch in enumerate(trainer.data_loader):
        batch[0]["left_out"] = [f"cannot read image{i % 30}.jpg"]

    values = run(trainer, 60)

    logged = [x.message for x in caplog.records if "Skipped an image" in x.message]
    assert len(logged) == len(set(logged)) == 10
    assert "centripetalnet-check" in caplog.text
    assert values["images_left_out"][0] == 60


def test_without_a_stream_resuming_warns_that_the_order_of_images_restarts(caplog):
    trainer_of(1.0).load_state_dict(trainer_of(1.0).state_dict())

    assert "order of images restarts" in caplog.text
