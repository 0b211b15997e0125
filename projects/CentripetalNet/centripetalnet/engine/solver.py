"""Optimizers of the training recipe."""

import math
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier
from torch import nn

_OPTIMIZERS = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer ``SOLVER.OPTIMIZER``.

    It clips gradients for Detectron2's ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "value" and "norm".
    For "full_model" see :func:`gradient_clipping`.

    Args:
        cfg: see ``add_centripetalnet_config``.
        model: the model to train.

    Raises:
        ValueError: if the optimizer is unknown.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in _OPTIMIZERS:
        raise ValueError(
            f"SOLVER.OPTIMIZER must be one of {list(_OPTIMIZERS)}, got {solver.OPTIMIZER!r}"
        )
    # Only the pretrained part.
    backbone = "backbone.bottom_up." if isinstance(model.backbone, FPN) else "backbone."
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if name.startswith(backbone) else 1,
    )
    options = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    optimizer_type = _OPTIMIZERS[solver.OPTIMIZER]
    if solver.OPTIMIZER == "SGD":
        options.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    if not _clips_full_model(cfg):
        optimizer_type = maybe_add_gradient_clipping(cfg, optimizer_type)
    return optimizer_type(parameters, **options)


def gradient_clipping(cfg: CfgNode) -> tuple[float, float]:
    """Settings for clipping the norm of all gradients together.

    Detectron2's "norm" clips each parameter separately. "full_model" clips the norm over all
    parameters, as the recipe does; the trainer applies it.

    Args:
        cfg: see ``add_centripetalnet_config``.

    Returns:
        The largest norm, infinity unless ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is "full_model", and
        the type of the norm (2: Euclidean).
    """
    if _clips_full_model(cfg):
        return cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE
    return math.inf, 2.0


def _clips_full_model(cfg: CfgNode) -> bool:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return clip.ENABLED and clip.CLIP_TYPE == "full_model"


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Learning rate, weight decay and so on of each parameter group, without the parameters."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """The name of its class in ``torch.optim``, also with Detectron2's gradient clipping."""
    return next(
        x.__name__ for x in type(optimizer).__mro__ if x.__module__.startswith("torch.optim.")
    )


def check_same_optimizer(
    optimizer: torch.optim.Optimizer, state: dict, name: Optional[str] = None
) -> None:
    """Raises ValueError if a state is that of another optimizer or of other parameters.

    Args:
        optimizer: what the state is to be loaded into.
        state: ``state_dict`` of an optimizer.
        name: its :func:`optimizer_name`, if it is known.
    """
    here, saved = optimizer.param_groups, state["param_groups"]
    if ["betas" in x for x in here[:1]] != ["betas" in x for x in saved[:1]] or (
        name and name != optimizer_name(optimizer)
    ):
        problem, keys = "has the state of another optimizer", "SOLVER.OPTIMIZER"
    elif [len(x["params"]) for x in here] != [len(x["params"]) for x in saved]:
        problem = "has the state of an optimizer with other groups of parameters"
        keys = (
            "MODEL.BACKBONE.FREEZE_AT, SOLVER.BACKBONE_MULTIPLIER, BIAS_LR_FACTOR, "
            "WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS"
        )
    else:
        return
    raise ValueError(
        f"--resume: the checkpoint {problem}. Resume with its {keys}, or start a new training from "
        "its weights with MODEL.WEIGHTS and another OUTPUT_DIR."
    )


def restore_hyperparameters(
    optimizer: torch.optim.Optimizer, scheduler: LRMultiplier, wanted: list[dict]
) -> dict[str, tuple]:
    """Sets hyperparameters back to those of the config after a checkpoint was loaded.

    Args:
        optimizer, scheduler: with the state of the checkpoint.
        wanted: :func:`hyperparameters` of the optimizer before that state was loaded.

    Returns:
        Name of each hyperparameter that changed, with the checkpoint's and the config's value. The
        base learning rate is named "lr".
    """
    changes: dict[str, tuple] = {}
    for group, values in zip(optimizer.param_groups, wanted):
        for key in values.keys() - {"lr"}:
            # A checkpoint of another PyTorch version may have fewer keys.
            if group.get(key, values[key]) != values[key]:
                name = "lr" if key == "initial_lr" else key
                changes.setdefault(name, (group[key], values[key]))
            group[key] = values[key]
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, scheduler.get_lr()):
        group["lr"] = rate
    return changes
