"""Atomic writing of files."""

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from typing import IO, Iterator

from detectron2.utils.file_io import PathManager

UNFINISHED = ".part"
"""Suffix of the name of an incomplete file."""


@contextmanager
def complete_path(path: str, ending: str = "", durable: bool = False) -> Iterator[str]:
    """A name to write to; the file gets its own once the block has ended without an error.

    An existing file remains until then, and after an error or Ctrl-C.

    Args:
        path: its name in the end, also an address of iopath's, such as "s3://...": the file is then
            written to a temporary folder, and from there as a whole.
        ending: of the name until then, for what looks at it.
        durable: whether the name is on the disk at the end, and not only on its way there.

    Yields:
        The name until then.
    """
    if "://" in path:
        with tempfile.TemporaryDirectory() as folder:
            unfinished = os.path.join(folder, f"file{UNFINISHED}{ending}")
            yield unfinished
            with open(unfinished, "rb") as source, PathManager.open(path, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    unfinished = f"{path}{UNFINISHED}{ending}"
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.remove(unfinished)
        raise
    if durable:
        # Not every system can do that with a folder.
        with suppress(OSError):
            _sync_folder(os.path.dirname(path) or os.curdir)


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def complete_file(path: str, mode: str = "w", durable: bool = False) -> Iterator[IO]:
    """Opens a file to write under :func:`complete_path`.

    Args:
        path: its name in the end.
        mode: "w" for text, in UTF-8, or "wb".
        durable: whether it is on the disk before it has its name, and its name at the end.

    Yields:
        The open file.

    Raises:
        OSError: if it cannot be written.
    """
    with complete_path(path, durable=durable) as unfinished:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
