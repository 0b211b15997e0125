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


def find_pictures(arguments: Sequence[str], listed: Iterable[str] = ()) -> list[str]:
    """The image files that arguments name, each once, in their order.

    Args:
        arguments: files; folders, for the images in them (by extension, without subfolders, sorted
            by name); glob patterns such as "folder/*.jpg"; or "-" for ``listed``.
        listed: lines with one of these each, read only if an argument is "-".

    Raises:
        FileNotFoundError: if a named file does not exist, or a folder contains no image.
    """
    by_file: dict[str, str] = {}
    for argument in arguments:
        names = (x.rstrip("\r\n") for x in listed) if argument == "-" else [argument]
        found = [path for name in filter(None, names) for path in _matches(name)]
        if not found:
            raise FileNotFoundError(f"--input {argument}: the list of files is empty")
        for path in found:
            by_file.setdefault(os.path.abspath(path), path)
    return list(by_file.values())


def _matches(name: str) -> list[str]:
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        inside = (os.path.join(name, x) for x in sorted(os.listdir(name)))
        found = [x for x in inside if x.lower().endswith(READ_EXTENSIONS) and os.path.isfile(x)]
        expected = f"the folder contains no image, expected {', '.join(READ_EXTENSIONS)}"
    else:
        # Existing files come first, since file names may contain brackets.
        paths = [name] if os.path.exists(name) else sorted(glob(name, recursive=True))
        found = [x for x in paths if not os.path.isdir(x)]
        expected = f"there is no such file (relative to {os.getcwd()})"
    if not found:
        raise FileNotFoundError(f"--input {name}: {expected}")
    return found


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
    try:
        done, content = cv2.imencode(os.path.splitext(path)[1].lower(), picture)
    except cv2.error as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    if not done:
        raise OSError(f"{path}: OpenCV cannot write an image of {picture.shape[:2]} pixels there")
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
    if is_file_name(output, WRITTEN_EXTENSIONS):
        if len(pictures) > 1:
            raise ValueError(
                f"--output {output} is a file, but there are {len(pictures)} images; name a folder"
            )
        targets = [output]
    else:
        targets = [os.path.join(output, name) for name in _names(pictures)]
    refuse_to_overwrite(targets, pictures)
    return targets


def is_file_name(output: str, extensions: Sequence[str]) -> bool:
    """Whether ``--output`` names a file: an existing one, or a new path with an extension.

    Raises:
        ValueError: if it names a file without one of the extensions.
    """
    extension = os.path.splitext(output)[1]
    if os.path.isdir(output) or output.endswith(os.sep):
        return False
    if not extension and not os.path.exists(output):
        return False
    if extension.lower() not in extensions:
        raise ValueError(
            f"--output {output} cannot be written; expected one of {', '.join(extensions)}, or a "
            "folder (end a new folder with a dot in its name with /)"
        )
    return True


def refuse_to_overwrite(targets: Iterable[str], sources: Iterable[str]) -> None:
    """Raises ValueError if writing ``targets`` would overwrite one of ``sources``."""
    # Device and number identify a file whatever its path is.
    files = {(x.st_dev, x.st_ino): path for path in sources for x in [os.stat(path)]}
    for target in targets:
        if os.path.exists(target):
            found = os.stat(target)
            if (found.st_dev, found.st_ino) in files:
                source = files[found.st_dev, found.st_ino]
                raise ValueError(f"--output would overwrite {source}; name another folder")


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
