"""Paints one image with its background, objects and annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

from .sources import Outline

# Height and width of an image, in pixels.
_IMAGE_SIDE = (96, 127)
# Pixels of the photograph per pixel of the image.
_CROP_SCALE = (0.75, 1.75)
# Objects tried per image; those without a free place are left out.
_NUM_OBJECTS = (1, 4)
_PLACEMENT_TRIES = 20
# Longer side of an object's full box, hidden parts included, in pixels, up to two more or less.
_OBJECT_SIDE = (36, 88)
# Factor on height / width of an outline.
_ASPECT = (0.8, 1.25)
# Probability that an object may hide parts of earlier ones, and the largest fraction of an object's
# area that later objects may hide.
_OVERLAP_PROBABILITY = 0.3
_MAX_HIDDEN = 0.25
# Least distance in RGB space, 0..442, of an object's colour from four fifths of the pixels around
# it, if any of the tried colours has it.
_MIN_CONTRAST = 90.0
_COLOR_TRIES = 16
# Largest relative change of an object's brightness from its middle to its edge, and by its
# low-frequency texture.
_MAX_SHADING = 0.2
_MAX_TEXTURE = 0.15


def compose_image(
    regions: Sequence[np.ndarray],
    outlines: Sequence[Sequence[Outline]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Paints an image of outlines, given by class, onto one of the photographs' regions.

    Returns:
        The image (H, W, 3) uint8, and for each object the category, outline, box, area and mask of
        a COCO annotation, in the order of painting.
    """
    background = _draw_background(regions, rng)
    # A border of one pixel for the soft edge of objects that touch the side of the image.
    canvas = cv2.copyMakeBorder(background, 1, 1, 1, 1, cv2.BORDER_REPLICATE).astype(np.float32)
    visible: list[np.ndarray] = []
    whole_areas: list[int] = []
    labels: list[dict[str, int]] = []
    for _ in range(rng.integers(*_NUM_OBJECTS, endpoint=True)):
        class_index = int(rng.integers(len(outlines)))
        outline = outlines[class_index][int(rng.integers(len(outlines[class_index])))]
        opacity = _draw_outline(outline.opacity, rng)
        mask = opacity >= 0.5
        max_hidden = _MAX_HIDDEN if rng.random() < _OVERLAP_PROBABILITY else 0.0
        window = _find_place(mask, visible, whole_areas, max_hidden, canvas.shape[:2], rng)
        if window is None:
            continue
        paint = _draw_paint(canvas[window], rng)
        canvas[window] += opacity[:, :, None] * (paint - canvas[window])
        for earlier in visible:
            earlier[window] &= ~mask
        whole = np.zeros(canvas.shape[:2], bool)
        whole[window] = mask
        visible.append(whole)
        whole_areas.append(int(mask.sum()))
        labels.append({"category_id": class_index + 1, "outline": outline.source_index})
    image = np.clip(np.rint(canvas[1:-1, 1:-1]), 0, 255).astype(np.uint8)
    objects = []
    for label, whole in zip(labels, visible):
        mask = whole[1:-1, 1:-1].astype(np.uint8)
        counts = mask_util.encode(np.asfortranarray(mask))["counts"].decode("ascii")
        segmentation = {"size": list(mask.shape), "counts": counts}
        box, area = list(cv2.boundingRect(mask)), int(mask.sum())
        objects.append({**label, "bbox": box, "area": area, "segmentation": segmentation})
    return image, objects


def _find_place(
    mask: np.ndarray,
    visible: Sequence[np.ndarray],
    whole_areas: Sequence[int],
    max_hidden: float,
    canvas_shape: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[slice, slice] | None:
    """A window of the canvas where `mask` hides no earlier object too much, or None."""
    height, width = mask.shape
    # Pixels of each that may still be hidden.
    allowances = [
        max(0, int(earlier.sum()) - math.ceil((1 - max_hidden) * area))
        for earlier, area in zip(visible, whole_areas)
    ]
    for _ in range(_PLACEMENT_TRIES):
        top = int(rng.integers(canvas_shape[0] - height + 1))
        left = int(rng.integers(canvas_shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        hidden = [np.count_nonzero(earlier[window] & mask) for earlier in visible]
        if all(number <= allowance for number, allowance in zip(hidden, allowances)):
            return window
    return None


def _draw_background(regions: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A random crop of a photograph, possibly mirrored, as an image (H, W, 3) uint8."""
    height = int(rng.integers(*_IMAGE_SIDE, endpoint=True))
    width = int(rng.integers(*_IMAGE_SIDE, endpoint=True))
    region = regions[int(rng.integers(len(regions)))]
    scale = min(rng.uniform(*_CROP_SCALE), region.shape[0] / height, region.shape[1] / width)
    crop_height, crop_width = int(height * scale), int(width * scale)
    top = int(rng.integers(region.shape[0] - crop_height + 1))
    left = int(rng.integers(region.shape[1] - crop_width + 1))
    crop = region[top : top + crop_height, left : left + crop_width]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=method)


def _draw_outline(opacity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Randomly resizes and mirrors an outline.

    Returns:
        Opacity (h, w) in 0..1 with an edge about one pixel wide. The object's mask is where it is
        at least 0.5, with one pixel of border around it.
    """
    if rng.random() < 0.5:
        opacity = opacity[:, ::-1]
    stretch = math.sqrt(rng.uniform(*_ASPECT))
    height, width = opacity.shape[0] * stretch, opacity.shape[1] / stretch
    scale = rng.uniform(*_OBJECT_SIDE) / max(height, width)
    # The border keeps the interpolation from ending the outline abruptly.
    padded = np.pad(opacity, 2)
    size = (round(padded.shape[1] / stretch * scale), round(padded.shape[0] * stretch * scale))
    # The scale is above 1. Blurring hides the steps of the source's pixels, by which any object
    # could be recognised.
    smooth = cv2.resize(padded, size, interpolation=cv2.INTER_CUBIC)
    smooth = cv2.GaussianBlur(smooth, (0, 0), sigmaX=0.4 * scale)
    # The soft edge of one source pixel is now `scale` pixels wide; this makes it one again.
    sharp = np.clip(0.5 + (smooth - 0.5) * scale, 0, 1)
    left, top, width, height = cv2.boundingRect((sharp >= 0.5).astype(np.uint8))
    return np.pad(sharp, 1)[top : top + height + 2, left : left + width + 2]


def _draw_paint(surroundings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shaded, textured colour (h, w, 3) with contrast to `surroundings` (h, w, 3)."""
    height, width = surroundings.shape[:2]
    step = max(1, int(math.sqrt(height * width / 400)))
    pixels = surroundings[::step, ::step].reshape(1, -1, 3)
    hsv = rng.uniform((0, 0, 0.08), (360, 0.8, 0.95), size=(_COLOR_TRIES, 3))
    colors = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2BGR)[0] * 255
    distances = np.sqrt(((colors[:, None] - pixels) ** 2).sum(axis=2))
    nearest_fifth = distances.shape[1] // 5
    contrasts = np.partition(distances, nearest_fifth, axis=1)[:, nearest_fifth]
    enough = np.flatnonzero(contrasts >= _MIN_CONTRAST)
    color = colors[enough[0] if len(enough) else int(np.argmax(contrasts))]

    angle = rng.uniform(0, 2 * math.pi)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope = (math.sin(angle) * rows + math.cos(angle) * columns) / math.sqrt(2)
    patches = rng.uniform(-1, 1, size=(6, 6)).astype(np.float32)
    patches = np.clip(cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC), -1, 1)
    shading, texture = rng.uniform(0, _MAX_SHADING), rng.uniform(0, _MAX_TEXTURE)
    brightness = 1 + shading * slope + texture * patches
    return np.clip(color * brightness[:, :, None], 0, 255).astype(np.float32)
