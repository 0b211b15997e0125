"""Checks the image files of an annotation file."""

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Optional

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from .report import Problem, Report
from .segmentations import KindAndDetail
from .structure import entries_of, is_integer

# Images per task of a worker.
CHUNK = 16
ORIENTATION_TAG = next(key for key, name in ExifTags.TAGS.items() if name == "Orientation")
# EXIF orientations for which Detectron2 rotates or mirrors an image.
TURNED_ORIENTATIONS = range(2, 9)
# EXIF orientations that exchange width and height.
TRANSPOSED_ORIENTATIONS = range(5, 9)
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


class _Header(NamedTuple):
    """Properties of an image file that are known before decoding."""

    mode: str
    stored: str
    size: tuple[int, int]
    orientation: Optional[int]
    has_transparency: bool
    num_frames: Optional[int]


def missing_images(content: Any, image_root: str, path: str = "the annotation file") -> Report:
    """Checks only that the image files exist, by listing their folders.

    Args:
        content: the parsed annotation file.
        image_root: folder to which the file names are relative.
        path: of the annotation file, for the messages.

    Returns:
        A problem for each missing image file.

    Raises:
        ValueError: if the content has no list of images.
    """
    images = entries_of(content, "images", path)
    missing = _missing(images, image_root)
    problems = []
    for position in sorted(missing):
        detail = f"there is no file {_path(images[position], image_root)}"
        problems.append(_problem(images, position, "image file is missing", detail))
    return _report(content, path, problems)


def check_images(
    content: Any,
    image_root: str,
    path: str = "the annotation file",
    num_workers: Optional[int] = None,
    show_progress: bool = False,
) -> Report:
    """Checks that the image files exist, decodes them and compares their sizes.

    An image is valid if Detectron2's ``read_image`` reads it as RGB.

    Args:
        content: the parsed annotation file.
        image_root: folder to which the file names are relative.
        path: of the annotation file, for the messages.
        num_workers: processes; 0 decodes in this process, None takes one per core.
        show_progress: whether to draw a progress bar on stderr.

    Returns:
        Problems of the image files. Entries without a file name are skipped.

    Raises:
        ValueError: if the content has no list of images.
        RuntimeError: if a worker process died, for example for lack of memory.
    """
    images = entries_of(content, "images", path)
    report = missing_images(content, image_root, path)
    missing = {x.position for x in report.problems}
    positions = [i for i, x in enumerate(images) if _has_name(x) and i not in missing]
    tasks = [(_path(images[i], image_root), _size(images[i])) for i in positions]
    results = tqdm(
        _inspect_all(tasks, os.cpu_count() or 1 if num_workers is None else num_workers),
        total=len(tasks),
        desc="images",
        disable=not show_progress,
    )
    problems = [
        _problem(images, position, kind, detail)
        for position, found in zip(positions, results)
        for kind, detail in found
    ]
    return report + _report(content, path, problems)


def _inspect_all(tasks: list, num_workers: int) -> Iterator[list[KindAndDetail]]:
    """In the order of the tasks."""
    if num_workers == 0:
        yield from map(_inspect, tasks)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        try:
            yield from pool.map(_inspect, tasks, chunksize=CHUNK)
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {num_workers} processes that decode images died. If memory is short, use "
                "fewer workers; 0 decodes the images one by one in this process."
            ) from error


def _inspect(task: tuple[str, Optional[tuple[int, int]]]) -> list[KindAndDetail]:
    """Problems of one image file; ``task`` is its path and expected (width, height)."""
    path, expected = task
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            image = read_image(path, format="RGB")
            header = _read_header(path)
    # For a damaged file Pillow raises many types of errors.
    except Exception as error:
        return [_unreadable(error)]
    size = image.shape[1], image.shape[0]
    if expected is not None and size != expected:
        detail = f"the file has {_times(size)}, the annotations have {_times(expected)}"
        if header.orientation in TRANSPOSED_ORIENTATIONS and header.size == expected:
            detail += ", its size before the rotation by EXIF"
        return [("image size differs from the annotation file", detail)]
    texts = sorted({str(x.message) for x in warned})
    return list(_notes(header, image)) + [("Pillow warning", x) for x in texts]


def exif_orientation(image: Image.Image) -> Optional[int]:
    """The orientation by which Detectron2 turns an image; None if it does not."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    # Pillow raises many types of errors. Detectron2 ignores unreadable EXIF data, too.
    except Exception:
        return None
    return orientation if orientation in TURNED_ORIENTATIONS else None


def _read_header(path: str) -> _Header:
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        orientation = exif_orientation(image)
        mode, size = image.mode, image.size
        has_transparency = mode in ALPHA_MODES or "transparency" in image.info
        stored = str([tile[3] for tile in image.tile])
        try:
            num_frames = getattr(image, "n_frames", 1)
        # Counting reads all frames, of which only the first one was checked.
        except Exception:
            num_frames = None
        return _Header(mode, stored, size, orientation, has_transparency, num_frames)


def _notes(header: _Header, image: np.ndarray) -> Iterator[KindAndDetail]:
    """Silent conversions by Detectron2's ``read_image``, whose result is ``image`` (h, w, 3)."""
    if header.orientation is not None:
        detail = f"orientation {header.orientation}; boxes must be those of the rotated image"
        yield "rotated by EXIF", detail
    if header.mode.startswith(("I", "F")):
        white = (image == 255).all(axis=2).mean()
        yield (
            "more than 8 bits per channel",
            f"mode {header.mode}; values are clipped to 0 ... 255, which makes {white:.0%} white",
        )
    elif "16" in header.stored:
        yield "more than 8 bits per channel", "of 16 bits the upper 8 are used"
    if header.mode == "CMYK":
        yield "CMYK", "converted to RGB without a colour profile"
    if header.mode in ("P", "PA"):
        yield "palette", "converted to the palette's colours"
    if header.has_transparency:
        yield "alpha channel", "dropped; the colour of transparent pixels becomes visible"
    if header.num_frames != 1:
        number = "more than one" if header.num_frames is None else header.num_frames
        yield "several frames", f"{number}; the first is used"


def _unreadable(error: Exception) -> KindAndDetail:
    if isinstance(error, UnidentifiedImageError):
        return "image file cannot be read", "no image format that Pillow supports"
    text = f"{type(error).__name__}: {error}"
    if "truncated" in text.lower():
        return "image file is truncated", text
    return "image file cannot be read", text


def _missing(images: list[dict], image_root: str) -> set[int]:
    """Positions of the images whose file is missing."""
    folders: dict[str, list[int]] = {}
    for position, image in enumerate(images):
        if _has_name(image):
            folder = os.path.dirname(_path(image, image_root))
            folders.setdefault(folder, []).append(position)
    missing = set()
    for folder, positions in folders.items():
        present = _files_in(folder)
        for position in positions:
            path = _path(images[position], image_root)
            is_there = _is_file(path) if present is None else os.path.basename(path) in present
            if not is_there:
                missing.add(position)
    return missing


def _files_in(folder: str) -> Optional[set[str]]:
    """Names of the files in a folder; None if it cannot be listed."""
    try:
        if "://" in folder:
            return set(PathManager.ls(folder))
        with os.scandir(folder or os.curdir) as entries:
            return {x.name for x in entries if x.is_file()}
    # ValueError: an impossible file name.
    except (NotImplementedError, OSError, ValueError):
        return None


def _is_file(path: str) -> bool:
    try:
        return PathManager.isfile(path)
    # The handler of https:// addresses has no isfile.
    except NotImplementedError:
        return True


def _has_name(image: dict) -> bool:
    return isinstance(image.get("file_name"), str) and image["file_name"] != ""


def _path(image: dict, image_root: str) -> str:
    return os.path.join(image_root, image["file_name"])


def _size(image: dict) -> Optional[tuple[int, int]]:
    """(width, height) in the annotation file."""
    size = image.get("width"), image.get("height")
    return size if all(map(is_integer, size)) else None


def _times(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def _problem(images: list[dict], position: int, kind: str, detail: str) -> Problem:
    image = images[position]
    image_id = image["id"] if is_integer(image.get("id")) else None
    return Problem(kind, "images", position, image_id, None, image["file_name"], detail)


def _report(content: dict, path: str, problems: list[Problem]) -> Report:
    images = entries_of(content, "images", path)
    annotations = entries_of(content, "annotations", path, required=False)
    return Report(path, problems, len(images), len(annotations))
