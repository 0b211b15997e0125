import torch

from centripetalnet.layers import gaussian_focal_loss


def test_equals_the_formula_in_double_precision():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 50) * 4, torch.rand(3, 50)
    targets[:, ::10] = 1

    loss = gaussian_focal_loss(logits, targets, alpha=2, beta=4)

    p, t = logits.double().sigmoid(), targets.double()
    positive = -p.log() * (1 - p) ** 2
    negative = -(1 - p).log() * p**2 * (1 - t) ** 4
    expected = torch.where(t == 1, positive, negative).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4, -90.0, 90.0], requires_grad=True)
    targets = torch.tensor([0.0, 0, 1, 1, 0.5, 1])

    loss = gaussian_focal_loss(logits, targets)
    loss.backward()

    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1000, dtype=torch.bfloat16)

    assert gaussian_focal_loss(logits, torch.zeros(1000)).dtype == torch.float32


def test_gradient_is_right():
    torch.manual_seed(0)
    targets = torch.rand(12, dtype=torch.double)
    targets[:3] = 1
    logits = torch.randn(12, dtype=torch.double, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x: gaussian_focal_loss(x, targets), (logits,))
