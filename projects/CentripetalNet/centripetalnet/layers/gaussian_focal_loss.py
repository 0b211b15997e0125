"""Focal loss for heat maps whose targets are Gaussian bumps (arXiv 1808.01244, equation 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Sum of the focal loss over all cells, computed from logits so that it never overflows.

    With p = sigmoid(logit) and t the target, a cell adds ``-log(p) (1 - p)^alpha`` where t = 1 and
    ``-log(1 - p) p^alpha (1 - t)^beta`` elsewhere.

    Args:
        logits: any shape.
        targets: the same shape, in [0, 1]; exactly 1 at positive cells.
        alpha: exponent that quietens cells which are already right.
        beta: exponent that quietens cells near a positive one.

    Returns:
        A scalar, in float32 or better.

    Source: CornerNet, arXiv 1808.01244, equation 1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # At a positive cell (1 - t)^beta is 0, so the two terms can simply be added up.
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    negative = log_not_p * (alpha * log_p).exp() * (1 - targets).pow(beta)
    positive = log_p * (alpha * log_not_p).exp() * targets.eq(1)
    return -(negative + positive).sum()
