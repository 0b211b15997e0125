"""Image files of the demo: finding, reading and writing them, and the paths of its results."""

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
# Extensions of drawn images; drawings on other kinds get the first.
WRITTEN_EXTENSIONS = (".png", ".bmp", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")


def find_pictures(arguments: Sequence[str], listed: Iterable[str] = ()) -> list[str]:
    """The image files that arguments name, each once, in their order.

    Args:
        arguments: files; folders, for the images in them (by extension, without subfolders, sorted
            by name); glob patterns such as "folder/*.jpg"; or "-" for ``listed``.
        listed: lines with one of these each, read only if an argument is "-".

    Raises:
        FileNotFoundError: if a named file does not exist, or there is no image.
    """
    by_file: dict[str, str] = {}
    for argument in arguments:
        names = (x.rstrip("\r\n") for x in listed) if argument == "-" else [argument]
        for path in (path for name in names if name for path in _matches(name)):
            by_file.setdefault(os.path.abspath(path), path)
    if not by_file:
        raise FileNotFoundError("--input -: the list of files is empty")
    return list(by_file.values())


def _matches(name: str) -> list[str]:
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        paths = [os.path.join(name, x) for x in os.listdir(name)]
        paths = [x for x in paths if x.lower().endswith(READ_EXTENSIONS)]
        expected = f"the folder contains no image, expected {', '.join(READ_EXTENSIONS)}"
    else:
        # Existing files come first, since file names may contain brackets.
        paths = [name] if os.path.exists(name) else glob(name, recursive=True)
        expected = f"there is no such file (relative to {os.getcwd()})"
    found = sorted(filter(os.path.isfile, paths))
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
    # cv2.imwrite crashes on file names that are not valid UTF-8.
    try:
        done, content = cv2.imencode(os.path.splitext(path)[1].lower(), picture)
    except cv2.error:
        # Other versions of OpenCV return False.
        done = False
    if not done:
        raise OSError(f"{path}: OpenCV cannot write an image of {picture.shape[:2]} pixels there")
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    with atomic_file(path, "wb") as file:
        file.write(content)


def output_paths(
    output: str,
    sources: Sequence[str],
    extensions: Sequence[str] = WRITTEN_EXTENSIONS,
    kept: Sequence[str] = WRITTEN_EXTENSIONS,
) -> list[str]:
    """Paths of the drawn images or videos. They overwrite neither inputs nor each other.

    Args:
        output: a folder, which need not exist, or for one input a file.
        sources: paths of the inputs.
        extensions: of files that can be written.
        kept: extensions that stay in a folder; the others become the first of ``extensions``.

    Returns:
        A path for each input. In a folder it has the name of the input, but results of the same
        name are numbered.

    Raises:
        ValueError: if ``output`` is a file of another kind or for several inputs, or an input would
            be overwritten.
    """
    extension = os.path.splitext(output)[1]
    if os.path.isdir(output) or not (extension or os.path.exists(output)):
        targets = [os.path.join(output, x) for x in _names(sources, extensions[0], kept)]
    elif len(sources) > 1 or extension.lower() not in extensions:
        raise ValueError(
            f"--output {output}: expected a folder (a new one with a dot in its name ends with /), "
            f"or for one input a file with one of the extensions {', '.join(extensions)}"
        )
    else:
        targets = [output]
    # Inode and device identify a file whatever its path is.
    inputs = {os.stat(path)[1:3]: path for path in sources}
    for target in filter(os.path.exists, targets):
        source = inputs.get(os.stat(target)[1:3])
        if source is not None:
            raise ValueError(f"--output would overwrite {source}; name another folder")
    return targets


def _names(paths: Sequence[str], extension: str, kept: Sequence[str]) -> Iterator[str]:
    """Unique names of results, also on file systems that ignore case."""
    taken: set[str] = set()
    for path in paths:
        stem, ending = os.path.splitext(os.path.basename(path))
        if ending.lower() not in kept:
            ending = extension
        name, number = stem + ending, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}{ending}"
        taken.add(name.casefold())
        yield name
