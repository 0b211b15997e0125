import importlib
import math

import pytest
import torch
from conftest import rounding

from centripetalnet.layers import (
    gaussian_focal_loss,
    gaussian_focal_loss_reference,
    render_bumps,
)

SHAPE = (2, 3, 9, 21)
# A single cell, one to ignore (radius -1), two that overlap, one cut off by the border.
BUMPS = torch.tensor(
    [[0, 3, 3, 0], [0, 1, 1, -1], [1, 4, 10, 3], [1, 5, 13, 2], [5, 0, 20, 4]], dtype=torch.int32
)
PLANE_START = torch.tensor([0, 2, 4, 4, 4, 4, 5], dtype=torch.int32)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def logits_of(dtype=torch.float32, memory_format=torch.contiguous_format, device="cpu"):
    logits = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 4
    return logits.to(device, dtype, memory_format=memory_format).requires_grad_()


def loss_and_gradient(logits, alpha=2.0, beta=4.0):
    bumps, plane_start = BUMPS.to(logits.device), PLANE_START.to(logits.device)
    loss = gaussian_focal_loss(logits, bumps, plane_start, alpha, beta)
    (gradient,) = torch.autograd.grad(loss * 3, logits)
    return loss.detach(), gradient


def expected_loss_and_gradient(logits, alpha=2.0, beta=4.0):
    """The paper's formula in double precision."""
    logits = logits.detach().cpu().double().requires_grad_()
    p, t = logits.sigmoid(), render_bumps(BUMPS, SHAPE, torch.double)
    positive = -p.log() * (1 - p) ** alpha
    negative = -(1 - p).log() * p**alpha * (1 - t) ** beta
    loss = torch.where(t == 1, positive, negative).sum()
    (gradient,) = torch.autograd.grad(loss * 3, logits)
    return loss.detach(), gradient


def tolerance(logits, alpha=2.0):
    """Largest relative error of a cell's loss or gradient, and of their sum, which is in double."""
    largest = float(logits.detach().abs().max())
    # 10 units in the last place for the square of p or q, 10 for the other factor of the gradient,
    # 6 for 1 - t, which its power multiplies by beta = 4, and 10 for powers and products.
    units = 10 + 10 + 6 * 4 + 10
    if alpha != 2:
        # exp(alpha log p) multiplies the 4 units of the logarithm by its argument.
        units += 4 * alpha * largest
    # In the formula 1 - p loses the digits that p has in front, in up to eight places.
    formula = 8 * math.exp(largest) * torch.finfo(torch.double).eps
    return rounding(units, torch.promote_types(logits.dtype, torch.float32)) + formula


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha, beta", [(2.0, 4.0), (1.5, 3.5)])
def test_equals_the_formula_in_double_precision(alpha, beta, dtype, memory_format, device):
    logits = logits_of(dtype, memory_format, device)

    loss, gradient = loss_and_gradient(logits, alpha, beta)

    expected_loss, expected_gradient = expected_loss_and_gradient(logits, alpha, beta)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    precision = tolerance(logits, alpha)
    torch.testing.assert_close(loss.cpu().double(), expected_loss, rtol=precision, atol=0)
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=memory_format)
    # One rounding to the dtype, unless the gradient is below the dtype's smallest normal number.
    torch.testing.assert_close(
        gradient.cpu().double(),
        expected_gradient,
        rtol=rounding(0.5, dtype) + precision,
        atol=torch.finfo(dtype).tiny,
    )


def test_without_a_kernel_the_reference_is_used(monkeypatch):
    logits = logits_of()
    expected = loss_and_gradient(logits)
    module = importlib.import_module("centripetalnet.layers.gaussian_focal_loss")
    monkeypatch.setattr(module, "has_kernel", lambda *args: False)

    actual = loss_and_gradient(logits)

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_extreme_logits_give_finite_losses_and_gradients(device):
    values = torch.tensor([-1e4, 1e4, -90.0, 90.0, -0.0, 0.0, 3e38], device=device)
    plane = torch.tensor([[0, 0, i, 0] for i in (0, 1, 3)], dtype=torch.int32, device=device)
    logits = values.view(1, 1, 1, 7).requires_grad_()

    start = torch.tensor([0, 3], dtype=torch.int32, device=device)
    loss = gaussian_focal_loss(logits, plane, start)
    loss.backward()

    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    # A confident false negative, and a huge false positive.
    assert logits.grad[0, 0, 0, [0, 6]].tolist() == [-1, 1]


def test_a_nan_logit_gives_a_nan_loss_and_gradient(device):
    logits = logits_of(device=device).detach()
    logits[1, 1, 4, 5] = float("nan")

    loss, gradient = loss_and_gradient(logits.requires_grad_())

    assert loss.isnan()
    assert gradient.isnan().sum() == 1


def test_gradcheck(device):
    logits = torch.randn(1, 2, 3, 4, dtype=torch.double, device=device, requires_grad=True)
    bumps = torch.tensor([[1, 1, 1, 1]], dtype=torch.int32, device=device)
    plane_start = torch.tensor([0, 0, 1], dtype=torch.int32, device=device)

    assert torch.autograd.gradcheck(
        lambda x: gaussian_focal_loss(x, bumps, plane_start, 1.5, 3.0), (logits,)
    )


def test_second_derivative_is_an_error(device):
    logits = logits_of(device=device)
    loss = gaussian_focal_loss(logits, BUMPS.to(device), PLANE_START.to(device))
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)

    with pytest.raises(RuntimeError, match="not implemented"):
        gradient.sum().backward()


def test_operators_pass_opcheck(opcheck, device):
    op = torch.ops.centripetalnet
    logits, bumps, plane_start = logits_of(device=device), BUMPS.to(device), PLANE_START.to(device)
    grad = torch.ones((), device=device)

    opcheck(op.gaussian_focal_loss, (logits, bumps, plane_start, 2.0, 4.0))
    opcheck(op.gaussian_focal_loss_backward, (grad, logits.detach(), bumps, plane_start, 2.0, 4.0))


def test_backward_keeps_no_map_but_the_logits():
    kept = []
    logits = torch.randn(1, 2, 64, 64, requires_grad=True)
    bumps = torch.tensor([[1, 30, 30, 9]], dtype=torch.int32)
    plane_start = torch.tensor([0, 0, 1], dtype=torch.int32)

    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        gaussian_focal_loss(logits, bumps, plane_start)

    others = [x for x in kept if x.data_ptr() != logits.data_ptr()]
    assert len(others) < len(kept)
    assert sum(x.numel() for x in others) < 10


def test_an_empty_batch_has_zero_loss(device):
    logits = torch.zeros(0, 3, 4, 4, device=device, requires_grad=True)
    none = torch.zeros(0, 4, dtype=torch.int32, device=device)
    loss = gaussian_focal_loss(logits, none, torch.zeros(1, dtype=torch.int32, device=device))
    loss.backward()

    assert loss == 0
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"logits": torch.zeros(3, 4)}, ValueError, r"\(N, C, H, W\)"),
        ({"logits": torch.zeros(SHAPE, dtype=torch.long)}, TypeError, "floating point"),
        ({"bumps": torch.zeros(2, 3, dtype=torch.int32)}, ValueError, r"bumps of shape \(M, 4\)"),
        ({"bumps": torch.zeros(2, 4)}, TypeError, "int32"),
        ({"plane_start": torch.zeros(3, dtype=torch.int32)}, ValueError, r"\(N \* C \+ 1,\)"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operator_checks_its_arguments(changed, error, message, device):
    inputs = {"logits": torch.zeros(SHAPE), "bumps": BUMPS, "plane_start": PLANE_START, **changed}

    with pytest.raises(error, match=message):
        torch.ops.centripetalnet.gaussian_focal_loss(
            *(x.to(device) for x in inputs.values()), 2.0, 4.0
        )


def test_rendered_bumps_are_gaussians_merged_by_their_maximum():
    heatmap = render_bumps(BUMPS, SHAPE).flatten(0, 1)

    assert heatmap[0].count_nonzero() == 1 and heatmap[0, 3, 3] == 1
    # (2, 1) cells from a peak with sigma 7 / 6, one cell from a peak with sigma 5 / 6.
    from_peaks = math.exp(-5 / (2 * (7 / 6) ** 2)), math.exp(-1 / (2 * (5 / 6) ** 2))
    assert heatmap[1, 5, 12].item() == pytest.approx(max(from_peaks))
    assert heatmap[1, 4, 9].item() == pytest.approx(math.exp(-1 / (2 * (7 / 6) ** 2)))
    assert heatmap[1, 4, 10] == heatmap[1, 5, 13] == heatmap[5, 0, 20] == 1
    assert heatmap[5].count_nonzero() == 25


@pytest.mark.parametrize(
    "bumps, plane_start, message",
    [
        ([[0, 9, 0, 1]], [0, 1, 1, 1, 1, 1, 1], "are on the map of 9 x 21 cells, got one at y = 9"),
        ([[0, 0, -1, 1]], [0, 1, 1, 1, 1, 1, 1], "are on the map .* x = -1"),
        ([[6, 0, 0, 1]], [0, 0, 0, 0, 0, 0, 1], r"N \* C\) = \[0, 6\), got 6"),
        ([[0, 0, 0, 1]], [0, 9, 9, 9, 9, 9, 9], "rise from 0 to the number of bumps, 1"),
        ([[0, 0, 0, 1]], [0, 1, -5, 1, 1, 1, 1], "rise from 0"),
    ],
)
def test_bumps_outside_the_maps_are_errors(bumps, plane_start, message):
    arguments = torch.tensor(bumps, dtype=torch.int32), torch.tensor(plane_start).int()

    with pytest.raises(ValueError, match=message):
        gaussian_focal_loss(torch.zeros(SHAPE), *arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bumps_that_disagree_with_plane_start_are_errors(memory_format):
    bumps = torch.tensor([[1, 0, 0, 1]], dtype=torch.int32)
    plane_start = torch.tensor([0, 1, 1, 1, 1, 1, 1], dtype=torch.int32)

    with pytest.raises(ValueError, match="bump 0 of plane 1 among those of plane 0"):
        gaussian_focal_loss(
            torch.zeros(SHAPE).contiguous(memory_format=memory_format), bumps, plane_start
        )


@pytest.mark.parametrize("exponent", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("compiled", [True, False])
def test_exponents_must_be_finite_and_not_negative(compiled, name, exponent, monkeypatch):
    if not compiled:
        module = importlib.import_module("centripetalnet.layers.gaussian_focal_loss")
        monkeypatch.setattr(module, "has_kernel", lambda *args: False)

    with pytest.raises(ValueError, match="alpha and beta to be finite and not negative"):
        gaussian_focal_loss(torch.zeros(SHAPE), BUMPS, PLANE_START, **{name: exponent})


def test_with_beta_zero_positive_cells_count_once(device):
    logits = logits_of(device=device)

    loss, _ = loss_and_gradient(logits, beta=0.0)

    targets = render_bumps(BUMPS, SHAPE)
    expected, _ = expected_loss_and_gradient(logits, beta=0.0)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=tolerance(logits), atol=0)
    reference = gaussian_focal_loss_reference(logits.detach().cpu(), targets, beta=0.0)
    torch.testing.assert_close(reference.double(), expected, rtol=1e-5, atol=0)


def test_backward_refuses_a_gradient_on_another_device():
    grad = torch.ones((), device="meta")

    with pytest.raises(ValueError, match="one device, got meta and cpu"):
        torch.ops.centripetalnet.gaussian_focal_loss_backward(
            grad, torch.zeros(SHAPE), BUMPS, PLANE_START, 2.0, 4.0
        )
