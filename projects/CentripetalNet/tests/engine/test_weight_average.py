import pytest
import torch
from torch import nn

from centripetalnet.engine.weight_average import WeightAverage


def stepped(model, average, steps):
    """Moves all weights by random steps; returns them after each step."""
    values = []
    for _ in range(steps):
        with torch.no_grad():
            for x in model.state_dict().values():
                x.add_(torch.randn_like(x) if x.is_floating_point() else 1)
        average.update()
        values.append({name: x.clone() for name, x in model.state_dict().items()})
    return values


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_forgets_the_beginning_and_keeps_its_decay(model):
    average = WeightAverage(model, 0.8)

    values = stepped(model, average, 100)

    expected = values[0]
    for n, value in enumerate(values[1:], 1):
        share = max(0.2, 9 / (10 + n))
        expected = {
            name: x + share * (value[name] - x) if x.is_floating_point() else value[name]
            for name, x in expected.items()
        }
    actual = average.model.state_dict()
    assert actual["1.num_batches_tracked"] == 100
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x)


def test_an_average_continues_with_the_same_bits(model):
    average = WeightAverage(model, 0.99)
    stepped(model, average, 5)
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    resumed = WeightAverage(other, 0.99)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(average.state_dict())

    for x, y in ((model, average), (other, resumed)):
        torch.manual_seed(1)
        stepped(x, y, 3)

    for a, b in zip(average.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_averages_nothing_is_refused(model, decay):
    with pytest.raises(ValueError, match="MODEL.EMA.DECAY"):
        WeightAverage(model, decay)
