"""Reads outlines and photographs from installed packages, and splits them.

The packages are neither imported nor trusted.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import os
import pickle
from collections.abc import Sequence
from typing import Any, Callable

import cv2
import numpy as np

SPLITS = ("train", "val")
# Names in the order of the category ids, and the source's integer labels. Of the source's ten
# classes, these are the five that a nearest-neighbour classifier confuses least.
CLASSES = {"horse": 7, "cow": 3, "elephant": 5, "bear": 0, "bird": 1}
SEED = 0

_INSTALL = {
    "animal_mnist": "pip install --no-deps --ignore-requires-python animal-mnist==0.4",
    "sklearn": "pip install scikit-learn",
    "matplotlib": "pip install matplotlib",
}
_OUTLINES = ("animal_mnist", "data/Animal_MNIST/animal_data_version_3.gz")
_OUTLINE_LABELS = ("animal_mnist", "data/Animal_MNIST/animal_label_version_3.gz")
_PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)

# Fraction of the photographs' width, from the left, for training; the rest is for validation.
_TRAIN_PHOTO_FRACTION = 0.7
# Fraction of the outlines of a class for validation.
_VAL_OUTLINE_FRACTION = 0.2
# Outlines at least this similar count as the same animal and are put into the same split: IoU of
# the masks, scaled to this side, or with one of them mirrored.
_DUPLICATE_IOU = 0.95
_SIMILARITY_SIDE = 24
# Least longer side of an outline, in pixels of the source.
_MIN_SIDE = 16
# Least fraction of a silhouette's area in its largest connected piece, which alone is used.
_MIN_SHARE = 0.9
# Largest area of grey parts outside the outline, relative to the outline's area. Sources with more
# are incomplete portraits.
_MAX_FADED = 0.2
# In pixels. Larger holes are gaps between legs; smaller ones are spots and eyes.
_MAX_FILLED_HOLE = 8


@dataclasses.dataclass(frozen=True)
class Outline:
    """One source silhouette: its row in the source, and its opacity (h, w) in 0..1, tightly cut."""

    source_index: int
    opacity: np.ndarray


def load_regions() -> dict[str, list[np.ndarray]]:
    """The regions of the photographs of each split, (H, W, 3) uint8."""
    split_regions: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for package, file in _PHOTOGRAPHS:
        photograph = cv2.imread(_package_file(package, file))
        if photograph is None:
            raise OSError(f"{file} of the package {package!r} cannot be read as an image")
        border = round(photograph.shape[1] * _TRAIN_PHOTO_FRACTION)
        split_regions["train"].append(photograph[:, :border])
        split_regions["val"].append(photograph[:, border:])
    return split_regions


def load_outlines() -> dict[str, list[list[Outline]]]:
    """The usable outlines of each split, by class in the order of `CLASSES`."""
    images, labels = _read_pickled(*_OUTLINES), _read_pickled(*_OUTLINE_LABELS)
    if np.shape(images) != (len(labels), 28, 28):
        raise ValueError(f"{_OUTLINES[1]} is no array of {len(labels)} images of 28 x 28 pixels")
    split_outlines: dict[str, list[list[Outline]]] = {split: [] for split in SPLITS}
    for label in CLASSES.values():
        cut = [_cut_outline(int(index), images[index]) for index in np.flatnonzero(labels == label)]
        outlines = [outline for outline in cut if outline is not None]
        num_val = round(len(outlines) * _VAL_OUTLINE_FRACTION)
        groups = duplicate_groups(outlines)
        rng = np.random.default_rng([SEED, len(SPLITS), label])
        train: list[Outline] = []
        val: list[Outline] = []
        for group_index in rng.permutation(len(groups)):
            group = [outlines[i] for i in groups[group_index]]
            (val if len(val) + len(group) <= num_val else train).extend(group)
        split_outlines["train"].append(train)
        split_outlines["val"].append(val)
    return split_outlines


def duplicate_groups(outlines: Sequence[Outline]) -> list[list[int]]:
    """Groups of outlines of the same animal, as indices in fixed order."""
    masks = np.zeros((len(outlines), _SIMILARITY_SIDE, _SIMILARITY_SIDE), np.float32)
    for mask, outline in zip(masks, outlines):
        scale = _SIMILARITY_SIDE / max(outline.opacity.shape)
        height, width = (round(side * scale) for side in outline.opacity.shape)
        top, left = (_SIMILARITY_SIDE - height) // 2, (_SIMILARITY_SIDE - width) // 2
        resized = cv2.resize(outline.opacity, (width, height), interpolation=cv2.INTER_LINEAR)
        mask[top : top + height, left : left + width] = resized >= 0.5
    flat = masks.reshape(len(masks), -1)
    mirrored = masks[:, :, ::-1].reshape(len(masks), -1)
    # Pixel counts are integers, so the summation order cannot change the comparison below.
    areas = flat.sum(axis=1)
    shared = np.maximum(flat @ flat.T, flat @ mirrored.T)
    similar = shared >= _DUPLICATE_IOU * (areas[:, None] + areas[None, :] - shared)
    # The group of an outline is the first outline that it is linked to, directly or by others.
    group_of = np.arange(len(outlines))
    while True:
        first_linked = np.where(similar, group_of, len(outlines)).min(axis=1)
        if (first_linked == group_of).all():
            return [np.flatnonzero(group_of == group).tolist() for group in np.unique(group_of)]
        group_of = first_linked


def _cut_outline(index: int, image: np.ndarray) -> Outline | None:
    """The largest connected piece of a source image (28, 28) uint8, or None if it is unusable."""
    mask = (image >= 128).astype(np.uint8)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    x, y, width, height, area = stats[largest]
    if max(width, height) < _MIN_SIDE or area < _MIN_SHARE * mask.sum():
        return None
    piece = (pieces == largest).astype(np.uint8)
    holes = _small_holes(piece)
    square = np.ones((3, 3), np.uint8)
    faint = cv2.morphologyEx((image >= 64).astype(np.uint8), cv2.MORPH_OPEN, square) > 0
    solid = (piece > 0) | holes
    if (faint & ~solid).sum() > _MAX_FADED * solid.sum():
        return None
    # One more pixel, since the soft edge is outside the thresholded piece.
    near = cv2.dilate(piece, square) > 0
    opacity = np.where(holes, 255, np.where(near, image, 0))
    return Outline(index, opacity[y : y + height, x : x + width].astype(np.float32) / 255)


def _small_holes(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool, the pixels in small holes of the uint8 mask."""
    # The frame connects all of the outside, so that no part of it counts as a hole.
    outside = np.pad(1 - mask, 1, constant_values=1)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] <= _MAX_FILLED_HOLE)
    return np.isin(pieces, small[small > 0])[1:-1, 1:-1]


def _package_file(package: str, file: str) -> str:
    """The path of a file inside a package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the silhouettes dataset needs {file} of the package {package!r}, which is not "
            f"installed. Install it: {_INSTALL[package]}",
            name=package,
        )
    return os.path.join(found.submodule_search_locations[0], file)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles only numpy arrays, because a pickle can run any function."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        # This module has another name in numpy 2.
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(
            f"refused {module}.{name}: only numpy arrays are read from this file"
        )


def _read_pickled(package: str, file: str) -> np.ndarray:
    with gzip.open(_package_file(package, file)) as content:
        return _ArrayUnpickler(content).load()
