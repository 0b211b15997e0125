"""Converts weights of other implementations of the detectors to ours and back, bit for bit."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Callable, Optional

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from .names import cornernet_name, mmdet_name, paper_name, translation
from .safe_load import load_tensors

# Names by which an implementation is recognised; the group is the prefix.
_SIGNS = {
    "mmdet": re.compile(r"^(.*?)(?:backbone\.)?hourglass_modules\.0\."),
    "paper": re.compile(r"^(.*?)(?:backbone\.)?hg_modules\.0\."),
    "cornernet": re.compile(r"^(.*?)kps\.0\."),
    # Of any backbone.
    "centripetalnet": re.compile(r"^(.*?)heads\.0\.tl\.heatmap\."),
}
_NAMES: dict[str, Callable[[str, int], str]] = {
    "mmdet": mmdet_name,
    "paper": paper_name,
    "cornernet": cornernet_name,
}
# Bias of the last heatmap convolution, one value per class.
_HEATMAP_BIAS = re.compile(r"^heads\.\d+\.tl\.heatmap\.1\.bias$")
# Copies that MMCV 1.x saves in addition; the weights themselves are the averaged ones.
_EMA_COPY = re.compile(r"^(module\.)?ema_")
# Counters that PyTorch before 0.4.1 did not have.
COUNTER = "num_batches_tracked"
# A file may repeat one long string in a list; written out it would fill the memory.
_MAX_CLASSES = 100_000
_MAX_CLASS_NAME = 1_000


@dataclass(frozen=True)
class InputConvention:
    """Channel order and normalisation that weights were trained with."""

    input_format: str
    """Order of the channels, "RGB" or "BGR"."""
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    def options(self) -> list[str]:
        """Config keys and values."""
        return [
            *("INPUT.FORMAT", self.input_format),
            *("MODEL.PIXEL_MEAN", str(list(self.pixel_mean))),
            *("MODEL.PIXEL_STD", str(list(self.pixel_std))),
        ]


# Those of the released configs, for files without their own.
_RGB = InputConvention("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_BGR = InputConvention("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
# Of CornerNet's code, in units of 255 there.
_CORNERNET = InputConvention("BGR", (104.014, 114.034, 119.917), (73.603, 69.891, 70.915))
DEFAULT_INPUT = {"mmdet": _RGB, "paper": _BGR, "cornernet": _CORNERNET}


@dataclass
class Converted:
    """A converted checkpoint and what the converter reports about it."""

    weights: dict[str, Tensor]
    origin: str
    """Implementation that trained the weights: a key of ``DEFAULT_INPUT`` or "centripetalnet"."""
    has_our_names: bool
    """Whether the file already has this project's names."""
    classes: Optional[list[str]]
    """Class names, if the file has them."""
    num_classes: int
    convention: Optional[InputConvention]
    """None if a file with this project's names does not state it."""
    convention_is_from_file: bool
    left_out: list[str]
    """Tensors of the file that were not converted, such as EMA copies."""
    added: list[str]
    """Counters that the file lacked."""

    def checkpoint(self) -> dict:
        """The dict to save: Detectron2's format, with classes and input convention in "about"."""
        content = {"model": self.weights, "__author__": "CentripetalNet"}
        if self.convention is None:
            return content
        about = {"origin": self.origin, "classes": self.classes, **asdict(self.convention)}
        return {**content, "about": about}


def origin_of(names) -> tuple[Optional[str], str]:
    """Implementation with these names, see :class:`Converted`, or None; and their prefix."""
    for name in names:
        for origin, sign in _SIGNS.items():
            match = sign.match(name)
            if match:
                return origin, match.group(1)
    return None, ""


def weights_in(content: Mapping) -> dict[str, Tensor]:
    """The weights of a checkpoint: bare, or under "state_dict" or "model".

    Raises:
        ValueError: if a name is not a string or a tensor is not plain.
    """
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    weights = {name: x for name, x in content.items() if isinstance(x, Tensor)}
    check_plain(weights)
    return weights


def averaged_weights(content: Mapping) -> dict[str, Tensor]:
    """The averaged weights of a training with ``MODEL.EMA``.

    Raises:
        ValueError: if "ema" of the checkpoint is not as a training writes it.
    """
    ema = content["ema"]
    if not isinstance(ema, Mapping) or not isinstance(ema.get("weights"), Mapping):
        raise ValueError("'ema' of the checkpoint is invalid: expected a dict with 'weights'")
    check_plain(ema["weights"])
    return ema["weights"]


def check_plain(weights: Mapping) -> None:
    """Raises unless all items are real-valued tensors with a string as name."""
    for name, x in weights.items():
        if not isinstance(name, str):
            raise ValueError(
                f"one of the weights has the name {name!r}, expected a string. Is it a checkpoint?"
            )
        if not isinstance(x, Tensor):
            raise ValueError(f"{name!r} in the weights is a {type(x).__name__}, expected a tensor")
        if x.is_complex():
            raise ValueError(
                f"the weights of {name!r} are {x.dtype}, expected floating point. Save them as "
                "float32."
            )


def model_shapes(cfg: CfgNode) -> dict[str, torch.Size]:
    """Names and shapes of the weights of a config's model."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    return {name: x.shape for name, x in model.state_dict().items()}


def convert_to_ours(path: str, cfg: CfgNode, drop: Optional[str] = None) -> Converted:
    """Converts a checkpoint of MMDetection, of the paper's authors or of CornerNet's.

    Of a checkpoint with this project's names the weights and "about" are kept.

    Args:
        path: the file. Only tensors are read; no code in it is executed.
        cfg: describes the network; the number of classes is taken from the file.
        drop: a regular expression; tensors whose name in the file matches are left out.

    Raises:
        ValueError: if the file is no such checkpoint, or tensors are missing, of a wrong shape or
            unknown; all are listed.
    """
    content = _content(path, cfg)
    found = weights_in(content)
    origin, prefix = origin_of(found)
    if origin == "centripetalnet":
        ours = _read_ours(path, content, found, cfg, drop)
        if "about" in content and ours.convention is None:
            raise ValueError(
                f"{path}: 'about' is invalid, expected 'input_format', 'pixel_mean' and "
                "'pixel_std' as convert_checkpoint.py writes them. Convert the original file again."
            )
        return ours
    if origin is None:
        raise ValueError(
            f"{path} holds no detector of this project, MMDetection or the papers' authors: "
            f"none of its {len(found)} tensors is an hourglass's or a corner's (first names: "
            f"{', '.join(list(found)[:3])})"
        )
    left_out = [x for x in found if _EMA_COPY.match(x) or (drop and re.search(drop, x))]
    weights: dict[str, Tensor] = {}
    for name in found:
        if name in left_out:
            continue
        full_name = _full_name(name, prefix, origin)
        if full_name in weights:
            raise ValueError(f"{path} holds the weights of {full_name} twice, once as {name}")
        weights[full_name] = found[name]

    cfg = cfg.clone()
    cfg.defrost()
    shapes = model_shapes(cfg)
    names = translation(shapes, _NAMES[origin])
    for theirs, ours in names.items():
        if _HEATMAP_BIAS.match(ours) and theirs in weights:
            cfg.MODEL.CENTRIPETALNET.NUM_CLASSES = _num_classes(theirs, weights[theirs], path)
    shapes = model_shapes(cfg)

    # Frozen norms have no counter.
    left_out += [x for x in weights if x.endswith(COUNTER) and x not in names]
    weights = {x: weight for x, weight in weights.items() if x not in left_out}
    added = [x for x in names if x.endswith(COUNTER) and x not in weights]
    weights.update({x: torch.zeros((), dtype=torch.int64) for x in added})
    check_fit(
        {names.get(x, x): tuple(weights[x].shape) for x in weights},
        {ours: tuple(shape) for ours, shape in shapes.items()},
        {ours: theirs for theirs, ours in names.items()},
        path,
    )
    meta = content.get("meta") if isinstance(content.get("meta"), Mapping) else {}
    convention = _convention_of(meta)
    return Converted(
        weights={ours: weights[theirs] for theirs, ours in names.items()},
        origin=origin,
        has_our_names=False,
        classes=_classes_of(meta),
        num_classes=cfg.MODEL.CENTRIPETALNET.NUM_CLASSES,
        convention=convention or DEFAULT_INPUT[origin],
        convention_is_from_file=convention is not None,
        left_out=left_out,
        added=[names[x] for x in added],
    )


def convert_to_theirs(
    path: str, cfg: CfgNode, target: str, drop: Optional[str] = None
) -> tuple[dict, Converted]:
    """Converts a checkpoint of this project to another implementation's names.

    Args:
        path: the file.
        cfg: describes the network; the number of classes is taken from the file.
        target: "mmdet", "paper" or "cornernet".
        drop: a regular expression; tensors whose name in the file matches are left out.

    Returns:
        The dict to save, and the file's content.

    Raises:
        ValueError: if the file's weights do not match the network exactly.
    """
    content = _content(path, cfg)
    found = weights_in(content)
    if origin_of(found)[0] != "centripetalnet":
        raise ValueError(f"{path} does not have this project's names, which --to needs")
    if cfg.MODEL.BACKBONE.NAME != "build_hourglass_backbone":
        raise ValueError(
            f"--to {target}: {target} has names for the hourglass only, and MODEL.BACKBONE.NAME of "
            f"the config is {cfg.MODEL.BACKBONE.NAME}"
        )
    ours = _read_ours(path, content, found, cfg, drop)
    names = translation(ours.weights, _NAMES[target])
    weights = {theirs: ours.weights[name] for theirs, name in names.items()}
    if target == "cornernet":
        # Its code loads a file of weights alone.
        return weights, ours
    meta = {"CLASSES": ours.classes} if ours.classes else {}
    return {"meta": meta, "state_dict": weights}, ours


def _content(path: str, cfg: CfgNode) -> dict:
    """Content of the file, with the averaged weights if it has some and ``MODEL.EMA.ENABLED``."""
    content = load_tensors(path)
    if cfg.MODEL.EMA.ENABLED and "ema" in content:
        content = {**content, "model": averaged_weights(content)}
    return content


def _read_ours(
    path: str, content: Mapping, found: dict[str, Tensor], cfg: CfgNode, drop: Optional[str]
) -> Converted:
    left_out = [x for x in found if drop and re.search(drop, x)]
    found = {x: weight for x, weight in found.items() if x not in left_out}
    cfg = cfg.clone()
    cfg.defrost()
    for name, weight in found.items():
        if _HEATMAP_BIAS.match(name):
            cfg.MODEL.CENTRIPETALNET.NUM_CLASSES = _num_classes(name, weight, path)
    shapes = model_shapes(cfg)
    check_fit(
        {name: tuple(x.shape) for name, x in found.items()},
        {name: tuple(x) for name, x in shapes.items()},
        {},
        path,
    )
    about = content.get("about") if isinstance(content.get("about"), Mapping) else {}
    origin = about.get("origin")
    return Converted(
        weights={name: found[name] for name in shapes},
        origin=origin if isinstance(origin, str) and origin in _NAMES else "centripetalnet",
        has_our_names=True,
        classes=_classes_of(about),
        num_classes=cfg.MODEL.CENTRIPETALNET.NUM_CLASSES,
        convention=_convention_in(about),
        convention_is_from_file=True,
        left_out=left_out,
        added=[],
    )


def check_fit(found: dict, wanted: dict, their_names: dict[str, str], path: str) -> None:
    """Raises if names or shapes differ; lists all that do."""

    def listing(title: str, names: list[str]) -> str:
        lines = [f"\n  {x}" for x in sorted(names)]
        return f"\n{title} ({len(lines)}):{''.join(lines)}" if lines else ""

    def label(ours: str) -> str:
        return their_names.get(ours, ours)

    problems = (
        listing("missing from the file", [label(x) for x in wanted if x not in found])
        + listing(
            "of a wrong shape",
            [
                f"{label(x)}: {found[x]} in the file, {wanted[x]} in the network"
                for x in wanted
                if x in found and found[x] != wanted[x]
            ],
        )
        + listing("not in the network", [x for x in found if x not in wanted])
    )
    if problems:
        raise ValueError(f"{path} does not fit the network that the config describes:{problems}")


def _num_classes(name: str, bias: Tensor, path: str) -> int:
    if bias.dim() != 1 or not len(bias):
        raise ValueError(
            f"{path} does not fit: {name} has the shape {tuple(bias.shape)}, expected (classes,)"
        )
    return len(bias)


def _full_name(name: str, prefix: str, origin: str) -> str:
    """The name without the prefix, and with the parent that the paper's parts may lack."""
    name = name[len(prefix) :] if name.startswith(prefix) else name
    if origin == "cornernet":
        return f"module.{name}"
    if name.startswith(("backbone.", "bbox_head.")):
        return name
    return ("bbox_head." if re.match(r"(mid_)?(tl|br)_", name) else "backbone.") + name


def _classes_of(meta: Mapping) -> Optional[list[str]]:
    dataset = meta.get("dataset_meta") if isinstance(meta.get("dataset_meta"), Mapping) else {}
    for place in (meta, dataset):
        for key in ("CLASSES", "classes"):
            names = place.get(key)
            if not isinstance(names, (list, tuple)) or len(names) > _MAX_CLASSES:
                continue
            if all(isinstance(x, (str, int)) and len(str(x)) <= _MAX_CLASS_NAME for x in names):
                return [str(x) for x in names]
    return None


def _convention_in(about: Mapping) -> Optional[InputConvention]:
    """Channel order, mean and std from this project's "about"."""
    order, *triples = (about.get(key) for key in ("input_format", "pixel_mean", "pixel_std"))
    for triple in triples:
        if not isinstance(triple, (list, tuple)) or len(triple) != 3:
            return None
        if not all(isinstance(x, (int, float)) for x in triple):
            return None
    if not isinstance(order, str) or order not in ("RGB", "BGR"):
        return None
    try:
        return InputConvention(order, *(tuple(float(x) for x in triple) for triple in triples))
    except OverflowError:
        return None


def _convention_of(meta: Mapping) -> Optional[InputConvention]:
    """Mean, std and channel order from the text of MMDetection's config."""
    text = meta.get("config") or meta.get("cfg")
    if not isinstance(text, str):
        return None
    number = r"\s*\d+(?:\.\d*)?\s*"
    three = rf"\[({number},{number},{number}),?\s*\]"
    mean, std = (re.search(rf"\b{key}\s*=\s*{three}", text) for key in ("mean", "std"))
    order = re.search(r"\b(?:bgr_to_rgb|to_rgb)\s*=\s*(True|False)", text)
    if not (mean and std and order):
        return None
    mean, std = (tuple(float(x) for x in match.group(1).split(",")) for match in (mean, std))
    return InputConvention("RGB" if order.group(1) == "True" else "BGR", mean, std)
