"""Silhouettes: a small detection dataset for the CPU, made of real outlines and photographs.

Outlines of real animals (`animal-mnist`, 28 x 28 pixels each) are painted at random sizes and in
random colours onto crops of the photographs that scikit-learn and matplotlib bring along. Outlines
and photograph regions of the training and the validation images are disjoint, so the validation AP
says whether a detector has learnt the classes and not the pictures.

Words of this module: an outline is one source silhouette, an object is an outline painted into an
image. H x W is an image in pixels, h x w a patch of one. Colours are BGR, 0..255, as cv2 has them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import importlib.util
import io
import json
import logging
import math
import os
import pickle
import tempfile
from typing import Any, Callable, Sequence

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools import mask as mask_util

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")

# Order of the labels in the source, which gives numbers only.
SOURCE_CLASSES = (
    "bear",
    "bird",
    "cat",
    "cow",
    "dog",
    "elephant",
    "giraffe",
    "horse",
    "sheep",
    "zebra",
)
# These come with their stripes as holes, so their outline has to be recovered first.
_STRIPED_CLASSES = ("zebra",)
# Larger holes are seen through an animal's legs; smaller ones are spots and eyes.
_MAX_FILLED_HOLE = 8

_OUTLINE_PACKAGE = "animal_mnist"
_OUTLINE_INSTALL = "pip install --no-deps animal-mnist==0.4"
_OUTLINE_IMAGES = ("data", "Animal_MNIST", "animal_data_version_3.gz")
_OUTLINE_LABELS = ("data", "Animal_MNIST", "animal_label_version_3.gz")
_OUTLINE_SIDE = 28

# (package, how to install it, file inside the package)
_PHOTOGRAPHS = (
    ("sklearn", "pip install scikit-learn", ("datasets", "images", "china.jpg")),
    ("sklearn", "pip install scikit-learn", ("datasets", "images", "flower.jpg")),
    (
        "matplotlib",
        "pip install matplotlib",
        ("mpl-data", "sample_data", "grace_hopper.jpg"),
    ),
)

# Raised whenever the same spec gives other files, so that an older dataset is not taken for it.
_BUILDER_VERSION = 1
_SPEC_FILE = "spec.json"

# No source file is larger when unpacked; what is larger was not made by the package.
_MAX_UNPACKED_BYTES = 64 * 2**20
_SIMILARITY_SIDE = 24


@dataclasses.dataclass(frozen=True)
class SilhouettesSpec:
    """Everything that decides what the dataset looks like. Pairs are (lowest, highest), inclusive.

    Attributes:
        classes: the category names in the order of their ids; names of `SOURCE_CLASSES`. The five
            defaults are those that a nearest-neighbour classifier confuses least.
        num_train, num_val: images of the two splits.
        image_height, image_width: range of the images' sides, in pixels.
        objects_per_image: range of the number of objects tried; one for which no place is found is
            left out.
        object_side: range of the longer side of an object's whole (not only visible) box, in
            pixels, reached to within a pixel or two.
        aspect: range of the factor by which height / width of an outline is changed.
        overlap_probability: how often an object may hide a part of earlier ones at all.
        max_hidden: the largest part of an object's area that later objects may hide.
        placement_tries: positions tried before an object is left out.
        min_contrast: distance in RGB space, 0..442, that the object's colour keeps from four fifths
            of the pixels around it, where any of `color_tries` colours does.
        color_tries: random colours tried for one object.
        shading: largest relative change of an object's brightness from its middle to its edge.
        texture: largest relative change of an object's brightness by its low-frequency texture.
        crop_scale: range of pixels of the photograph per pixel of the image.
        train_photo_fraction: part of the photographs' width, from the left, for training; the rest
            is for validation.
        val_outline_fraction: part of the outlines of a class kept for validation.
        duplicate_iou: outlines at least this similar (IoU of the size-normalised masks, or with one
            of them mirrored) are the same animal and stay in one split.
        min_outline_side: shortest longer side of a source outline used, in pixels of the source.
        min_outline_share: smallest part of a source outline's area in its largest connected piece,
            which alone is used.
        max_outline_faded: largest area, relative to the outline's, of grey parts of the source that
            are no part of the outline. What has more is a portrait of which only shreds are left.
        seed: of all random numbers.
    """

    classes: tuple[str, ...] = ("horse", "cow", "elephant", "bear", "bird")
    num_train: int = 4000
    num_val: int = 300
    image_height: tuple[int, int] = (96, 127)
    image_width: tuple[int, int] = (96, 127)
    objects_per_image: tuple[int, int] = (1, 4)
    object_side: tuple[int, int] = (36, 88)
    aspect: tuple[float, float] = (0.8, 1.25)
    overlap_probability: float = 0.3
    max_hidden: float = 0.25
    placement_tries: int = 20
    min_contrast: float = 90.0
    color_tries: int = 16
    shading: float = 0.2
    texture: float = 0.15
    crop_scale: tuple[float, float] = (0.75, 1.75)
    train_photo_fraction: float = 0.7
    val_outline_fraction: float = 0.2
    duplicate_iou: float = 0.95
    min_outline_side: int = 16
    min_outline_share: float = 0.9
    max_outline_faded: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.classes if name not in SOURCE_CLASSES]
        if unknown or not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"classes is {self.classes!r}, but must be different names of {SOURCE_CLASSES}"
            )
        for name, lowest in (
            ("image_height", 1),
            ("image_width", 1),
            ("objects_per_image", 1),
            ("object_side", 1),
            ("aspect", 1e-3),
            ("crop_scale", 1e-3),
        ):
            pair = getattr(self, name)
            if len(pair) != 2 or not lowest <= pair[0] <= pair[1]:
                raise ValueError(
                    f"{name} is {pair!r}, but must be a pair (lowest, highest) from {lowest} on"
                )
        # Two pixels: a drawn outline may come out that much longer than asked for.
        smallest_side = min(self.image_height[0], self.image_width[0])
        if self.object_side[1] + 2 > smallest_side:
            raise ValueError(
                f"object_side is {self.object_side!r}, but must end at least 2 pixels below the "
                f"shortest image side, {smallest_side}"
            )
        for name in ("train_photo_fraction", "val_outline_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be above 0 and below 1"
                )
        for name in ("num_train", "num_val", "placement_tries", "color_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be at least 1")


@dataclasses.dataclass(frozen=True)
class _Outline:
    """One source silhouette: its row in the source, and its opacity (h, w) in 0..1, tightly cut."""

    source_index: int
    opacity: np.ndarray


def build_silhouettes(root: str, spec: SilhouettesSpec = SilhouettesSpec()) -> None:
    """Writes the dataset, or does nothing where it is complete already.

    The result has `{train,val}/*.png`, `annotations/{train,val}.json` in COCO format (boxes tight
    around the visible mask, masks as RLE, each with the `outline` it was painted from), and
    `spec.json`. It appears all at once: it is made in a folder beside `root` and then renamed, so
    processes that build at the same time get the one that was ready first.

    Args:
        root: the folder to make; its parents are made too.
        spec: what to make; the same spec gives the same bytes with the same library versions.

    Raises:
        FileExistsError: `root` holds something else, or a dataset of another spec.
        ModuleNotFoundError: a package that the outlines or photographs come from is missing.
    """
    root = os.path.realpath(os.path.expanduser(root))
    if _is_built(root, spec):
        return
    logger.info("Building the silhouettes dataset in %s", root)
    parent, name = os.path.split(root)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
        # One level down, since the temporary folder itself is private to this user.
        staged = os.path.join(scratch, name)
        os.mkdir(staged)
        _write_dataset(staged, spec)
        try:
            os.replace(staged, root)
        except OSError:
            if not _is_built(root, spec):
                raise
            logger.info("Another process has built %s meanwhile", root)


def register_silhouettes(
    root: str | None = None, spec: SilhouettesSpec = SilhouettesSpec()
) -> None:
    """Registers `silhouettes_train` and `silhouettes_val`; the last call's root and spec hold.

    The first use through `DatasetCatalog.get` builds the dataset where it is missing. An evaluator
    reads the annotation file, so it has to be made after that, as Detectron2's trainers do.

    Args:
        root: the dataset's folder; by default `silhouettes` in `$DETECTRON2_DATASETS`, or in
            `datasets` where that is not set.
        spec: what to build.
    """
    if root is None:
        root = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "silhouettes")
    root = os.path.expanduser(root)
    for split in SPLITS:
        name = f"silhouettes_{split}"
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        json_file = os.path.join(root, "annotations", f"{split}.json")
        image_root = os.path.join(root, split)
        DatasetCatalog.register(name, functools.partial(_load_split, root, spec, split))
        MetadataCatalog.get(name).set(
            thing_classes=list(spec.classes),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(spec.classes))},
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
            # For whoever reads the annotation file before the dataset is first loaded.
            prepare=functools.partial(build_silhouettes, root, spec),
        )


def _load_split(root: str, spec: SilhouettesSpec, split: str) -> list[dict[str, Any]]:
    build_silhouettes(root, spec)
    return load_coco_json(
        os.path.join(root, "annotations", f"{split}.json"),
        os.path.join(root, split),
        f"silhouettes_{split}",
    )


def _is_built(root: str, spec: SilhouettesSpec) -> bool:
    """Whether `root` holds this dataset; raises FileExistsError where it holds something else."""
    if not os.path.lexists(root) or (os.path.isdir(root) and not os.listdir(root)):
        return False
    try:
        with open(os.path.join(root, _SPEC_FILE), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        raise FileExistsError(
            f"{root} exists but is no silhouettes dataset ({_SPEC_FILE} is missing or unreadable); "
            "remove it or choose another root"
        ) from None
    wanted = _spec_record(spec)
    if found == wanted:
        return True
    keys = sorted(set(found) | set(wanted)) if isinstance(found, dict) else []
    differences = ", ".join(
        f"{key} is {found.get(key)!r} and not {wanted.get(key)!r}"
        for key in keys
        if found.get(key) != wanted.get(key)
    )
    raise FileExistsError(
        f"{root} holds a silhouettes dataset of another spec ({differences}); "
        "remove it or choose another root"
    )


def _spec_record(spec: SilhouettesSpec) -> dict[str, Any]:
    record = {"builder_version": _BUILDER_VERSION, **dataclasses.asdict(spec)}
    # Through JSON and back: tuples become lists, as they are when read from the file.
    return json.loads(json.dumps(record))


def _write_dataset(root: str, spec: SilhouettesSpec) -> None:
    outlines = _load_outlines(spec)
    photographs = [_read_photograph(*source) for source in _PHOTOGRAPHS]
    os.mkdir(os.path.join(root, "annotations"))
    for split_index, (split, num_images) in enumerate(zip(SPLITS, (spec.num_train, spec.num_val))):
        os.mkdir(os.path.join(root, split))
        regions = [_split_photograph(photo, split, spec) for photo in photographs]
        images, annotations = [], []
        for image_id in range(1, num_images + 1):
            # A generator per image: no image depends on how many others there are.
            rng = np.random.default_rng([spec.seed, split_index, image_id])
            image, objects = _compose_image(regions, outlines[split], spec, rng)
            file_name = f"{image_id:06d}.png"
            if not cv2.imwrite(os.path.join(root, split, file_name), image):
                raise OSError(f"could not write {os.path.join(root, split, file_name)}")
            images.append(
                {
                    "id": image_id,
                    "file_name": file_name,
                    "height": image.shape[0],
                    "width": image.shape[1],
                }
            )
            for painted in objects:
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **painted}
                )
        coco = {
            "info": {"description": f"silhouettes {split}"},
            "licenses": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(spec.classes)],
            "images": images,
            "annotations": annotations,
        }
        with open(
            os.path.join(root, "annotations", f"{split}.json"), "w", encoding="utf-8"
        ) as file:
            json.dump(coco, file)
    with open(os.path.join(root, _SPEC_FILE), "w", encoding="utf-8") as file:
        json.dump(_spec_record(spec), file, indent=2)


# ---- sources


def _package_file(package: str, install: str, parts: Sequence[str]) -> str:
    """The path of a file inside a package that is not imported for it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the silhouettes dataset needs {'/'.join(parts)} of the package {package!r}, which is "
            f"not installed: {install}",
            name=package,
        )
    path = os.path.join(next(iter(found.submodule_search_locations)), *parts)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"the package {package!r} is installed but has no {path}; reinstall it: {install}"
        )
    return path


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and refuses everything else, because a pickle can run any function."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        # numpy 2 renamed the private module; arrays of either are read by either.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and (
            name == "_reconstruct"
        ):
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(
            f"refused {module}.{name}: only numpy arrays are read from this file"
        )


def _read_pickled_array(path: str) -> np.ndarray:
    with gzip.open(path) as file:
        content = file.read(_MAX_UNPACKED_BYTES + 1)
    if len(content) > _MAX_UNPACKED_BYTES:
        raise ValueError(f"{path} unpacks to more than {_MAX_UNPACKED_BYTES} bytes")
    array = _ArrayUnpickler(io.BytesIO(content)).load()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold one array of integers, but holds {type(array)}")
    return array


def _load_outlines(spec: SilhouettesSpec) -> dict[str, list[list[_Outline]]]:
    """The usable outlines of each split, by class in the order of `spec.classes`."""
    images = _read_pickled_array(_package_file(_OUTLINE_PACKAGE, _OUTLINE_INSTALL, _OUTLINE_IMAGES))
    labels = _read_pickled_array(_package_file(_OUTLINE_PACKAGE, _OUTLINE_INSTALL, _OUTLINE_LABELS))
    if images.shape != (len(labels), _OUTLINE_SIDE, _OUTLINE_SIDE) or images.dtype != np.uint8:
        raise ValueError(
            f"{_OUTLINE_PACKAGE} has images {images.shape} of {images.dtype} for {labels.shape} "
            f"labels, but must have one {_OUTLINE_SIDE} x {_OUTLINE_SIDE} of uint8 for each; "
            f"{_OUTLINE_INSTALL}"
        )
    split_outlines: dict[str, list[list[_Outline]]] = {split: [] for split in SPLITS}
    for name in spec.classes:
        label = SOURCE_CLASSES.index(name)
        outlines = [
            outline
            for index in np.flatnonzero(labels == label)
            for outline in [_cut_outline(int(index), images[index], name, spec)]
            if outline is not None
        ]
        num_val = round(len(outlines) * spec.val_outline_fraction)
        groups = _duplicate_groups(outlines, spec.duplicate_iou)
        rng = np.random.default_rng([spec.seed, len(SPLITS), label])
        train: list[_Outline] = []
        val: list[_Outline] = []
        for group_index in rng.permutation(len(groups)):
            group = [outlines[i] for i in groups[group_index]]
            (val if len(val) + len(group) <= num_val else train).extend(group)
        if not train or not val:
            raise ValueError(
                f"{name} has {len(train)} outlines to train and {len(val)} to validate; both must "
                f"have some: loosen the outline bounds of {spec}"
            )
        split_outlines["train"].append(train)
        split_outlines["val"].append(val)
    return split_outlines


def _cut_outline(
    index: int, image: np.ndarray, class_name: str, spec: SilhouettesSpec
) -> _Outline | None:
    """The largest connected piece of a source image; None where it does not meet the spec."""
    if class_name in _STRIPED_CLASSES:
        image = _fill_stripes(image)
    mask = (image >= 128).astype(np.uint8)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    x, y, width, height, area = (int(value) for value in stats[largest])
    if max(width, height) < spec.min_outline_side or area < spec.min_outline_share * mask.sum():
        return None
    piece = (pieces == largest).astype(np.uint8)
    holes = _small_holes(piece)
    square = np.ones((3, 3), np.uint8)
    faint = cv2.morphologyEx((image >= 64).astype(np.uint8), cv2.MORPH_OPEN, square) > 0
    solid = (piece > 0) | holes
    if (faint & ~solid).sum() > spec.max_outline_faded * solid.sum():
        return None
    # The soft edge lies outside the thresholded piece: one pixel around it belongs to it.
    near = cv2.dilate(piece, square) > 0
    opacity = np.where(holes, 255, np.where(near, image, 0))
    return _Outline(index, opacity[y : y + height, x : x + width].astype(np.float32) / 255)


def _fill_stripes(image: np.ndarray) -> np.ndarray:
    """A solid (h, w) uint8 silhouette of a grey animal on black."""
    closed = cv2.morphologyEx(
        (image >= 48).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )
    filled = np.where((closed > 0) | _small_holes(closed), 255, 0).astype(np.uint8)
    # As soft an edge as the other sources have.
    return cv2.GaussianBlur(filled, (3, 3), 0)


def _small_holes(mask: np.ndarray) -> np.ndarray:
    """Which cells (h, w) bool are in holes of the uint8 mask that no animal has."""
    # The frame joins all that is outside, so that no part of it is taken for a hole.
    outside = np.pad(1 - mask, 1, constant_values=1)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] <= _MAX_FILLED_HOLE)
    return np.isin(pieces, small[small > 0])[1:-1, 1:-1]


def _duplicate_groups(outlines: Sequence[_Outline], min_iou: float) -> list[list[int]]:
    """Indices of outlines that are linked by a similarity of at least `min_iou`, in fixed order."""
    masks = np.zeros((len(outlines), _SIMILARITY_SIDE, _SIMILARITY_SIDE), np.float32)
    for mask, outline in zip(masks, outlines):
        scale = _SIMILARITY_SIDE / max(outline.opacity.shape)
        height, width = (max(1, round(side * scale)) for side in outline.opacity.shape)
        top, left = (_SIMILARITY_SIDE - height) // 2, (_SIMILARITY_SIDE - width) // 2
        resized = cv2.resize(outline.opacity, (width, height), interpolation=cv2.INTER_LINEAR)
        mask[top : top + height, left : left + width] = resized >= 0.5
    flat = masks.reshape(len(masks), -1)
    mirrored = masks[:, :, ::-1].reshape(len(masks), -1)
    # Counts of pixels are whole numbers, so no summation order can change a comparison below.
    areas = flat.sum(axis=1)
    shared = np.maximum(flat @ flat.T, flat @ mirrored.T)
    similar = shared >= min_iou * (areas[:, None] + areas[None, :] - shared)
    similar |= similar.T
    groups: list[list[int]] = []
    grouped = np.zeros(len(outlines), bool)
    for first in range(len(outlines)):
        if grouped[first]:
            continue
        members = np.zeros(len(outlines), bool)
        members[first] = True
        while True:
            reached = members | similar[members].any(axis=0)
            if (reached == members).all():
                break
            members = reached
        grouped |= members
        groups.append(np.flatnonzero(members).tolist())
    return groups


def _read_photograph(package: str, install: str, parts: Sequence[str]) -> np.ndarray:
    path = _package_file(package, install, parts)
    photograph = cv2.imread(path, cv2.IMREAD_COLOR)
    if photograph is None:
        raise OSError(f"{path} could not be read as an image; reinstall {package!r}: {install}")
    return photograph


def _split_photograph(photograph: np.ndarray, split: str, spec: SilhouettesSpec) -> np.ndarray:
    border = round(photograph.shape[1] * spec.train_photo_fraction)
    return photograph[:, :border] if split == "train" else photograph[:, border:]


# ---- painting


def _compose_image(
    regions: Sequence[np.ndarray],
    outlines: Sequence[Sequence[_Outline]],
    spec: SilhouettesSpec,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Paints one image.

    Returns:
        The image (H, W, 3) uint8, and of each object the keys of a COCO annotation that say what
        and where it is, in the order of painting.
    """
    height = int(rng.integers(spec.image_height[0], spec.image_height[1] + 1))
    width = int(rng.integers(spec.image_width[0], spec.image_width[1] + 1))
    background = _draw_background(regions, height, width, spec, rng)
    # A pixel of border takes the soft edge of objects that touch the side of the image.
    canvas = cv2.copyMakeBorder(background, 1, 1, 1, 1, cv2.BORDER_REPLICATE).astype(np.float32)
    visible: list[np.ndarray] = []
    whole_areas: list[int] = []
    labels: list[tuple[int, int]] = []
    for _ in range(rng.integers(spec.objects_per_image[0], spec.objects_per_image[1] + 1)):
        class_index = int(rng.integers(len(outlines)))
        outline = outlines[class_index][int(rng.integers(len(outlines[class_index])))]
        opacity = _draw_outline(outline.opacity, spec, rng)
        mask = opacity >= 0.5
        max_hidden = spec.max_hidden if rng.random() < spec.overlap_probability else 0.0
        window = _find_place(mask, visible, whole_areas, max_hidden, canvas.shape[:2], spec, rng)
        if window is None:
            continue
        paint = _draw_paint(canvas[window], mask.shape, spec, rng)
        canvas[window] += opacity[:, :, None] * (paint - canvas[window])
        for earlier in visible:
            earlier[window] &= ~mask
        whole = np.zeros(canvas.shape[:2], bool)
        whole[window] = mask
        visible.append(whole)
        whole_areas.append(int(mask.sum()))
        labels.append((class_index + 1, outline.source_index))
    image = np.clip(np.rint(canvas[1:-1, 1:-1]), 0, 255).astype(np.uint8)
    objects = [
        {"category_id": category_id, "outline": source_index, **_annotate(mask[1:-1, 1:-1])}
        for mask, (category_id, source_index) in zip(visible, labels)
    ]
    return image, objects


def _draw_background(
    regions: Sequence[np.ndarray],
    height: int,
    width: int,
    spec: SilhouettesSpec,
    rng: np.random.Generator,
) -> np.ndarray:
    """A crop of a photograph, mirrored or not, as an image (H, W, 3) uint8."""
    region = regions[int(rng.integers(len(regions)))]
    scale = min(rng.uniform(*spec.crop_scale), region.shape[0] / height, region.shape[1] / width)
    crop_height, crop_width = int(height * scale), int(width * scale)
    top = int(rng.integers(region.shape[0] - crop_height + 1))
    left = int(rng.integers(region.shape[1] - crop_width + 1))
    crop = region[top : top + crop_height, left : left + crop_width]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=method)


def _draw_outline(
    opacity: np.ndarray, spec: SilhouettesSpec, rng: np.random.Generator
) -> np.ndarray:
    """Resizes an outline at random, and mirrors it or not.

    Returns:
        Opacity (h, w) in 0..1 with an edge about one pixel wide; from 0.5 on is the object's mask,
        around which there is one pixel of border.
    """
    if rng.random() < 0.5:
        opacity = opacity[:, ::-1]
    stretch = math.sqrt(rng.uniform(*spec.aspect))
    height, width = opacity.shape[0] * stretch, opacity.shape[1] / stretch
    scale = rng.uniform(*spec.object_side) / max(height, width)
    # The border keeps the interpolation from ending the outline abruptly.
    padded = np.pad(opacity, 2)
    size = (
        max(1, round(padded.shape[1] / stretch * scale)),
        max(1, round(padded.shape[0] * stretch * scale)),
    )
    if scale < 1:
        smooth = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
    else:
        smooth = cv2.resize(padded, size, interpolation=cv2.INTER_CUBIC)
        # Rounds off the steps of the source's pixels, which would give every object away.
        smooth = cv2.GaussianBlur(smooth, (0, 0), sigmaX=0.4 * scale)
    # A soft edge of one source pixel has grown `scale` pixels wide; this makes it one again.
    sharp = np.clip(0.5 + (smooth - 0.5) * max(1.0, scale), 0, 1)
    top, left, bottom, right = _tight_box(sharp >= 0.5)
    return np.pad(sharp, 1)[top : bottom + 2, left : right + 2]


def _find_place(
    mask: np.ndarray,
    visible: Sequence[np.ndarray],
    whole_areas: Sequence[int],
    max_hidden: float,
    canvas_shape: tuple[int, int],
    spec: SilhouettesSpec,
    rng: np.random.Generator,
) -> tuple[slice, slice] | None:
    """A window of the canvas where `mask` leaves enough of every earlier object, or None."""
    height, width = mask.shape
    # In pixels: how much more of each may be hidden.
    allowances = [
        max(0, int(earlier.sum()) - math.ceil((1 - max_hidden) * area))
        for earlier, area in zip(visible, whole_areas)
    ]
    for _ in range(spec.placement_tries):
        top = int(rng.integers(canvas_shape[0] - height + 1))
        left = int(rng.integers(canvas_shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        if all(
            np.count_nonzero(earlier[window] & mask) <= allowance
            for earlier, allowance in zip(visible, allowances)
        ):
            return window
    return None


def _draw_paint(
    surroundings: np.ndarray,
    shape: tuple[int, int],
    spec: SilhouettesSpec,
    rng: np.random.Generator,
) -> np.ndarray:
    """A shaded and textured colour (h, w, 3) that stands out from `surroundings` (h, w, 3)."""
    height, width = shape
    step = max(1, int(math.sqrt(height * width / 400)))
    pixels = surroundings[::step, ::step].reshape(1, -1, 3)
    hsv = rng.uniform((0, 0, 0.08), (360, 0.8, 0.95), size=(spec.color_tries, 3))
    colors = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2BGR)[0] * 255
    distances = np.sqrt(((colors[:, None] - pixels) ** 2).sum(axis=2))
    nearest_fifth = distances.shape[1] // 5
    contrasts = np.partition(distances, nearest_fifth, axis=1)[:, nearest_fifth]
    enough = np.flatnonzero(contrasts >= spec.min_contrast)
    color = colors[enough[0] if len(enough) else int(np.argmax(contrasts))]

    angle = rng.uniform(0, 2 * math.pi)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope = (math.sin(angle) * rows + math.cos(angle) * columns) / math.sqrt(2)
    patches = rng.uniform(-1, 1, size=(6, 6)).astype(np.float32)
    patches = np.clip(cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC), -1, 1)
    shading, texture = rng.uniform(0, spec.shading), rng.uniform(0, spec.texture)
    brightness = 1 + shading * slope + texture * patches
    return np.clip(color * brightness[:, :, None], 0, 255).astype(np.float32)


def _annotate(mask: np.ndarray) -> dict[str, Any]:
    """The keys of a COCO annotation that follow from the visible mask (H, W) bool."""
    top, left, bottom, right = _tight_box(mask)
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
    }


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the True cells, the last two exclusive; in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Builds the silhouettes dataset.")
    parser.add_argument(
        "--root",
        default=os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "silhouettes"),
        help="folder to make (default: %(default)s)",
    )
    root = parser.parse_args(arguments).root
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_silhouettes(root)
    print(f"The silhouettes dataset is in {root}")


if __name__ == "__main__":
    main()
