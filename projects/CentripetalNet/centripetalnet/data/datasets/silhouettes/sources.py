"""Reads outlines and photographs from installed packages.

The packages are neither imported nor trusted. The outlines are cleaned, and both are split into
training and validation.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import io
import os
import pickle
from collections.abc import Sequence
from typing import Any, Callable

import cv2
import numpy as np

from .spec import SOURCE_CLASSES, SPLITS, SilhouettesSpec

# Their stripes are holes in the source and have to be filled first.
_STRIPED_CLASSES = ("zebra",)
# Larger holes are gaps between legs; smaller ones are spots and eyes.
_MAX_FILLED_HOLE = 8

_OUTLINE_PACKAGE = "animal_mnist"
_OUTLINE_INSTALL = "pip install --no-deps --ignore-requires-python animal-mnist==0.4"
_OUTLINE_IMAGES = ("data", "Animal_MNIST", "animal_data_version_3.gz")
_OUTLINE_LABELS = ("data", "Animal_MNIST", "animal_label_version_3.gz")
_OUTLINE_SIDE = 28

# (package, how to install it, file inside the package)
PHOTOGRAPHS = (
    ("sklearn", "pip install scikit-learn", ("datasets", "images", "china.jpg")),
    ("sklearn", "pip install scikit-learn", ("datasets", "images", "flower.jpg")),
    (
        "matplotlib",
        "pip install matplotlib",
        ("mpl-data", "sample_data", "grace_hopper.jpg"),
    ),
)

# The packages' own files are smaller when unpacked.
_MAX_UNPACKED_BYTES = 64 * 2**20
_SIMILARITY_SIDE = 24


@dataclasses.dataclass(frozen=True)
class Outline:
    """One source silhouette: its row in the source, and its opacity (h, w) in 0..1, tightly cut."""

    source_index: int
    opacity: np.ndarray


def _package_file(package: str, install: str, parts: Sequence[str]) -> str:
    """The path of a file inside a package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the silhouettes dataset needs {'/'.join(parts)} of the package {package!r}, which is "
            f"not installed. Install it: {install}",
            name=package,
        )
    path = os.path.join(next(iter(found.submodule_search_locations)), *parts)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"the package {package!r} is installed but has no {path}. Reinstall it: {install}"
        )
    return path


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles only numpy arrays, because a pickle can run any function."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        # numpy 2 renamed the private module; each version reads arrays of both.
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
        raise ValueError(f"{path} holds {type(array)}, expected one array of integers")
    return array


def load_outlines(spec: SilhouettesSpec) -> dict[str, list[list[Outline]]]:
    """The usable outlines of each split, by class in the order of `spec.classes`."""
    images = _read_pickled_array(_package_file(_OUTLINE_PACKAGE, _OUTLINE_INSTALL, _OUTLINE_IMAGES))
    labels = _read_pickled_array(_package_file(_OUTLINE_PACKAGE, _OUTLINE_INSTALL, _OUTLINE_LABELS))
    if images.shape != (len(labels), _OUTLINE_SIDE, _OUTLINE_SIDE) or images.dtype != np.uint8:
        raise ValueError(
            f"{_OUTLINE_PACKAGE} has images {images.shape} {images.dtype}, labels {labels.shape}, "
            f"expected one image of {_OUTLINE_SIDE} x {_OUTLINE_SIDE} uint8 per label. Reinstall "
            f"it: {_OUTLINE_INSTALL}"
        )
    split_outlines: dict[str, list[list[Outline]]] = {split: [] for split in SPLITS}
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
        train: list[Outline] = []
        val: list[Outline] = []
        for group_index in rng.permutation(len(groups)):
            group = [outlines[i] for i in groups[group_index]]
            (val if len(val) + len(group) <= num_val else train).extend(group)
        if not train or not val:
            raise ValueError(
                f"{name} has {len(train)} outlines for training and {len(val)} for validation, "
                f"expected at least one each. Loosen the outline bounds of {spec}."
            )
        split_outlines["train"].append(train)
        split_outlines["val"].append(val)
    return split_outlines


def _cut_outline(
    index: int, image: np.ndarray, class_name: str, spec: SilhouettesSpec
) -> Outline | None:
    """The largest connected piece of a source image, or None if it violates the spec."""
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
    # One more pixel, since the soft edge is outside the thresholded piece.
    near = cv2.dilate(piece, square) > 0
    opacity = np.where(holes, 255, np.where(near, image, 0))
    return Outline(index, opacity[y : y + height, x : x + width].astype(np.float32) / 255)


def _fill_stripes(image: np.ndarray) -> np.ndarray:
    """A solid (h, w) uint8 silhouette of a grey animal on black."""
    closed = cv2.morphologyEx(
        (image >= 48).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )
    filled = np.where((closed > 0) | _small_holes(closed), 255, 0).astype(np.uint8)
    # The other sources have an edge this soft.
    return cv2.GaussianBlur(filled, (3, 3), 0)


def _small_holes(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool, the pixels in small holes of the uint8 mask."""
    # The frame connects all of the outside, so that no part of it counts as a hole.
    outside = np.pad(1 - mask, 1, constant_values=1)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] <= _MAX_FILLED_HOLE)
    return np.isin(pieces, small[small > 0])[1:-1, 1:-1]


def _duplicate_groups(outlines: Sequence[Outline], min_iou: float) -> list[list[int]]:
    """Groups of outlines linked by an IoU of at least `min_iou`, as indices in fixed order."""
    masks = np.zeros((len(outlines), _SIMILARITY_SIDE, _SIMILARITY_SIDE), np.float32)
    for mask, outline in zip(masks, outlines):
        scale = _SIMILARITY_SIDE / max(outline.opacity.shape)
        height, width = (max(1, round(side * scale)) for side in outline.opacity.shape)
        top, left = (_SIMILARITY_SIDE - height) // 2, (_SIMILARITY_SIDE - width) // 2
        resized = cv2.resize(outline.opacity, (width, height), interpolation=cv2.INTER_LINEAR)
        mask[top : top + height, left : left + width] = resized >= 0.5
    flat = masks.reshape(len(masks), -1)
    mirrored = masks[:, :, ::-1].reshape(len(masks), -1)
    # Pixel counts are integers, so the summation order cannot change the comparison below.
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


def read_photograph(package: str, install: str, parts: Sequence[str]) -> np.ndarray:
    """A photograph (H, W, 3) uint8, given as one entry of `PHOTOGRAPHS`."""
    path = _package_file(package, install, parts)
    photograph = cv2.imread(path, cv2.IMREAD_COLOR)
    if photograph is None:
        raise OSError(f"{path} could not be read as an image; reinstall {package!r}: {install}")
    return photograph


def split_photograph(photograph: np.ndarray, split: str, spec: SilhouettesSpec) -> np.ndarray:
    """The columns of a photograph that belong to the split."""
    border = round(photograph.shape[1] * spec.train_photo_fraction)
    return photograph[:, :border] if split == "train" else photograph[:, border:]
