from .activation_checkpoint import run_checkpointed
from .corner_pool import corner_pool, corner_pool_reference
from .cross_star_deform_conv import (
    CrossStarDeformConv,
    FreeDeformConv,
    PlainConv3x3,
    deform_conv3x3,
)
from .gaussian_focal_loss import (
    gaussian_focal_loss,
    gaussian_focal_loss_reference,
    render_bumps,
)
from .soft_nms import METHODS as SOFT_NMS_METHODS
from .soft_nms import batched_soft_nms, soft_nms_reference

__all__ = [
    "SOFT_NMS_METHODS",
    "CrossStarDeformConv",
    "FreeDeformConv",
    "PlainConv3x3",
    "batched_soft_nms",
    "corner_pool",
    "corner_pool_reference",
    "deform_conv3x3",
    "gaussian_focal_loss",
    "gaussian_focal_loss_reference",
    "render_bumps",
    "run_checkpointed",
    "soft_nms_reference",
]
