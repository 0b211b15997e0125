"""Checks the image files of an annotation file."""

import functools
import os
import warnings
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.utils.data import DataLoader
from tqdm import tqdm

from .reading import file_name_of, is_integer
from .report import KindAndDetail, Problem, image_problem

ORIENTATION_TAG = next(key for key, name in ExifTags.TAGS.items() if name == "Orientation")
# EXIF orientations for which Detectron2 turns an image, and those that exchange width and height.
TURNED_ORIENTATIONS = range(2, 9)
TRANSPOSED_ORIENTATIONS = range(5, 9)
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


def missing_images(images: list[dict], image_root: str) -> list[Problem]:
    """Checks only that the image files exist, by listing the folders below ``image_root``.

    Entries without a valid file name are skipped, and files in folders that cannot be listed.
    """
    problems = []
    # A file on a network takes as long as a folder.
    listed = functools.cache(_names_in)
    for position, image in enumerate(images):
        file = os.path.join(image_root, file_name_of(image) or "")
        names = listed(os.path.dirname(file))
        if file_name_of(image) and names is not None and os.path.basename(file) not in names:
            detail = f"there is no file {file}"
            problems.append(image_problem(image, position, "image file is missing", detail))
    return problems


def check_images(
    images: list[dict], image_root: str, num_workers: int, show_progress: bool = False
) -> list[Problem]:
    """Checks that the image files exist, decodes them and compares their sizes.

    An image is valid if Detectron2's ``read_image`` reads it as RGB. Entries without a valid file
    name are skipped.

    Args:
        images: of the annotation file, with names relative to ``image_root``.
        num_workers: processes that decode; 0 decodes in this process.
        show_progress: whether to draw a progress bar on stderr.

    Raises:
        RuntimeError: if a worker process died, for example for lack of memory.
    """
    problems = missing_images(images, image_root)
    missing = {x.position for x in problems}
    present = [i for i, x in enumerate(images) if file_name_of(x) and i not in missing]
    tasks = [
        (os.path.join(image_root, x["file_name"]), (x.get("width"), x.get("height")))
        for x in (images[i] for i in present)
    ]
    # Without batches each task is "collated" by itself, in a worker.
    results = DataLoader(tasks, batch_size=None, num_workers=num_workers, collate_fn=_inspect)
    progress = tqdm(results, desc="images", disable=not show_progress)
    try:
        for position, found in zip(present, progress):
            problems += [image_problem(images[position], position, *x) for x in found]
    except RuntimeError as error:
        raise RuntimeError(
            f"one of {num_workers} processes that decode images died. If memory is short, use "
            "fewer workers; 0 decodes the images one by one in this process."
        ) from error
    return problems


def exif_orientation(image: Image.Image) -> Optional[int]:
    """The orientation by which Detectron2 turns an image; None if it does not."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    # Pillow raises many types of errors. Detectron2 ignores unreadable EXIF data, too.
    except Exception:
        return None
    return orientation if orientation in TURNED_ORIENTATIONS else None


def _inspect(task: tuple[str, tuple[Any, Any]]) -> list[KindAndDetail]:
    """Problems of an image file; ``task`` is its path, and width and height of its entry."""
    path, expected = task
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            pixels = read_image(path, format="RGB")
            with PathManager.open(path, "rb") as file, Image.open(file) as header:
                found = list(_conversions(header, pixels, expected))
    except UnidentifiedImageError:
        return [("image file cannot be read", "it has no image format that Pillow supports")]
    # For a damaged file Pillow raises many types of errors.
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        truncated = "truncated" in text.lower()
        return [("image file is truncated" if truncated else "image file cannot be read", text)]
    return found + [("Pillow warning", x) for x in sorted({str(x.message) for x in warned})]


def _conversions(
    header: Image.Image, pixels: np.ndarray, expected: tuple[Any, Any]
) -> Iterator[KindAndDetail]:
    """What ``read_image`` silently changed in the pixels, and a size that is not expected."""
    size = pixels.shape[1], pixels.shape[0]
    # Raw modes such as "RGB;16B". Reading the EXIF data of a PNG file decodes it and drops them.
    has_16_bits = any(";16" in str(tile[3]) for tile in header.tile)
    orientation = exif_orientation(header)
    if expected != size and all(map(is_integer, expected)):
        detail = "the file has {} x {}, the annotations have {} x {}".format(*size, *expected)
        if orientation in TRANSPOSED_ORIENTATIONS and header.size == expected:
            detail += ", its size before the rotation by EXIF"
        yield "image size differs from the annotation file", detail
        return
    mode = f"its mode is {header.mode}"
    if orientation is not None:
        yield "rotated by EXIF", f"its orientation is {orientation}"
    if header.mode.startswith(("I", "F")):
        white = (pixels == 255).all(axis=2).mean()
        yield (
            "more than 8 bits per channel",
            f"{mode}; clipping to 0 ... 255 makes {white:.0%} white",
        )
    elif has_16_bits:
        yield "more than 8 bits per channel", "of 16 bits the upper 8 are used"
    if header.mode == "CMYK":
        yield "CMYK", mode
    if header.mode in ("P", "PA"):
        yield "palette", mode
    if header.mode in ALPHA_MODES or "transparency" in header.info:
        yield "alpha channel", mode
    try:
        num_frames = getattr(header, "n_frames", 1)
    # Counting reads all frames, of which only the first one was checked.
    except Exception:
        num_frames = "more than one"
    if num_frames != 1:
        yield "several frames", f"it has {num_frames}"


def _names_in(folder: str) -> Optional[set[str]]:
    """Names of the files in a folder; None if it cannot be listed, as an https:// address."""
    try:
        if "://" in folder:
            return set(PathManager.ls(folder))
        with os.scandir(folder or os.curdir) as entries:
            return {x.name for x in entries if x.is_file()}
    # ValueError: an impossible name.
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return set()
    except (NotImplementedError, OSError):
        return None
