import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from centripetalnet.modeling import CentripetalShiftMatching, EmbeddingMatching
from centripetalnet.modeling.centripetal_shift import CornerShifts
from centripetalnet.modeling.corner_losses import corner_counts, heatmap_loss, shift_loss
from centripetalnet.modeling.corner_targets import corner_targets
from centripetalnet.modeling.embedding import CornerEmbeddings, embedding_losses


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


@pytest.mark.parametrize("matching", [CentripetalShiftMatching(), EmbeddingMatching()])
def test_without_boxes_the_losses_of_matching_are_zero_and_reach_every_prediction(matching):
    def predictions():
        if isinstance(matching, EmbeddingMatching):
            return CornerEmbeddings(None, torch.zeros(0, 1, requires_grad=True))
        return CornerShifts(None, *(torch.zeros(0, 2, requires_grad=True) for _ in range(2)))

    none = torch.zeros(0, dtype=torch.long)
    targets = corner_targets(torch.zeros(0, 4), none, none, 2, 3, (16, 16), (4, 4))
    counts = [corner_counts(target) for target in (targets.tl, targets.br)]
    of_corners = predictions(), predictions()

    losses = matching.losses(of_corners, targets, counts, smooth_l1_beta=1.0)
    sum(losses.values()).backward()

    assert set(losses) == set(matching.losses_of) and not any(losses.values())
    assert all(x.grad is not None for corner in of_corners for x in corner if x is not None)


def embedding_losses_by_loops(tl, br, image_index, usable):
    """Equations 4 and 5 of arXiv 1808.01244, summed over images."""
    pull = push = 0.0
    for image in image_index.unique():
        mine = [k for k in range(len(tl)) if usable[k] and image_index[k] == image]
        means = [(tl[k] + br[k]) / 2 for k in mine]
        for k, mean in zip(mine, means):
            pull += ((tl[k] - mean) ** 2 + (br[k] - mean) ** 2) / len(mine)
        for i, mean in enumerate(means):
            for j, other in enumerate(means):
                if i != j:
                    count = len(mine) * (len(mine) - 1)
                    push += torch.clamp(1 - (mean - other).abs(), min=0) / count
    return pull, push


@given(
    st.lists(
        st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
@settings(deadline=None)
def test_embedding_losses_are_those_of_the_paper(boxes):
    tl, br, image_index, usable = (torch.tensor(x) for x in zip(*boxes))
    embeddings = [x.double().requires_grad_() for x in (tl, br)]

    found = embedding_losses(*embeddings, image_index, usable)
    expected = embedding_losses_by_loops(*embeddings, image_index, usable)

    for actual, truth in zip(found, expected):
        assert float(actual) == pytest.approx(float(truth), abs=1e-9)


def test_embedding_losses_have_the_right_gradients():
    generator = torch.Generator().manual_seed(0)
    embeddings = [
        torch.randn(9, generator=generator, dtype=torch.double, requires_grad=True)
        for _ in range(2)
    ]
    image_index, usable = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 3]), torch.ones(9).bool()
    usable[4] = False

    def losses(tl, br):
        return embedding_losses(tl, br, image_index, usable)

    assert torch.autograd.gradcheck(losses, embeddings)
