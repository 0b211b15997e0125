"""Optimizers of the training recipe."""

from typing import Type

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

_OPTIMIZERS = ("ADAM", "SGD")


def _with_full_model_clipping(
    optimizer_type: Type[torch.optim.Optimizer], max_norm: float, norm_type: float
) -> Type[torch.optim.Optimizer]:
    """Detectron2's own clipping looks at one parameter at a time, the recipe's at all together."""

    class FullModelClipping(optimizer_type):
        def step(self, closure=None):
            parameters = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
            return super().step(closure)

    FullModelClipping.__name__ = optimizer_type.__name__ + "WithFullModelClipping"
    return FullModelClipping


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that ``SOLVER.OPTIMIZER`` names.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` may be "full_model", the norm of all gradients together,
    besides Detectron2's "value" and "norm".

    Args:
        cfg: see ``add_centripetalnet_config``.
        model: whose parameters are trained.

    Raises:
        ValueError: if the optimizer is unknown.
    """
    solver = cfg.SOLVER
    clip = solver.CLIP_GRADIENTS
    if solver.OPTIMIZER not in _OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER must be one of {_OPTIMIZERS}, got {solver.OPTIMIZER!r}")
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    optimizer_type = torch.optim.Adam
    if solver.OPTIMIZER == "SGD":
        optimizer_type = torch.optim.SGD
        options.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        clipped = _with_full_model_clipping(optimizer_type, clip.CLIP_VALUE, clip.NORM_TYPE)
        return clipped(parameters, **options)
    return maybe_add_gradient_clipping(cfg, optimizer_type)(parameters, **options)
