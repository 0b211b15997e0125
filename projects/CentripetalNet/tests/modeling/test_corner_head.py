import pytest
import torch

from centripetalnet.layers.cross_star_deform_conv import sample_bilinear
from centripetalnet.modeling import CentripetalShiftMatching, EmbeddingMatching
from centripetalnet.modeling.centripetal_shift import ShiftBranch
from centripetalnet.modeling.corner_head import CornerHead

VARIANTS = {
    "cross_star": CentripetalShiftMatching(),
    "deformable": CentripetalShiftMatching(shift_conv="deformable"),
    "plain": CentripetalShiftMatching(shift_conv="plain"),
    "no guiding shift": CentripetalShiftMatching(shift_conv="plain", guiding_shift=False),
    "embedding": EmbeddingMatching(),
}


def make_head(variant="cross_star"):
    torch.manual_seed(0)
    return CornerHead(
        VARIANTS[variant].branch(),
        channels=8,
        num_classes=3,
        pool_channels=4,
        hidden_channels=6,
        heatmap_bias=-2.19,
    )


def test_no_gradient_flows_from_the_centripetal_shift_into_the_guiding_shift():
    head = make_head()

    head(torch.randn(2, 8, 5, 7)).tl.centripetal_shift.sum().backward()

    assert all(p.grad is None for p in head.tl.guiding_shift.parameters())
    assert head.tl.cross_star.sampling_offset.weight.grad.abs().sum() > 0
    assert head.tl.pooling.vertical.weight.grad.abs().sum() > 0


def test_initialisation_is_the_released_one():
    head = CornerHead(
        ShiftBranch,
        channels=256,
        num_classes=80,
        pool_channels=128,
        hidden_channels=256,
        heatmap_bias=-2.19,
    )

    assert (head.tl.heatmap[-1].bias == -2.19).all()
    assert abs(head.br.cross_star.deform_conv.weight.std().item() - 0.01) < 1e-4
    assert abs(head.br.cross_star.sampling_offset.weight.std().item() - 0.1) < 0.05


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("size, num_cells", [((9, 7), 30), ((1, 1), 3), ((5, 6), 0), ((1, 4), 5)])
def test_predictions_at_cells_are_those_of_the_whole_maps(variant, size, num_cells):
    branch = make_head(variant).eval().br
    for parameter in branch.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    feature = torch.randn(2, 8, *size, requires_grad=True)
    cells = torch.randint(0, 2 * size[0] * size[1], (num_cells,))
    leaves = [feature, *branch.parameters()]

    maps = branch(feature)._asdict()
    sparse = branch.at_cells(branch.pooling(feature), cells)._asdict()
    names = [name for name, x in sparse.items() if x is not None]
    dense = [maps[name].permute(0, 2, 3, 1).flatten(0, 2)[cells] for name in names]
    sparse = [sparse[name] for name in names]
    assert len(names) == len([x for x in maps.values() if x is not None]) - 1

    weights = [torch.randn_like(x) for x in dense]
    gradients = [
        torch.autograd.grad(
            sum((x * w).sum() for x, w in zip(shifts, weights)), leaves, allow_unused=True
        )
        for shifts in (dense, sparse)
    ]
    for actual, expected in zip(sparse, dense):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for expected, actual in zip(*gradients):
        assert (actual is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_predictions_can_be_trained_on_a_frozen_feature():
    head = make_head()
    head.tl.pooling.requires_grad_(False)
    cells = torch.tensor([3, 40])

    frozen = head.tl.at_cells(head.tl.pooling(torch.ones(2, 8, 5, 7)), cells)
    frozen.centripetal_shift.sum().backward()
    gradient = head.tl.cross_star.sampling_offset.weight.grad.clone()

    head.zero_grad()
    feature = torch.ones(2, 8, 5, 7, requires_grad=True)
    head.tl.at_cells(head.tl.pooling(feature), cells).centripetal_shift.sum().backward()
    torch.testing.assert_close(gradient, head.tl.cross_star.sampling_offset.weight.grad)


def test_sampling_between_cells_has_the_right_gradients():
    torch.manual_seed(0)
    feature = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    # Inside, across the edge, and outside; never on a cell centre, where the gradient is undefined.
    y = torch.tensor([0.3, 2.7, -0.6, 3.4, 9.5], dtype=torch.double, requires_grad=True)
    x = torch.tensor([1.2, 3.6, 0.4, 4.7, -8.1], dtype=torch.double, requires_grad=True)
    image_index = torch.tensor([0, 1, 1, 0, 1])

    assert torch.autograd.gradcheck(
        lambda f, y, x: sample_bilinear(f, image_index, y, x), (feature, y, x)
    )
