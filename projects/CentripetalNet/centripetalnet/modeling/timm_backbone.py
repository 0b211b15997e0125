"""Backbones of timm (https://github.com/huggingface/pytorch-image-models) under Detectron2's FPN.

Shapes: N images, h x w the canvas.
"""

import math
from functools import partial

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import run_checkpointed

NORMS = ("BN", "FrozenBN", "SyncBN")


def import_timm():
    """The module timm.

    Raises:
        ImportError: if it is not installed; names the command that installs it.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "MODEL.BACKBONE.NAME build_timm_fpn_backbone needs timm, which is not installed "
            f"({error}). Install it: python -m pip install timm"
        ) from error
    return timm


class TimmBackbone(Backbone):
    """The feature maps of a network of timm, named as in Detectron2: "res2" has stride 4.

    The networks begin with random weights. ``MODEL.WEIGHTS timm://NAME`` loads pretrained ones.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        norm: str = "BN",
        freeze_at: int = 0,
        checkpoint_activations: bool = False,
    ):
        """
        Args:
            name: of a network, see ``timm.list_models()``.
            in_channels: channels of the image.
            norm: "BN" leaves the network's norms as they are, "FrozenBN" makes each batch norm use
                its running statistics and keep its weights, "SyncBN" shares statistics among GPUs.
            freeze_at: number of frozen stages, see :meth:`freeze`.
            checkpoint_activations: whether training keeps only the input of each stage and
                recomputes its activations in the backward pass.

        Raises:
            ImportError: if timm is not installed.
            ValueError: if timm has no such network with feature maps, it takes images of one size
                only, it has no batch norm that ``norm`` could change, or ``freeze_at`` is invalid.
        """
        super().__init__()
        timm = import_timm()
        try:
            self.net = timm.create_model(name, features_only=True, in_chans=in_channels)
        # Networks without feature maps raise several types of errors.
        except Exception as error:
            raise ValueError(
                f"MODEL.TIMM.NAME is {name!r}, of which timm {timm.__version__} builds no feature "
                f"maps ({type(error).__name__}: {error}). timm.list_models() has the names."
            ) from error
        if any(getattr(x, "strict_img_size", False) for x in self.net.modules()):
            raise ValueError(
                f"MODEL.TIMM.NAME: {name} takes images of one size only. Choose a network "
                "that takes any size, a convolutional one for example."
            )
        info = self.net.feature_info
        self.strides: list[int] = info.reduction()
        if any(b != 2 * a for a, b in zip(self.strides, self.strides[1:])):
            raise ValueError(
                f"MODEL.TIMM.NAME: the feature maps of {name} have the strides {self.strides}. "
                "FPN needs a network in which each stride is twice the one before."
            )
        self._out_features = [f"res{int(math.log2(x))}" for x in self.strides]
        self._out_feature_strides = dict(zip(self._out_features, self.strides))
        self._out_feature_channels = dict(zip(self._out_features, info.channels()))
        self.is_channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        if norm not in NORMS:
            raise ValueError(f"MODEL.TIMM.NORM must be one of {NORMS}, got {norm!r}")
        norms = [x for x in self.net.modules() if isinstance(x, nn.BatchNorm2d)]
        if norm != "BN" and not norms:
            raise ValueError(
                f"MODEL.TIMM.NORM is {norm!r}, but {name} has no batch norm. Set it to 'BN'."
            )
        if norm == "SyncBN":
            self.net = timm.layers.convert_sync_batchnorm(self.net)
        if norm == "FrozenBN":
            for module in norms:
                module.requires_grad_(False)
        self.freeze(freeze_at)
        self.train(self.training)
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1 and module.kernel_size[0] > 3:
                module.forward = partial(_depthwise, module)
        if checkpoint_activations:
            # Not timm's own checkpointing, which updates the batch norms in both passes.
            for stage in getattr(self.net, "blocks", self.net).children():
                if len(list(stage.children())) and any(True for _ in stage.parameters()):
                    stage.forward = partial(_recomputed, stage)

    def freeze(self, freeze_at: int) -> None:
        """Freezes the first stages: their weights are not trained, their batch norms are frozen.

        Args:
            freeze_at: number of stages. A stage ends with a feature map of the network; the first
                one includes the stem.

        Raises:
            ValueError: if there are fewer stages, or timm does not tell where they end.
        """
        if not 0 <= freeze_at <= len(self.strides):
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT must be from 0 to {len(self.strides)}, as the network "
                f"has feature maps of the strides {self.strides}; got {freeze_at}"
            )
        if not freeze_at:
            return
        last = self.net.feature_info.module_name()[freeze_at - 1].replace(".", "_")
        frozen: list[str] = []
        is_found = False
        # In the order of the forward pass; "stages.1" may be a child named "stages_1".
        for name, _ in self.net.named_modules():
            path = f"{name}.".replace(".", "_")
            is_last = path.startswith(f"{last}_")
            if is_found and not is_last:
                break
            is_found = is_found or is_last
            # A module has weights of its own beside those of its children, unless it contains the
            # last stage.
            contains_last = not name or (f"{last}_".startswith(path) and not is_last)
            if not contains_last and not any(name.startswith(f"{x}.") for x in frozen[-1:]):
                frozen.append(name)
        if not is_found:
            raise ValueError(
                "MODEL.BACKBONE.FREEZE_AT must be 0 for this network: timm does not tell where its "
                "stages end"
            )
        for name in frozen:
            self.net.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> "TimmBackbone":
        """As in ``nn.Module``; batch norms whose weights are frozen stay in evaluation mode.

        That is faster than the frozen norms of timm.
        """
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, _BatchNorm) and not any(
                x.requires_grad for x in module.parameters()
            ):
                module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, in_channels, h, w), normalised.

        Returns:
            ``res2`` and so on: (N, channels, h / stride, w / stride) each, rounded up.
        """
        features = self.net(x)
        if self.is_channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return dict(zip(self._out_features, features))


def _depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A depthwise convolution; in training on a CPU without autocast.

    There, the weight gradients of 5x5 kernels take five times as long in bfloat16 as in float32.
    """
    forward = type(conv).forward
    if x.is_cuda or not (conv.training and conv.weight.requires_grad):
        return forward(conv, x)
    with torch.autocast(x.device.type, enabled=False):
        return forward(conv, x.to(conv.weight.dtype)).to(x.dtype)


def _recomputed(stage: nn.Module, *inputs: Tensor):
    """The forward pass of a stage, recomputed in the backward pass of a training."""
    forward = partial(type(stage).forward, stage)
    return run_checkpointed(stage, forward, *inputs) if stage.training else forward(*inputs)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Builder for ``MODEL.BACKBONE.NAME: build_timm_fpn_backbone``.

    ``MODEL.TIMM`` has the network's keys, ``MODEL.FPN`` those of Detectron2's FPN. Without
    ``MODEL.FPN.IN_FEATURES`` all feature maps from stride 4 on are used.
    """
    bottom_up = TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        in_channels=input_shape.channels,
        norm=cfg.MODEL.TIMM.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        checkpoint_activations=cfg.MODEL.CENTRIPETALNET.CHECKPOINT_ACTIVATIONS,
    )
    shapes = bottom_up.output_shape()
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES or [x for x in shapes if shapes[x].stride >= 4],
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
