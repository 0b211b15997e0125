"""Paints one image with its background, objects and annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

from .sources import Outline
from .spec import SilhouettesSpec


def compose_image(
    regions: Sequence[np.ndarray],
    outlines: Sequence[Sequence[Outline]],
    spec: SilhouettesSpec,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Paints one image.

    Returns:
        The image (H, W, 3) uint8, and for each object the category, outline, box, area and mask of
        a COCO annotation, in the order of painting.
    """
    height = int(rng.integers(spec.image_height[0], spec.image_height[1] + 1))
    width = int(rng.integers(spec.image_width[0], spec.image_width[1] + 1))
    background = _draw_background(regions, height, width, spec, rng)
    # A border of one pixel for the soft edge of objects that touch the side of the image.
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
    """A random crop of a photograph, possibly mirrored, as an image (H, W, 3) uint8."""
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
    """Randomly resizes and mirrors an outline.

    Returns:
        Opacity (h, w) in 0..1 with an edge about one pixel wide. The object's mask is where it is
        at least 0.5, with one pixel of border around it.
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
        # Smooths the steps of the source's pixels, by which any object could be recognised.
        smooth = cv2.GaussianBlur(smooth, (0, 0), sigmaX=0.4 * scale)
    # The soft edge of one source pixel is now `scale` pixels wide; this makes it one again.
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
    """A window of the canvas where `mask` hides no earlier object too much, or None."""
    height, width = mask.shape
    # Pixels of each that may still be hidden.
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
    """A shaded, textured colour (h, w, 3) with contrast to `surroundings` (h, w, 3)."""
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
    """Box, area and segmentation of a COCO annotation from the visible mask (H, W) bool."""
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
