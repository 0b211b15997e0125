"""Which feature maps of a backbone have a head, and sizes as tensors."""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from torch import Tensor, nn


def feature_shapes(
    backbone: Backbone, in_features: Optional[Sequence[str]] = None
) -> dict[str, ShapeSpec]:
    """Shapes of the feature maps that have a head, by default all of the backbone's.

    Raises:
        ValueError: if a name is not the backbone's, or strides differ.
    """
    key, shapes = "MODEL.CENTRIPETALNET.IN_FEATURES", backbone.output_shape()
    unknown = [x for x in in_features or [] if x not in shapes]
    if unknown:
        raise ValueError(f"{key} names {unknown}, but the backbone has {list(shapes)}")
    if in_features:
        shapes = {name: shapes[name] for name in in_features}
    if len({x.stride for x in shapes.values()}) != 1:
        strides = ", ".join(f"{name} ({x.stride})" for name, x in shapes.items())
        raise ValueError(
            f"{key} must name feature maps of one stride, since all heads share their targets; got "
            f"{strides}. For an FPN it is usually ['p2']."
        )
    return shapes


def drop_unused_outputs(fpn: FPN, names: Sequence[str]) -> None:
    """Removes the output convolutions of an FPN that no head reads.

    They would cost time, and DistributedDataParallel expects a gradient of each parameter.
    """
    outputs = {f"fpn_output{name[1:]}" for name in names}
    if not outputs <= set(dict(fpn.named_children())):
        # A feature map of the top block, which may read any other.
        return
    for name, module in list(fpn.named_children()):
        if name.startswith("fpn_output") and name not in outputs:
            setattr(fpn, name, nn.Identity())
            fpn.output_convs[fpn.output_convs.index(module)] = getattr(fpn, name)


def as_xy(size: tuple[float, float], like: Tensor) -> Tensor:
    """Python numbers (height, width) as a tensor (width, height).

    They are filled in on the device: a copy from the CPU waits until the GPU has finished all its
    work. In an export both stay dynamic.

    Args:
        size: two numbers, y before x.
        like: gives dtype and device.

    Returns:
        (2,) x, y.
    """
    height, width = size
    return torch.stack((like.new_full((), width), like.new_full((), height)))
