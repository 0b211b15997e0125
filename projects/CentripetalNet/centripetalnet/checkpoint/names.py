"""Names of this project's weights in other implementations of CentripetalNet.

Every weight of the model has exactly one name in each; rules turn ours into theirs, and the way
back is looked up.
"""

import re
from typing import Dict, Iterable, List, Tuple

# Applied one after the other to one of our names; each may match anywhere in it.
_MMDET_RULES: List[Tuple[str, str]] = [
    # residual blocks, which MMDetection writes like a ResNet's
    (r"\bshortcut\.weight", "downsample.0.weight"),
    (r"\bshortcut\.norm", "downsample.1"),
    (r"\b(conv)([12])\.norm", r"bn\2"),
    # the backbone's other convolutions are a "conv" and a "bn" in a module of their own
    (r"^(backbone\.(?:stem\.0|out_convs\.\d+|merge_in\.\d+|merge_out\.\d+))\.norm", r"\1.bn"),
    (
        r"^(backbone\.(?:stem\.0|out_convs\.\d+|merge_in\.\d+|merge_out\.\d+))\.weight",
        r"\1.conv.weight",
    ),
    (r"^backbone\.stem\.1\.", "backbone.stem.1.0."),
    (r"\bhourglasses\.", "hourglass_modules."),
    (r"\binner\.", "low2."),
    (r"\bskip\.", "up1."),
    (r"\bdown\.", "low1."),
    (r"\bup\.", "low3."),
    (r"\bmerge_in\.", "conv1x1s."),
    (r"\bmerge_out\.", "remap_convs."),
    (r"\bmerge\.", "inters."),
    # the head, which lists the stacks inside each part instead of the parts inside each stack
    (r"^heads\.(\d+)\.(tl|br)\.cross_star\.deform_conv\.", r"bbox_head.\2_feat_adaption.\1."),
    (r"^heads\.(\d+)\.(tl|br)\.cross_star\.sampling_offset\.", r"bbox_head.\2_dcn_offset.\1.conv."),
    (r"^heads\.(\d+)\.(tl|br)\.pooling\.downsample\.0\.", r"bbox_head.\2_pool.\1.conv1.conv."),
    (r"^heads\.(\d+)\.(tl|br)\.pooling\.downsample\.1\.", r"bbox_head.\2_pool.\1.conv1.bn."),
    (r"^heads\.(\d+)\.(tl|br)\.pooling\.(\w+)\.norm\.", r"bbox_head.\2_pool.\1.\3.bn."),
    (r"^heads\.(\d+)\.(tl|br)\.pooling\.(\w+)\.weight", r"bbox_head.\2_pool.\1.\3.conv.weight"),
    (r"(_pool\.\d+)\.vertical\.", r"\1.direction1_conv."),
    (r"(_pool\.\d+)\.horizontal\.", r"\1.direction2_conv."),
    (r"(_pool\.\d+)\.pooled\.", r"\1.aftpool_conv."),
    (r"(_pool\.\d+)\.out\.", r"\1.conv2."),
    (r"^heads\.(\d+)\.(tl|br)\.(\w+)\.([01])\.", r"bbox_head.\2_\3.\1.\4.conv."),
    (r"_heatmap\.", "_heat."),
    (r"_offset\.(\d+\.[01])\.", r"_off.\1."),
]


def mmdet_name(name: str) -> str:
    """The name in MMDetection (2.x and 3.x) of one of our weights."""
    for pattern, replacement in _MMDET_RULES:
        name = re.sub(pattern, replacement, name)
    return name


def names_from_mmdet(names: Iterable[str]) -> Dict[str, str]:
    """MMDetection's name to ours, for all of our names.

    Args:
        names: those of the model that the weights are for.
    """
    return {mmdet_name(name): name for name in names}
