import pytest
import torch

from centripetalnet.modeling.corner_losses import (
    LossOptions,
    corner_counts,
    corner_losses,
    heatmap_loss,
    shift_loss,
)
from centripetalnet.modeling.corner_targets import corner_targets
from centripetalnet.structures import CornerShifts


def test_heatmap_loss_is_divided_by_the_number_of_positive_cells():
    logits = torch.randn(2, 3, 4, 4)
    # Two boxes of one class with the same corner cell count once.
    boxes = torch.tensor([[0.0, 0, 2, 2], [12.0, 12, 14, 14], [12.0, 12, 14, 14]])
    classes, image_index = torch.tensor([0, 2, 2]), torch.tensor([0, 1, 1])

    def loss(count):
        targets = corner_targets(
            boxes[:count], classes[:count], image_index[:count], 2, 3, (16, 16), (4, 4)
        ).tl
        return heatmap_loss(logits, targets.heatmap, corner_counts(targets).heatmap).item()

    p = logits.double().sigmoid()
    negative = -((1 - p).log() * p**2)
    assert loss(0) == pytest.approx(negative.sum().item(), rel=1e-5)
    positive = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    positive[0, 0, 0, 0] = positive[1, 2, 3, 3] = True
    expected = negative[~positive].sum() - (p.log() * (1 - p) ** 2)[positive].sum()
    assert loss(3) == pytest.approx(expected.item() / 2, rel=1e-5)


def test_shift_loss_counts_winning_cells_only():
    prediction = torch.tensor([[0.5, 3.0], [0.0, 0.0], [100.0, 100.0]])
    wins = torch.tensor([True, True, False])

    loss = shift_loss(prediction, torch.zeros(3, 2), wins, torch.tensor(2.0), beta=1.0)

    # Smooth L1: 0.5 * 0.5^2 + (3 - 0.5) at one of the two cells that count.
    assert loss.item() == pytest.approx((0.125 + 2.5) / 2)


def test_heatmap_counts_are_per_class_and_shift_counts_are_not():
    boxes = torch.tensor([[8.0, 8, 40, 40], [9.0, 9, 60, 60], [8.0, 8, 62, 62], [30, 30, 50, 50]])
    classes = torch.tensor([0, 1, 0, 1])

    targets = corner_targets(boxes, classes, torch.zeros_like(classes), 1, 2, (64, 64), (16, 16))

    # Three boxes of two classes share the top-left cell, two boxes of two classes the bottom-right.
    assert corner_counts(targets.tl) == (3, 2)
    assert corner_counts(targets.br) == (4, 3)


def test_without_boxes_shift_losses_are_zero_and_reach_every_prediction():
    heatmap = torch.randn(2, 3, 4, 4, requires_grad=True)
    shifts = CornerShifts(*(torch.zeros(0, 2, requires_grad=True) for _ in range(3)))
    none = torch.zeros(0, dtype=torch.long)
    targets = corner_targets(torch.zeros(0, 4), none, none, 2, 3, (16, 16), (4, 4)).tl

    losses = corner_losses(heatmap, shifts, targets, corner_counts(targets), LossOptions())
    sum(losses.values()).backward()

    assert losses["heatmap"] > 0
    assert losses["offset"] == losses["guiding_shift"] == losses["centripetal_shift"] == 0
    assert all(x.grad is not None for x in (heatmap, *shifts))
