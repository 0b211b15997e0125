"""Image files of the demo: finding, reading and writing them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from glob import glob

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image

from .files import atomic_file

# Extensions of images in a folder.
READ_EXTENSIONS = (
    *(".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
# Extensions of drawn images; drawings on other kinds become .png.
WRITTEN_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# Limit of the missing files that an error names.
_MAX_NAMED = 5


def find_pictures(arguments: Sequence[str], listed: Iterable[str] = ()) -> list[str]:
    """The image files that arguments name, each once, in their order.

    Args:
        arguments: files; folders, for the images in them (by extension, without subfolders, sorted
            by name); glob patterns such as "folder/*.jpg"; or "-" for ``listed``.
        listed: lines with a file or folder each, read only if an argument is "-".

    Raises:
        FileNotFoundError: if a named file does not exist, or a folder contains no image.
    """
    paths: list[str] = []
    for argument in arguments:
        if argument == "-":
            paths += _in_list(listed)
        else:
            paths += _in_argument(os.path.expanduser(argument))
    by_file: dict[str, str] = {}
    for path in paths:
        by_file.setdefault(os.path.abspath(path), path)
    return list(by_file.values())


def _in_argument(argument: str) -> list[str]:
    # Before patterns, since file names may contain brackets.
    if os.path.exists(argument):
        return _in_path(argument)
    found = [path for path in sorted(glob(argument, recursive=True)) if os.path.isfile(path)]
    if not found:
        raise FileNotFoundError(
            f"--input {argument}: there is no such file (relative to {os.getcwd()})"
        )
    return found


def _in_list(lines: Iterable[str]) -> list[str]:
    paths: list[str] = []
    missing: list[str] = []
    for line in lines:
        path = line.rstrip("\r\n")
        if not path:
            continue
        if os.path.exists(path):
            paths += _in_path(path)
        else:
            missing.append(path)
    if missing:
        named = ", ".join(missing[:_MAX_NAMED]) + ", ..." * (len(missing) > _MAX_NAMED)
        raise FileNotFoundError(
            f"--input -: {len(missing)} of the listed files do not exist (relative to "
            f"{os.getcwd()}): {named}"
        )
    if not paths:
        raise FileNotFoundError("--input -: the list of files is empty, expected one per line")
    return paths


def _in_path(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    names = sorted(x for x in os.listdir(path) if x.lower().endswith(READ_EXTENSIONS))
    paths = [os.path.join(path, name) for name in names]
    paths = [x for x in paths if os.path.isfile(x)]
    if not paths:
        raise FileNotFoundError(
            f"--input {path}: the folder contains no image, expected files with one of the "
            f"extensions {', '.join(READ_EXTENSIONS)}"
        )
    return paths


def read_picture(path: str) -> np.ndarray:
    """Reads an image as training and evaluation do.

    Returns:
        (h0, w0, 3) uint8 in BGR order.

    Raises:
        OSError: if the file is not an image or is damaged; the message names it.
    """
    try:
        return read_image(path, format="BGR")
    # Pillow raises exceptions of many types for damaged files.
    except Exception as error:
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def write_picture(picture: np.ndarray, path: str) -> None:
    """Writes an image in the format of its extension; creates missing folders.

    Args:
        picture: (h, w, 3) uint8 in BGR order.
        path: with one of ``WRITTEN_EXTENSIONS``.

    Raises:
        OSError: if it cannot be written.
    """
    extension = os.path.splitext(path)[1].lower()
    try:
        done, content = cv2.imencode(extension, picture)
    except cv2.error as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    if not done:
        height, width = picture.shape[:2]
        raise OSError(f"{path}: OpenCV cannot write an image of {width} x {height} as {extension}")
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    with atomic_file(path, "wb") as file:
        file.write(content.tobytes())


def output_paths(output: str, pictures: Sequence[str]) -> list[str]:
    """Paths of the drawn images. They overwrite neither inputs nor each other.

    Args:
        output: a folder, which need not exist, or for one image a file.
        pictures: of :func:`find_pictures`.

    Returns:
        A path for each image. In a folder it has the name of the image. Images of the same name
        are numbered, and formats that are not written become .png.

    Raises:
        ValueError: if ``output`` is a file for several images, or an input would be overwritten.
    """
    if is_file_name(output):
        check_extension(output, WRITTEN_EXTENSIONS)
        if len(pictures) > 1:
            raise ValueError(
                f"--output {output} is a file, but there are {len(pictures)} images; name a folder"
            )
        targets = [output]
    else:
        targets = [os.path.join(output, name) for name in _names(pictures)]
    refuse_to_overwrite(output, targets, pictures)
    return targets


def is_file_name(output: str) -> bool:
    """Whether ``--output`` names a file: an existing file, or a new path with an extension."""
    if os.path.isdir(output) or output.endswith(("/", os.sep)):
        return False
    return os.path.isfile(output) or bool(os.path.splitext(output)[1])


def check_extension(output: str, extensions: Sequence[str]) -> None:
    """Raises ValueError if the file of ``--output`` has none of these extensions."""
    extension = os.path.splitext(output)[1]
    if extension.lower() not in extensions:
        raise ValueError(
            f"--output {output}: {extension or 'a file without extension'} cannot be written; "
            f"expected one of {', '.join(extensions)}, or a folder (end a new folder with a dot "
            f"in its name with /)"
        )


def refuse_to_overwrite(output: str, targets: Iterable[str], sources: Iterable[str]) -> None:
    """Raises ValueError if writing ``targets`` would overwrite one of ``sources``."""
    identities = {_identity(path): path for path in sources}
    for target in targets:
        if os.path.exists(target) and _identity(target) in identities:
            raise ValueError(
                f"--output {output} would overwrite {identities[_identity(target)]}; name another "
                "folder"
            )


def _identity(path: str) -> tuple[int, int]:
    """Identifies a file independently of its path."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _names(pictures: Sequence[str]) -> Iterator[str]:
    """Unique names of the drawn images, also on file systems that ignore case."""
    taken: set[str] = set()
    for path in pictures:
        stem, extension = os.path.splitext(os.path.basename(path))
        if extension.lower() not in WRITTEN_EXTENSIONS:
            extension = ".png"
        name, number = stem + extension, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}{extension}"
        taken.add(name.casefold())
        yield name
