"""Names of this project's weights in other implementations of CentripetalNet and CornerNet.

Each weight has exactly one name in each implementation. Rules turn ours into theirs; the inverse is
a lookup.
"""

import re
from collections.abc import Iterable
from typing import Callable

Rules = list[tuple[str, str]]

# A list of rules is applied to one of our names, rule by rule.

# Paths of an hourglass, named alike in all implementations.
_HOURGLASS_PATHS: Rules = [
    (r"\binner\.", "low2."),
    (r"\bskip\.", "up1."),
    (r"\bdown\.", "low1."),
    (r"\bup\.", "low3."),
]

_MMDET_BACKBONE: Rules = [
    # residual blocks, named like a ResNet's
    (r"\bshortcut\.weight", "downsample.0.weight"),
    (r"\bshortcut\.norm\.", "downsample.1."),
    (r"\bconv([12])\.norm\.", r"bn\1."),
    (r"^(stem\.0|(?:out_convs|merge_in|merge_out)\.\d+)\.norm\.", r"\1.bn."),
    (r"^(stem\.0|(?:out_convs|merge_in|merge_out)\.\d+)\.weight", r"\1.conv.weight"),
    (r"^stem\.1\.", "stem.1.0."),
    (r"^hourglasses\.", "hourglass_modules."),
    *_HOURGLASS_PATHS,
    (r"^merge_in\.", "conv1x1s."),
    (r"^merge_out\.", "remap_convs."),
    (r"^merge\.", "inters."),
]
# {c} is the corner and {s} the stack.
_MMDET_BRANCH: Rules = [
    (r"^cross_star\.deform_conv\.", "{c}_feat_adaption.{s}."),
    (r"^cross_star\.sampling_offset\.", "{c}_dcn_offset.{s}.conv."),
    (r"^pooling\.(\w+)\.norm\.", r"{c}_pool.{s}.\1.bn."),
    (r"^pooling\.(\w+)\.weight", r"{c}_pool.{s}.\1.conv.weight"),
    (r"\.vertical\.", ".direction1_conv."),
    (r"\.horizontal\.", ".direction2_conv."),
    (r"\.pooled\.", ".aftpool_conv."),
    (r"\.shortcut\.", ".conv1."),
    (r"\.out\.", ".conv2."),
    (r"^heatmap\.([01])\.", r"{c}_heat.{s}.\1.conv."),
    (r"^offset\.([01])\.", r"{c}_off.{s}.\1.conv."),
    (r"^(guiding_shift|centripetal_shift)\.([01])\.", r"{c}_\1.{s}.\2.conv."),
    (r"^embedding\.([01])\.", r"{c}_emb.{s}.\1.conv."),
]

_PAPER_BACKBONE: Rules = [
    *_HOURGLASS_PATHS,
    (r"\bshortcut\.weight", "skip.0.weight"),
    (r"\bshortcut\.norm\.", "skip.1."),
    (r"\bconv([12])\.norm\.", r"bn\1."),
    (r"^(stem\.0|out_convs\.\d+)\.norm\.", r"\1.bn."),
    (r"^(stem\.0|out_convs\.\d+)\.weight", r"\1.conv.weight"),
    (r"^stem\.", "pre."),
    (r"^hourglasses\.", "hg_modules."),
    (r"^out_convs\.", "cnvs."),
    (r"^merge\.", "inters."),
    (r"^merge_in\.(\d+)\.weight", r"inters_.\1.0.weight"),
    (r"^merge_in\.(\d+)\.norm\.", r"inters_.\1.1."),
    (r"^merge_out\.(\d+)\.weight", r"cnvs_.\1.0.weight"),
    (r"^merge_out\.(\d+)\.norm\.", r"cnvs_.\1.1."),
]
# {m} is "mid_" except in the last stack.
_PAPER_BRANCH: Rules = [
    (r"^cross_star\.deform_conv\.", "{m}{c}_fadp."),
    (r"^cross_star\.sampling_offset\.", "{m}{c}_offset."),
    (r"^pooling\.(vertical|horizontal|out)\.norm\.", r"{m}{c}_pool.\1.bn."),
    (r"^pooling\.(vertical|horizontal|out)\.weight", r"{m}{c}_pool.\1.conv.weight"),
    (r"\.vertical\.", ".p1_conv1."),
    (r"\.horizontal\.", ".p2_conv1."),
    (r"\.out\.", ".conv2."),
    (r"^pooling\.pooled\.weight", "{m}{c}_pool.p_conv1.weight"),
    (r"^pooling\.pooled\.norm\.", "{m}{c}_pool.p_bn1."),
    (r"^pooling\.shortcut\.weight", "{m}{c}_pool.conv1.weight"),
    (r"^pooling\.shortcut\.norm\.", "{m}{c}_pool.bn1."),
    (r"^heatmap\.0\.", "{m}{c}_heat.0.conv."),
    (r"^heatmap\.1\.", "{m}{c}_heat.1."),
    (r"^offset\.0\.", "{m}{c}_off.0.conv."),
    (r"^offset\.1\.", "{m}{c}_off.1."),
    (r"^guiding_shift\.0\.", "{m}{c}_off_c.0.conv."),
    (r"^guiding_shift\.1\.", "{m}{c}_off_c.1."),
    (r"^centripetal_shift\.0\.", "{m}{c}_off_c_2.0.conv."),
    (r"^centripetal_shift\.1\.", "{m}{c}_off_c_2.1."),
]

# CornerNet's own code, on which the paper's is based.
_CORNERNET_BACKBONE: Rules = [
    *((pattern, name.replace("hg_modules.", "kps.")) for pattern, name in _PAPER_BACKBONE),
]
_CORNERNET_BRANCH: Rules = [
    *(
        (pattern, re.sub(r"^{m}{c}_(pool|heat|off)\.", r"{c}_\1s.{s}.", name))
        for pattern, name in _PAPER_BRANCH
        if not re.search("shift|star", pattern)
    ),
    (r"^embedding\.0\.", "{c}_tags.{s}.0.conv."),
    (r"^embedding\.1\.", "{c}_tags.{s}.1."),
    (r"_pools\.", "_cnvs."),
    (r"_offs\.", "_regrs."),
]


def _apply(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _renamed(name: str, backbone: Rules, branch: Rules, num_stacks: int) -> str:
    if name.startswith("backbone."):
        return "backbone." + _apply(backbone, name[len("backbone.") :])
    _, stack, corner, rest = name.split(".", 3)
    if _apply(branch, rest) == rest:
        raise ValueError(
            f"the other implementation has no part like {name}, so the config describes another "
            "detector: centripetal_hg104 is the released CentripetalNet, cornernet_hg104 CornerNet"
        )
    middle = "" if int(stack) == num_stacks - 1 else "mid_"
    place = {"{c}": corner, "{s}": stack, "{m}": middle}
    renamed = _apply(branch, rest)
    for key, value in place.items():
        renamed = renamed.replace(key, value)
    return "bbox_head." + renamed


def mmdet_name(name: str, num_stacks: int) -> str:
    """MMDetection's name (2.x and 3.x) of one of our weights."""
    return _renamed(name, _MMDET_BACKBONE, _MMDET_BRANCH, num_stacks)


def paper_name(name: str, num_stacks: int) -> str:
    """The paper's authors' name of one of our weights."""
    return _renamed(name, _PAPER_BACKBONE, _PAPER_BRANCH, num_stacks)


def cornernet_name(name: str, num_stacks: int) -> str:
    """CornerNet's authors' name of one of our weights."""
    renamed = _renamed(name, _CORNERNET_BACKBONE, _CORNERNET_BRANCH, num_stacks)
    return "module." + renamed.split(".", 1)[1]


def translation(names: Iterable[str], theirs: Callable[[str, int], str]) -> dict[str, str]:
    """A dict from their names to ours.

    Args:
        names: our names of the whole model.
        theirs: :func:`mmdet_name`, :func:`paper_name` or :func:`cornernet_name`.

    Raises:
        ValueError: if the other implementation has no such part.
    """
    names = list(names)
    stacks = {name.split(".")[1] for name in names if name.startswith("heads.")}
    return {theirs(name, len(stacks)): name for name in names}
